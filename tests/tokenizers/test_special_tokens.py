"""Special tokens: ids that no text has, and what begins and ends texts; ids that a model has and its tokenizer lacks."""

import json
import threading

import numpy as np
import pytest
import tokenizers

import gpt2c
from gpt2c.errors import TokenizationError, UsageError
from gpt2c.generation.beam import beam_search
from gpt2c.tokenizers.byte_level import visible
from gpt2c.tokenizers.tokenizer import Tokenizer

SPECIALS = ("<|bos|>", "<|eos|>", "<|im_end|>")
CONFIG = dict(num_layers=1, channels=4, num_heads=1, max_seq_len=4)


@pytest.fixture
def tokenizer():
    return Tokenizer.make("byte", specials=SPECIALS)


def model_with(tokenizer):
    model = gpt2c.create("gpt2", vocab_size=300, **CONFIG)
    model.tokenizer = tokenizer
    return model


def test_special_tokens_and_the_one_that_begins_a_text(tokenizer):
    assert tokenizer.special_tokens == {name: 256 + n for n, name in enumerate(SPECIALS)}
    assert tokenizer.encode("a<|eos|>", special=True) == tokenizer.encode("a<|eos|>", True) == [97, 257]
    assert tokenizer.encode("a<|eos|>", allow_special=True) == [97, 257]
    assert tokenizer.encode("a<|eos|>", bos=True) == [256, *b"a<|eos|>"]
    assert tokenizer.encode("a", special=True, bos=True) == [256, 97] and tokenizer.encode("", bos=True) == [256]
    with pytest.raises(UsageError, match="no token that begins a text"):
        Tokenizer.make("byte").encode("a", bos=True)


def test_a_text_to_continue_begins_as_the_model_wants_it(tokenizer):
    assert (tokenizer.ends, tokenizer.adds_bos, tokenizer.opens) == ([257], False, 257)
    assert tokenizer.prompt("a") == [97] and tokenizer.prompt("") == [257] and Tokenizer.make("byte").prompt("") == [0]
    tokenizer.adds_bos = True
    assert tokenizer.prompt("a") == [256, 97] and tokenizer.prompt("") == [256]
    ids = list(gpt2c.generate(model_with(tokenizer), "a", 5, temperature=0))
    assert ids == list(gpt2c.generate(model_with(tokenizer), [256, 97], 5, temperature=0))


# ---- text is never a special token


def over_words(text, **parts):
    """A tokenizer whose model itself has special tokens as words, whole."""
    words = ["<unk>", "</s>", "<|im_end|>", "a", "<", "/s>", "|im_end|>"]
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: id for id, word in enumerate(words)}, "<unk>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["<unk>", "</s>", "<|im_end|>"])
    return Tokenizer.from_json(json.dumps(json.loads(library.to_str()) | parts))


@pytest.mark.parametrize("name", ["</s>", "<|im_end|>"])
def test_text_that_the_vocabulary_itself_takes_for_a_special_token(name):
    made = over_words(name)
    assert made.encode(f"a {name} a") == [3, 4, made.tokens.index(name[1:].encode()), 3]
    assert made.encode_array(f"{name} zzz").tolist() == [4, made.tokens.index(name[1:].encode()), 0]
    assert made.encode(f"a {name}", special=True) == [3, made.special_tokens[name]]


def test_text_that_becomes_a_special_token_in_disguise_is_refused():
    made = over_words("", normalizer={"type": "Lowercase"})
    assert made.encode("</s>") == [4, 5]
    with pytest.raises(TokenizationError, match="takes for its special token '</s>'"):
        made.encode("a </S>")


def test_a_vocabulary_that_takes_whole_words_first():
    """As Llama 3's: `ignore_merges`."""
    document = json.loads(Tokenizer.make("bpe", "ab ab", vocab_size=258).to_json())
    vocab = document["model"]["vocab"]
    vocab["abab"] = document["added_tokens"][0]["id"] = len(vocab)
    vocab["<|endoftext|>"] = document["added_tokens"][0]["id"] = len(vocab)
    document["pre_tokenizer"] = document["model"]["ignore_merges"] = None
    document["model"]["ignore_merges"] = True
    made = Tokenizer.from_json(json.dumps(document))
    assert made.encode("abab") == [vocab["abab"]] and made.encode("ababab") == [vocab["ab"]] * 3
    assert made.decode(made.encode("<|endoftext|>")) == "<|endoftext|>" and made.eot not in made.encode("<|endoftext|>")
    assert made.encode("<|endoftext|>", special=True) == [made.eot]
    again = Tokenizer.from_json(made.to_json())
    assert again.encode("abab") == [vocab["abab"]]


def test_both_ways_to_write_merges():
    made = Tokenizer.make("bpe", "ab ab abc abc", vocab_size=300)
    document = json.loads(made.to_json())
    for merges in ([list(merge) for merge in document["model"]["merges"]], [" ".join(m) for m in document["model"]["merges"]]):
        document["model"]["merges"] = merges
        again = Tokenizer.from_json(json.dumps(document))
        assert again.encode("ab abc") == made.encode("ab abc") and len(made.encode("ab abc")) < 4


def test_added_tokens_that_are_not_special_are_found_in_text():
    document = json.loads(Tokenizer.make("byte").to_json())
    word = {"id": 256, "content": "<think>", "special": False, "normalized": False}
    document["added_tokens"] = [word | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)]
    made = Tokenizer.from_json(json.dumps(document))
    assert made.encode("a<think>") == [97, 256] and made.special_tokens == {} and made.decode([256]) == "<think>"


def test_threads_do_not_disturb_each_other():
    made, wrong = Tokenizer.make("bpe", "ab", vocab_size=258), []

    def encode(special):
        for _ in range(300):
            if (made.eot in made.encode("a<|endoftext|>b" * 20, special)) is not special:
                wrong.append(special)

    threads = [threading.Thread(target=encode, args=(n % 2 == 0,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- a model with more ids than its tokenizer


def test_ids_that_the_tokenizer_lacks_are_never_generated():
    model = model_with(Tokenizer.make("byte"))
    model.params["wte"][256:] = 50 * np.sign(model.params["lnfb"] + 1)  # by far the likeliest
    model.params["lnfb"][...] = 5
    assert model.known_ids == 256
    plain = gpt2c.create("gpt2", vocab_size=300, **CONFIG)
    plain.params.flat[...] = model.params.flat
    assert min(gpt2c.generate(plain, [1], 3, temperature=0)) >= 256
    for temperature in (0, 1.5):
        assert max(gpt2c.generate(model, [1], 3, temperature, repetition_penalty=1.5)) < 256
        assert max(max(ids) for ids in gpt2c.generate_batch(model, [[1], [2]], 3, temperature)) < 256
    assert max(beam_search(model, [1], 3)) < 256
    with pytest.raises(UsageError, match="expected 0 to 255"):
        list(gpt2c.generate(model, [256], 1))


def test_ids_that_the_tokenizer_lacks_are_no_targets():
    model = model_with(Tokenizer.make("byte"))
    model.forward([[256, 299]], [[255, -1]])
    with pytest.raises(UsageError, match="targets hold ids from 3 to 256, expected -1 to 255"):
        model.forward([[1, 2]], [[3, 256]])
    with pytest.raises(UsageError, match="inputs hold ids from 1 to 300, expected 0 to 299"):
        model.forward([[1, 300]], [[3, 4]])


# ---- vocabularies without some bytes, as SmolLM2's


def test_a_vocabulary_that_lacks_bytes_encodes_what_it_has():
    document = json.loads(Tokenizer.make("bpe", "ab ab é", vocab_size=262).to_json())
    vocab = document["model"]["vocab"]
    lacking = [visible(bytes([byte])) for byte in (4, 0xF1, 0xC0)]
    kept = [token for token in vocab if token not in lacking]
    document["model"]["vocab"] = {token: id for id, token in enumerate(kept)}
    document["added_tokens"][0]["id"] = len(kept)
    made = Tokenizer.from_document(document)
    for again in (made, Tokenizer.from_json(made.to_json())):
        for text in ("ab ab é", "日\x05🙂", ""):
            assert again.decode(again.encode(text)) == text
        assert len(again.encode("ab ab")) < 5 and again.encode("<|endoftext|>", special=True) == [again.eot]
        for text in ("a\x04b", "a\U00040000"):
            with pytest.raises(TokenizationError, match="at offset 1 of the text is not in the vocabulary"):
                again.encode(text)
