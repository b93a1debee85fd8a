"""Text as bytes: the alphabet of byte-level vocabularies, the pieces of SentencePiece's, and the merges that the order of a
vocabulary implies.

tokenizer.json writes each byte as one visible character: printable Latin-1 stands for itself, and the other 68 bytes, in
order, become U+0100 and up. GPT-2's first 256 ids are the bytes in the order of this table.
"""

import re
from itertools import pairwise

from gpt2c.errors import TokenizationError

_PRINTABLE = "".join(map(chr, [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]))
_OTHERS = [b for b in range(256) if chr(b) not in _PRINTABLE]
_CHAR_OF_BYTE = {ord(c): c for c in _PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(_OTHERS)}


class _Latin(dict):
    """{code point of a visible character: the Latin-1 character whose code is its byte}, for str.translate."""

    def __missing__(self, point):
        return "\uffff"  # which Latin-1 has not


_LATIN = _Latin({ord(c): chr(b) for b, c in _CHAR_OF_BYTE.items()})
GPT2_BYTES = [bytes([b]) for b in _CHAR_OF_BYTE]
BYTES = [bytes([b]) for b in range(256)]
PIECE_OF_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


def visible(token):
    """Bytes -> the string that stands for them in tokenizer.json."""
    return "".join(_CHAR_OF_BYTE[b] for b in token)


def raw(string):
    """The inverse of `visible`; a string with any other character, an added token, is its own UTF-8."""
    try:
        return string.translate(_LATIN).encode("latin-1")
    except UnicodeEncodeError:
        return string.encode()


def of_piece(string):
    """The bytes of a piece as SentencePiece writes it: a space is U+2581, and <0xE9> a byte."""
    if byte := PIECE_OF_BYTE.fullmatch(string):
        return bytes([int(byte[1], 16)])
    return string.replace("▁", " ").encode()


def utf8(text, encoding="utf-8"):
    """The text's bytes in this Unicode encoding."""
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise TokenizationError(
            f"the text has half a UTF-16 pair, {text[error.start]!r}, as character "
            f"{error.start}; expected text that UTF-8 can write"
        ) from None


def recover_merges(tokens, eot):
    """The BPE merges, in order, of a vocabulary whose ids are merge ranks.

    The token of rank r was made by joining two: those that BPE with the lower ranks leaves of its bytes.
    """
    cannot = "this tokenizer can decode but not encode:"
    ranks = {t: r for r, t in enumerate(tokens) if len(t) == 1}
    if len(ranks) < 256:
        missing = next(t for t in BYTES if t not in ranks)
        raise TokenizationError(f"{cannot} it has no token for the single byte {missing!r}; encoding needs all 256")
    if len(set(tokens)) < len(tokens):
        raise TokenizationError(f"{cannot} some of its ids stand for the same bytes; encoding needs distinct tokens")
    merges = []
    for rank, token in enumerate(tokens):
        if len(token) == 1 or rank == eot:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            best = min(joined)
            if best == rank:
                raise TokenizationError(
                    f"{cannot} its token {rank}, {token!r}, does not join two of lower id; "
                    "encoding needs ids that are merge ranks"
                )
            i = joined.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        merges.append((visible(parts[0]), visible(parts[1])))
        ranks[token] = rank
    return merges
