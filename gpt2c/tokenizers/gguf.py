"""A tokenizer as GGUF's metadata have it: the tokens of a byte-level BPE in visible form, the kind of each, the merges, how text
is split, by name, and how texts and turns begin and end."""

import json

import numpy as np
from tokenizers import AddedToken, Regex, models, pre_tokenizers

from gpt2c.errors import TokenizationError, UsageError
from gpt2c.tokenizers.conventions import with_conventions
from gpt2c.tokenizers.refusals import refusals
from gpt2c.tokenizers.tokenizer import Tokenizer
from gpt2c.tokenizers.vocabularies import over_bytes

KEY, TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"
ENDS = "eos", "eot", "eom"  # which have an id in KEY: the three at which llama.cpp ends an answer
MORE_ENDS, TEXT_END = "gpt2c.ends", "gpt2c.text_end"  # arrays of ids: ends after those three; the one of a text, if there is one
TURN_ENDS = "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"  # end an answer in llama.cpp, whatever a file says
NORMAL, CONTROL, OF_THE_USER, UNUSED = 1, 3, 4, 5  # kinds of tokens


def _with_digits(digits):
    """Words with the character before them, so many digits together, and line ends after punctuation."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(f"{words}|{digits}|{rest}"), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
SPLITS = {  # how text is split, by the names that llama.cpp has for it
    "gpt-2": GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "qwen2": _with_digits(r"\p{N}"),
    "llama-bpe": _with_digits(r"\p{N}{1,3}"),
}
LLAMA3 = "llama-bpe"  # takes a piece that is a token as it is, whatever the merges; texts begin with BOS if a file says nothing
WITHOUT_MERGES = ["h e"]  # llama.cpp wants at least one merge: one that gives no token of a vocabulary without merges


def read(metadata, rows):
    """(Tokenizer, "") of the metadata of a model with so many rows for tokens; (None, why) where they have none that gpt2c reads.

    Damaged ones are an error. Tokens at the end that are never used are no ids of the Tokenizer.
    """
    model = metadata.get(KEY + "model", "none")
    if model in ("none", "no_vocab"):
        return None, "the file has none"
    if model != "gpt2":
        return None, f"of kind {_short(model)}, which gpt2c does not read: it reads byte-level BPE, kind 'gpt2'"
    split = str(metadata.get(KEY + "pre", "gpt-2"))
    if split not in SPLITS:
        return None, f"splits text as {_short(split)}, which gpt2c does not know: it splits as {', '.join(SPLITS)}"
    tokens, merges = (metadata.get(KEY + name) for name in ("tokens", "merges"))
    if not _are_texts(tokens) or not _are_texts(merges):
        raise TokenizationError("its tokens and merges are not lists of texts")
    kinds = metadata.get(KEY + "token_type", np.full(len(tokens), NORMAL))
    if not isinstance(kinds, np.ndarray) or kinds.dtype.kind not in "iu" or len(kinds) != len(tokens):
        raise TokenizationError(f"its token_type is not the kind of each of {len(tokens):,} tokens")
    if len(tokens) != rows:
        raise TokenizationError(f"it has {len(tokens):,} tokens, and {rows:,} rows for them")
    used = np.flatnonzero(kinds != UNUSED)
    count = int(used[-1]) + 1 if used.size else 0
    tokens = tokens[:count]
    made = Tokenizer.around(_library(tokens, kinds[:count], merges, split), tokens)
    return with_conventions(made, _conventions(metadata, made, split == LLAMA3)), ""


def _library(tokens, kinds, merges, split):
    vocab = dict(zip(tokens, range(len(tokens))))
    if len(vocab) < len(tokens):
        raise TokenizationError(f"its {len(tokens):,} tokens are only {len(vocab):,} different ones")
    known = [(a, b) for a, _, b in (merge.partition(" ") for merge in merges) if a + b in vocab]
    with refusals("its merges do not fit its tokens"):
        library = over_bytes(models.BPE(vocab, known, ignore_merges=split == LLAMA3))
    library.pre_tokenizer = SPLITS[split]
    with refusals("its special tokens cannot be looked for"):
        for special, wanted in (True, CONTROL), (False, OF_THE_USER):
            found = [tokens[id] for id in np.flatnonzero(kinds == wanted)]
            library.add_tokens([AddedToken(text, special=special, normalized=False) for text in found])
    return library


def _conventions(metadata, made, begins):
    """What the metadata say of how texts begin and end; `begins`: whether with BOS, where they do not say. Files of other
    programs name up to three ends and leave others to be known by name."""
    bos, *ends = (_ids(metadata, f"{KEY}{name}_token_id", made.vocab_size) for name in ("bos", *ENDS))
    ends, eot = sum(ends, []), _ids(metadata, TEXT_END, made.vocab_size)
    if TEXT_END in metadata:
        ends += _ids(metadata, MORE_ENDS, made.vocab_size)
    else:
        eot = ends[:1] if made.eot is None else [made.eot]
        ends += [made.special_tokens[name] for name in TURN_ENDS if name in made.special_tokens] + eot
    adds_bos, template = metadata.get(KEY + "add_bos_token", begins and bool(bos)), metadata.get(TEMPLATE, "")
    if not isinstance(adds_bos, bool) or not isinstance(template, str):
        raise TokenizationError("its add_bos_token is no truth value, or its chat template no text")
    if adds_bos and not bos:
        raise TokenizationError("its add_bos_token asks for a token before texts, and no bos_token_id says which")
    ends = list(dict.fromkeys(ends))
    return {"template": template, "bos": next(iter(bos), None), "eot": next(iter(eot), None), "ends": ends, "adds_bos": adds_bos}


def _ids(metadata, key, count):
    """The ids that a key has, one or an array of them; none where it is missing."""
    found = metadata.get(key, [])
    ids = found.tolist() if isinstance(found, np.ndarray) else found if isinstance(found, list) else [found]
    if not all(type(id) is int and 0 <= id < count for id in ids):
        raise TokenizationError(f"its {key} is {_short(found)}, expected an id below its {count:,} tokens")
    return ids


def metadata(tokenizer, vocab_size):
    """(metadata, "") that say this tokenizer; (those of a model without one, why) where GGUF cannot hold it.

    A model may have more rows than its tokenizer has ids: tokens that are never used have the others.
    """
    none = {KEY + "model": "none"}
    if tokenizer is None:
        return none, "the model has no tokenizer"
    document = json.loads(tokenizer.to_json())
    if (split := _split(document)) is None:
        return none, f"its tokenizer, of kind {tokenizer.kind}, is no byte-level BPE that splits text as {' or '.join(SPLITS)}"
    if tokenizer.vocab_size > vocab_size:
        raise UsageError(f"the tokenizer has {tokenizer.vocab_size:,} ids, the model {vocab_size:,}: give it its own")
    tokens = {id: token for token, id in document["model"]["vocab"].items()}
    kinds = np.full(vocab_size, NORMAL, np.int32)
    kinds[tokenizer.vocab_size :] = UNUSED
    for added in document["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else OF_THE_USER
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
    said = {
        KEY + "model": "gpt2",
        KEY + "pre": split,
        KEY + "tokens": [tokens.get(id, f"[PAD{id}]") for id in range(vocab_size)],
        KEY + "token_type": kinds,
        KEY + "merges": merges or WITHOUT_MERGES,
        KEY + "add_bos_token": tokenizer.adds_bos,
        MORE_ENDS: np.array(tokenizer.ends[len(ENDS) :], np.int32),
        TEXT_END: np.array([id for id in [tokenizer.eot] if id is not None], np.int32),
    }
    said |= {f"{KEY}{name}_token_id": id for name, id in zip(ENDS, tokenizer.ends)}
    said |= {KEY + "bos_token_id": tokenizer.bos} if tokenizer.bos is not None else {}
    return said | ({TEMPLATE: tokenizer.chat_template} if tokenizer.chat_template else {}), ""


def _split(document):
    """The name of how the byte-level BPE in a tokenizer.json splits text; None if it is another one, or does more than that.

    Unicode's normal form is no more: no program that reads GGUF has it.
    """
    model, split = document["model"], _plain(document["pre_tokenizer"])
    besides = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if (
        model["type"] != "BPE"
        or any(model.get(name) for name in besides)
        or document["normalizer"] not in (None, {"type": "NFC"})
    ):
        return None
    name = next((name for name, known in SPLITS.items() if _plain(json.loads(known.__getstate__())) == split), None)
    return name if bool(model.get("ignore_merges")) == (name == LLAMA3) else None


def _plain(split):
    """Without what concerns only where tokens lie in a text."""
    if isinstance(split, dict):
        return {key: _plain(value) for key, value in split.items() if key != "trim_offsets"}
    return [_plain(part) for part in split] if isinstance(split, list) else split


def _are_texts(found):
    return isinstance(found, list) and set(map(type, found)) <= {str}


def _short(value):
    return repr(str(value)[:40])
