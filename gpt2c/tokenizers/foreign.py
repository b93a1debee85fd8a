"""The tokenizer files of two other programs, read into objects of the tokenizers library with the same ids.

rnn-rust's tokenizer.json: {"type": "BPE", "specialTokens": {text: id}, "merges": [[id, id]], "vocab": [[id, text]]}.
The characters U+0000 to U+00FF of a text are bytes. rnn-rust itself takes é for the byte 0xE9 and 日 for the bytes of its
UTF-8, so that its tokens cannot be told back; here every text is its UTF-8. Text without U+0080 to U+00FF gets its ids.

randyGPT's vocab.json: {"vocab": [text], "merges": [[text, text]]}. The tokens are made of characters, not bytes, within
lines; text with other characters is an error here, where randyGPT leaves them out.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models

from gpt2c.errors import InputError, TokenizationError
from gpt2c.tokenizers.byte_level import visible
from gpt2c.tokenizers.vocabularies import BOS_NAMES, EOT_NAMES, LINES, over_bytes


def read(document):
    """The library's object for a parsed JSON document of one of these programs, or None for any other document."""
    if not isinstance(document, dict) or not isinstance(document.get("vocab"), list):
        return None
    try:
        return _rnn_rust(document) if "specialTokens" in document else _randygpt(document)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever is wrong in it shows in its own way, the library's included
        raise TokenizationError(
            f"the vocabulary is not what rnn-rust or randyGPT writes: {type(error).__name__}: {error}"
        ) from None


def _rnn_rust(document):
    specials = document["specialTokens"]
    texts = dict(document["vocab"])
    strings = {id: text if text in specials else visible(text.encode("latin-1")) for id, text in texts.items()}
    merges = [(strings[a], strings[b]) for a, b in document["merges"]]
    library = over_bytes(_bpe([strings.get(id) for id in range(len(document["vocab"]))], merges), use_regex=False)
    return _with_specials(library, specials)


def _randygpt(document):
    library = Tokenizer(_bpe(document["vocab"], [tuple(pair) for pair in document["merges"]]))
    library.pre_tokenizer = LINES
    library.decoder = decoders.Fuse()
    return _with_specials(library, [name for name in (*BOS_NAMES, *EOT_NAMES) if name in document["vocab"]])


def _bpe(strings, merges):
    vocab = {text: id for id, text in enumerate(strings)}
    if None in vocab or len(vocab) < len(strings):
        raise TokenizationError(
            f"the vocabulary's {len(strings)} ids have {len(vocab) - (None in vocab)} different texts; "
            "expected one text for each id from 0"
        )
    return models.BPE(vocab, merges)


def _with_specials(library, specials):
    library.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return library
