"""How each kind of vocabulary is made, as an object of the tokenizers library.

The kinds differ in how a text is split before the vocabulary is asked, and in how tokens are joined again; the library
does both, so that a tokenizer.json says all of it. Special tokens come after all others. They are never found in text,
even where the text spells them, because no piece of text has their ids.
"""

import json
import re
import warnings

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from gpt2c.errors import TokenizationError, UsageError
from gpt2c.tokenizers.byte_level import BYTES, utf8, visible

UNK = "<unk>"
EOT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<EOS>", "<eos>", "<|eos|>", "[EOS]")
BOS_NAMES = ("<|bos|>", "<|begin_of_text|>", "<s>", "<BOS>", "<bos>", "[BOS]")

CHARACTERS = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
PIECES = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
LINES = pre_tokenizers.Split("\n", "isolated")
WORDS = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")])

# Which of the spaces between words do not belong: each is decided by the token after it and the two before it, which is
# what a TextStream keeps.
_NO_SPACE = "|".join(
    [
        r"\A ",  # at the start
        r" (?=[.,!?;:%)\]}…”’/_-])",  # before closing punctuation
        r"(?<=[(\[{“‘$#@/_-]) ",  # after opening punctuation
        r"(?<=\w) (?=')",  # word'
        r"(?<=\w ['’]) (?=(?:s|t|d|m|ll|re|ve)\b)",  # it's, they'll
        r"(?<!\w ')(?<=') ",  # an apostrophe that opens
        r"(?<=\d [.:]) (?=\d)",  # 3.14
    ]
)
_BEFORE_SPACE = re.compile(r"\S(?=[ \n])")


def make_char(texts, unk=False, specials=()):
    """The characters of the texts in order of code point; with `unk`, <unk> for every other one."""
    found = set()
    for text in _checked(texts):
        found.update(text)
    return with_specials(over_characters([*sorted(found), *[UNK] * unk]), specials)


def over_characters(strings):
    """The library's object for these characters, by id; <unk> may be among them."""
    library = Tokenizer(models.WordLevel({s: i for i, s in enumerate(strings)}, UNK))
    library.pre_tokenizer = CHARACTERS
    library.decoder = decoders.Fuse()
    return library


def make_byte(specials=()):
    """The 256 bytes; each is its own id."""
    return with_specials(over_bytes(models.BPE({visible(b): i for i, b in enumerate(BYTES)}, [])), specials)


def make_word(texts, vocab_size=50_000, min_frequency=1, specials=("</s>",)):
    """<unk> and the most frequent words, in the order of their code points where equally frequent; every punctuation
    mark is a word of its own."""
    if vocab_size < 2 + len(specials):
        raise UsageError(f"a vocabulary of {vocab_size} has no room for a word; raise the size")
    library = Tokenizer(models.WordLevel({UNK: 0}, UNK))
    library.pre_tokenizer = WORDS
    library.decoder = decoders.Sequence(
        [decoders.Replace(Regex(r"\A"), " "), decoders.Fuse(), decoders.Replace(Regex(_NO_SPACE), "")]
    )
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size - len(specials), min_frequency=min_frequency, special_tokens=[UNK], show_progress=False
    )
    library.train_from_iterator(_checked(texts), trainer)
    if library.get_vocab_size() == 1:
        raise TokenizationError(
            f"no word is in the text {min_frequency:,} times or more; name a longer text, or lower the frequency"
        )
    return with_specials(library, specials)


def make_bpe(texts, vocab_size=512, min_frequency=2, specials=("<|endoftext|>",), progress=False):
    """The 256 bytes, then merges of the most frequent pairs, first those of lower ids where equally frequent."""
    least = 256 + len(specials)
    if vocab_size <= least:
        warnings.warn(
            f"a vocabulary of {vocab_size} has no room for a merge: the bytes and special tokens alone are {least}; "
            "raise the size",
            stacklevel=3,
        )
    library = over_bytes(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab_size, least) - len(specials),
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress,
    )
    library.train_from_iterator(_checked(texts), trainer)
    return with_specials(library, specials)


def over_bytes(model, use_regex=True):
    """The library's object for a byte-level model; with `use_regex` text is first split as GPT-2 does."""
    library = Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    library.decoder = decoders.ByteLevel()
    return library


def with_specials(library, specials):
    """The library's object with special tokens added behind all others."""
    for special in specials:
        if len(special) < 2 or not (special.isascii() and special.isprintable()):
            raise UsageError(
                f"the special token {special!r} could be taken for text; expected two or more printable "
                "ASCII characters, as in <|bos|>"
            )
        if library.token_to_id(special) is not None:
            raise UsageError(f"the vocabulary already has the token {special!r}; choose another special token, as <|bos|>")
        library.add_special_tokens([AddedToken(special, special=True, normalized=False)])
    return library


def is_split_by(library, pre_tokenizer):
    """Whether the text is split just so, and not changed before, so that shortcuts give what the library gives."""
    return is_plain(library) and _state(library.pre_tokenizer) == _state(pre_tokenizer)


def is_split_as_gpt2(library):
    wanted = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return is_plain(library) and wanted.items() <= _state(library.pre_tokenizer).items()


def is_plain(library):
    """Whether no normalizer changes the text and no token but special ones is looked for in it before it is split."""
    return library.normalizer is None and all(t.special for t in library.get_added_tokens_decoder().values())


def joins_pieces(library):
    """(whether ids are decoded by joining SentencePiece's pieces, whether a space at the beginning is then left out)."""
    steps = _state(library.decoder).get("decoders", [])
    begin = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return steps[:3] == PIECES and steps[3:] in ([], [begin]), steps[3:] == [begin]


def cut(text, size):
    """Pieces of `size` characters and a little more that together are the text and give its tokens.

    Each but the last ends with a character that is no white space and is followed by a space or newline. There GPT-2's
    pattern always splits: no alternative of it goes on from anything else to white space, and none looks back. So does
    splitting at white space. Python's idea of white space has all that Unicode's has.
    """
    start = 0
    while len(text) - start > size and (end := _BEFORE_SPACE.search(text, start + size)):
        yield text[start : end.end()]
        start = end.end()
    yield text[start:]


def find_special(specials, names):
    """The id of the first of these names among the special tokens {text: id}, or None."""
    return next((specials[name] for name in names if name in specials), None)


def _state(part):
    """A part of the library's object as tokenizer.json has it."""
    return json.loads(part.__getstate__()) if part else {}


def _checked(texts):
    """The texts one by one; an error if one is not Unicode or there is nothing in them."""
    some = False
    for text in texts:
        utf8(text)
        some = some or bool(text)
        yield text
    if not some:
        raise TokenizationError("the text to make a vocabulary from is empty; name one that is not")
