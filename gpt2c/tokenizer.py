"""Text to token ids and back: llm.c's tokenizer file and tokenizer.json, both read and written.

llm.c's file holds 256 int32 (magic, version, n, end-of-text id) and then, for each id, one length byte and
the bytes of the token. It was made for decoding only, but the ids of a byte-level BPE are the ranks of its
merges, so the merges, and with them the encoder, can be recovered from it. The encoder is the `tokenizers`
library's, imported when first needed; decoding what came from llm.c's file does not need it.
"""

import codecs
import os
import struct
from functools import cached_property
from itertools import count, pairwise, takewhile

from gpt2c.errors import InputError, UsageError
from gpt2c.files import atomic_write, open_input

MAGIC = 20240328
HEADER_BYTES = 1024
GPT2_SIZE = 50257  # version 1 is always GPT-2's vocabulary, whose last id is end-of-text
EOT_NAMES = ("<|endoftext|>", "</s>", "<EOS>", "<eos>", "<|eos|>", "[EOS]")

# tokenizer.json writes each byte as one visible character: printable Latin-1 stands for itself, and the other
# 68 bytes, in order, become U+0100 and up. GPT-2's first 256 ids are the bytes in the order of this table.
_PRINTABLE = "".join(map(chr, [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]))
_OTHERS = [b for b in range(256) if chr(b) not in _PRINTABLE]
_CHAR_OF_BYTE = {ord(c): c for c in _PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(_OTHERS)}
_BYTE_OF_CHAR = {c: b for b, c in _CHAR_OF_BYTE.items()}
GPT2_BYTES = [bytes([b]) for b in _CHAR_OF_BYTE]


def visible(token):
    """Bytes -> the string that stands for them in tokenizer.json."""
    return "".join(_CHAR_OF_BYTE[b] for b in token)


def raw(string):
    """The inverse of `visible`; a string with any other character, an added token, is its own UTF-8."""
    try:
        return bytes(_BYTE_OF_CHAR[c] for c in string)
    except KeyError:
        return string.encode()


def recover_merges(tokens, eot):
    """The BPE merges, in order, of a vocabulary whose ids are merge ranks.

    The token of rank r was made by joining two: those that BPE with the lower ranks leaves of its bytes.
    """
    cannot = "this tokenizer can decode but not encode:"
    ranks = {t: r for r, t in enumerate(tokens) if len(t) == 1}
    if len(ranks) < 256:
        missing = next(t for t in sorted(GPT2_BYTES) if t not in ranks)
        raise InputError(f"{cannot} it has no token for the single byte {missing!r}; encoding needs all 256")
    if len(set(tokens)) < len(tokens):
        raise InputError(f"{cannot} some of its ids stand for the same bytes; encoding needs distinct tokens")
    merges = []
    for rank, token in enumerate(tokens):
        if len(token) == 1 or rank == eot:
            continue
        parts = [token[i:i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            best = min(joined)
            if best == rank:
                raise InputError(f"{cannot} its token {rank}, {token!r}, does not join two of lower id; "
                                 "encoding needs ids that are merge ranks")
            i = joined.index(best)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        merges.append((visible(parts[0]), visible(parts[1])))
        ranks[token] = rank
    return merges


class Tokenizer:
    """A vocabulary: `tokens[id]` is the bytes of each id, `eot` the id that ends a text, or None.

    Made directly, it is a byte-level BPE whose ids are merge ranks; 256 bytes alone are a byte tokenizer.
    """

    def __init__(self, tokens, eot=None):
        self.tokens = list(tokens)
        self.eot = eot
        if eot is not None and not 0 <= eot < len(self.tokens):
            raise InputError(f"the end-of-text id is {eot}; expected one below the {len(self.tokens)} tokens")
        self._byte_level = True

    @cached_property
    def _library(self):
        """The `tokenizers` library's object that encodes; InputError where the vocabulary only decodes."""
        from tokenizers import models

        merges = recover_merges(self.tokens, self.eot)
        return self._around(models.BPE({visible(t): i for i, t in enumerate(self.tokens)}, merges))

    def _around(self, model):
        """The library's object for a byte-level `model` with this end-of-text token."""
        from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers

        library = Tokenizer(model)
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        library.decoder = decoders.ByteLevel()
        if self.eot is not None:
            end = visible(self.tokens[self.eot])
            library.add_special_tokens([AddedToken(end, special=True, normalized=False)])
        return library

    @property
    def vocab_size(self):
        return len(self.tokens)

    @classmethod
    def load(cls, path):
        """Read llm.c's tokenizer file or a tokenizer.json; the content says which it is, not the name."""
        with open_input(path) as file:
            header = file.read(HEADER_BYTES)
            if header[:4] == struct.pack("<I", MAGIC):
                return cls(*_read_tokens(file, header, path))
            if not header.lstrip().startswith(b"{"):
                raise InputError(f"{path} begins with the bytes {header[:4].hex(' ')}; expected the magic "
                                 f"{MAGIC} of llm.c's tokenizer or a tokenizer.json")
            try:
                return cls.from_json((header + file.read()).decode())
            except UnicodeDecodeError:
                raise InputError(f"{path} has bytes that are not UTF-8; expected a tokenizer.json") from None

    @classmethod
    def from_json(cls, text):
        """From a tokenizer.json; a vocabulary that is not byte-level decodes as the library does."""
        from tokenizers import Tokenizer, decoders, models

        try:
            library = Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001 - the library raises nothing more special
            raise InputError(f"the tokenizers library refuses this tokenizer.json: {error}") from None
        library.no_truncation()
        library.no_padding()
        strings = list(takewhile(lambda s: s is not None, map(library.id_to_token, count())))
        if len(strings) < (n := library.get_vocab_size()):
            raise InputError(f"this tokenizer.json has {n} tokens but no id {len(strings)}; "
                             f"expected the ids 0 to {n - 1}")
        byte_level = isinstance(library.decoder, decoders.ByteLevel)
        specials = {t.content: i for i, t in library.get_added_tokens_decoder().items() if t.special}
        unknown = getattr(library.model, "unk_token", None)
        made = cls([raw(s) if byte_level else s.encode() for s in strings], _find_eot(specials, unknown))
        made._byte_level = byte_level
        decodes_only = isinstance(library.model, models.Unigram) or not set(GPT2_BYTES) <= set(made.tokens)
        if not (byte_level and decodes_only):
            made._library = library
        return made

    def to_json(self):
        """A tokenizer.json that the tokenizers library loads and that gives the same ids."""
        from tokenizers import models

        try:
            return self._library.to_str()
        except InputError:  # decodes only: written as a Unigram, whose list may hold a token twice
            return self._around(models.Unigram([(visible(t), 0.0) for t in self.tokens])).to_str()

    def save_bin(self, path):
        """Write llm.c's tokenizer file, version 2: the tokens alone, without merges."""
        if not self._byte_level or self.eot is None:
            lacks = "an end-of-text id" if self._byte_level else "byte-level tokens"
            raise UsageError(f"llm.c's tokenizer file needs {lacks}, which this tokenizer has not; "
                             "write a tokenizer.json")
        for i, token in enumerate(self.tokens):
            if not 1 <= len(token) <= 255:
                raise UsageError(f"token {i} has {len(token)} bytes; llm.c's file holds 1 to 255: "
                                 "write a tokenizer.json")
        with atomic_write(path) as file:
            file.write(struct.pack("<4I", MAGIC, 2, self.vocab_size, self.eot).ljust(HEADER_BYTES, b"\0"))
            file.write(b"".join(bytes([len(t)]) + t for t in self.tokens))

    def encode(self, text, allow_special=False):
        """Text -> list of ids. The text of a special token is plain text unless `allow_special`."""
        library = self._library
        library.encode_special_tokens = not allow_special
        try:
            text.encode()
            return library.encode(text, add_special_tokens=False).ids
        except UnicodeEncodeError as error:
            raise InputError(f"the text has half a UTF-16 pair, {text[error.start]!r}, as character "
                             f"{error.start}; expected text that UTF-8 can write") from None
        except Exception as error:  # noqa: BLE001 - the library raises nothing more special
            raise InputError(f"the text cannot be encoded: {_unknown(library, text) or error}") from None

    def decode_bytes(self, ids):
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UsageError(f"{i} is not an id of this tokenizer, which has 0 to {self.vocab_size - 1}")
        if self._byte_level:
            return b"".join([self.tokens[i] for i in ids])
        return self._library.decode(ids, skip_special_tokens=False).encode()

    def decode(self, ids):
        """Ids -> text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream(self):
        """A decoder for ids that arrive one at a time."""
        return Stream(self)


class Stream:
    """Gives the text of each id as it comes and holds back a character until all its bytes are there."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.before = []  # the last id: some vocabularies write a token according to the one before it
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id):
        decode = self.tokenizer.decode_bytes
        new = decode([*self.before, id])[len(decode(self.before)):]
        self.before = [id]
        return self.decoder.decode(new)

    def flush(self):
        """What is left: U+FFFD where the last character is incomplete, else nothing."""
        return self.decoder.decode(b"", final=True)


def _read_tokens(file, header, path):
    """The (tokens, eot) of llm.c's tokenizer file, open behind its header."""
    if len(header) < HEADER_BYTES:
        raise InputError(f"{path} has {len(header)} bytes; expected a tokenizer's header of {HEADER_BYTES}")
    _, version, n, eot = struct.unpack_from("<4I", header)
    if version not in (1, 2):
        raise InputError(f"{path} has tokenizer version {version}; expected 1 or 2")
    if version == 1:
        if n != GPT2_SIZE:
            raise InputError(f"{path} has {n} tokens; a version-1 tokenizer is GPT-2's, with {GPT2_SIZE}")
        eot = n - 1
    body_bytes = os.fstat(file.fileno()).st_size - HEADER_BYTES
    if not 2 * n <= body_bytes <= 256 * n:
        raise InputError(f"{path} has {body_bytes} bytes for {n} tokens; expected 2 to 256 for each")

    tokens = []
    for i in range(n):
        length = int.from_bytes(file.read(1), "little")
        token = file.read(length)
        if not token or len(token) < length:
            raise InputError(f"{path} has {len(token)} bytes for token {i} of {n}; "
                             f"expected {length or '1 to 255'}")
        tokens.append(token)
    if file.read(1):
        raise InputError(f"{path} goes on after the last of its {n} tokens; expected it to end there")
    return tokens, eot


def _find_eot(specials, unknown):
    """The end-of-text id among the special tokens {text: id}: a usual name, or the only one there is."""
    for name in EOT_NAMES:
        if name in specials:
            return specials[name]
    others = [i for text, i in specials.items() if text != unknown]
    return others[0] if len(others) == 1 else None


def _unknown(library, text):
    """Names the first piece of the text that a vocabulary of words or characters lacks; "" if none."""
    pieces = library.pre_tokenizer.pre_tokenize_str(text) if library.pre_tokenizer else [(text, None)]
    return next((f"{p!r} is not in the vocabulary" for p, _ in pieces if library.token_to_id(p) is None), "")
