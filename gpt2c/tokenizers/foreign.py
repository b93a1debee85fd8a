"""The tokenizer files of two other programs, read into objects of the tokenizers library with the same ids.

rnn-rust's tokenizer.json: {"type": "BPE", "specialTokens": {text: id}, "merges": [[id, id]], "vocab": [[id, text]]}.
The characters U+0000 to U+00FF of a text are bytes. rnn-rust itself takes é for the byte 0xE9 and 日 for the bytes of its
UTF-8, so that its tokens cannot be told back; here every text is its UTF-8. Text without U+0080 to U+00FF gets its ids.

randyGPT's vocab.json: {"vocab": [text], "merges": [[text, text]]}. The tokens are made of characters, not bytes, within
lines; text with other characters is an error here, where randyGPT leaves them out.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models

from gpt2c.errors import TokenizationError
from gpt2c.tokenizers.byte_level import utf8, visible
from gpt2c.tokenizers.refusals import refusals
from gpt2c.tokenizers.vocabularies import BOS_NAMES, EOT_NAMES, LINES, over_bytes


def read(document):
    """The library's object for a parsed JSON document of one of these programs, or None for any other document."""
    if not isinstance(document, dict) or not isinstance(document.get("vocab"), list):
        return None
    return _rnn_rust(document) if "specialTokens" in document else _randygpt(document)


def _rnn_rust(document):
    specials, vocab, pairs = document["specialTokens"], document["vocab"], document.get("merges")
    _require(isinstance(specials, dict), "specialTokens is no object")
    _require(all(_is_pair(entry, int, str) for entry in vocab), "vocab is no list of [id, text]")
    _require(isinstance(pairs, list) and all(_is_pair(pair, int, int) for pair in pairs), "merges is no list of [id, id]")
    strings = {id: text if text in specials else _visible(text) for id, text in vocab}
    unknown = next((id for pair in pairs for id in pair if id not in strings), None)
    _require(unknown is None, f"merges has the id {unknown}, which vocab has not")
    merges = [(strings[a], strings[b]) for a, b in pairs]
    library = over_bytes(_bpe([strings.get(id) for id in range(len(vocab))], merges), use_regex=False)
    return _with_specials(library, specials)


def _randygpt(document):
    vocab, pairs = document["vocab"], document.get("merges")
    _require(all(isinstance(text, str) for text in vocab), "vocab is no list of texts")
    _require(isinstance(pairs, list) and all(_is_pair(pair, str, str) for pair in pairs), "merges is no list of [text, text]")
    library = Tokenizer(_bpe(vocab, [tuple(pair) for pair in pairs]))
    library.pre_tokenizer = LINES
    library.decoder = decoders.Fuse()
    return _with_specials(library, [name for name in (*BOS_NAMES, *EOT_NAMES) if name in vocab])


def _require(good, otherwise):
    if not good:
        raise TokenizationError(f"the vocabulary is not what rnn-rust or randyGPT writes: {otherwise}")


def _is_pair(entry, first, second):
    return isinstance(entry, list) and [type(part) for part in entry] == [first, second]


def _visible(text):
    """The string that stands for the bytes of one of rnn-rust's texts."""
    other = next((c for c in text if ord(c) > 0xFF), None)
    _require(other is None, f"vocab has the character {other!r}, which stands for no byte")
    return visible(text.encode("latin-1"))


def _bpe(strings, merges):
    vocab = {text: id for id, text in enumerate(strings)}
    if None in vocab or len(vocab) < len(strings):
        raise TokenizationError(
            f"the vocabulary's {len(strings)} ids have {len(vocab) - (None in vocab)} different texts; "
            "expected one text for each id from 0"
        )
    for text in (*strings, *(text for pair in merges for text in pair)):
        utf8(text)
    with refusals("the vocabulary is not what rnn-rust or randyGPT writes"):
        return models.BPE(vocab, merges)


def _with_specials(library, specials):
    for text in specials:
        utf8(text)
    library.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return library
