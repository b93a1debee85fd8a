"""Text to token ids and back: one class for characters, bytes, words, byte-level BPE and GPT-2's vocabulary.

Tokenizers are kept as tokenizer.json, the file of the `tokenizers` library, which gives the same ids and the same text
back. The library encodes, except for characters and bytes, where a table is faster; it is imported when first needed.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, count, pairwise, takewhile
from pathlib import Path
from typing import Any, Self

import numpy as np

from gpt2c.errors import InputError, TokenizationError, UsageError
from gpt2c.support.files import StrPath, atomic_write, find_file, open_input
from gpt2c.tokenizers import byte_list
from gpt2c.tokenizers import llmc as llmc_tokenizer
from gpt2c.tokenizers.byte_level import BYTES, of_piece, raw, recover_merges, utf8, visible
from gpt2c.tokenizers.refusals import library_of, refusals
from gpt2c.tokenizers.streaming import TextStream

KINDS = ("char", "byte", "word", "bpe", "gpt2")
GPT2_FILE = "gpt2_tokenizer.bin"
# The SHA-256 of GPT-2's tokens with a zero byte between them.
GPT2_DIGEST = "80fc72dae333882a37b202858853685b0232e9dd624396c1024fb93536a62a83"
ENCODING = threading.Lock()  # whether special tokens are looked for is a state of the library's object
PIECE_CHARACTERS = 1 << 15  # characters; large texts are encoded in pieces, on all cores


class Tokenizer:
    """A vocabulary: `tokens[id]` is the bytes of each id, `eot` the id that ends a text, `bos` begins one; None: has none.

    `adds_bos`: the model wants `bos` before a text. `ends`: the ids that end what a model writes, the first of them a turn.
    `chat_template`: the Jinja template by which `chat` writes conversations; "": there is none.

    Made directly, it is a byte-level BPE whose ids are merge ranks; 256 bytes alone are a byte tokenizer.
    """

    def __init__(self, tokens: Iterable[bytes], eot: int | None = None) -> None:
        self.tokens = list(tokens)
        self.eot = eot
        self.bos: int | None = None
        self.ends = [] if eot is None else [eot]
        self.adds_bos = False
        self.chat_template = ""
        if eot is not None and not 0 <= eot < len(self.tokens):
            raise TokenizationError(f"the end-of-text id is {eot}; expected one below the {len(self.tokens)} tokens")
        self._specials = set() if eot is None else {eot}
        self._byte_level = True
        self._split_as_gpt2 = True
        self._joined = True  # decoding is joining the tokens
        self._before = b""  # which encoding puts before a text, and decoding leaves out

    def __repr__(self) -> str:
        ends = "".join(f", {name} {id}" for name, id in (("begin", self.bos), ("end", self.eot)) if id is not None)
        return f"<gpt2c.Tokenizer {self.kind}: {self.vocab_size:,} tokens{ends}>"

    @classmethod
    def make(cls, kind: str, text: str | Iterable[str] | None = None, **options: Any) -> Self:
        """A new vocabulary of one of the KINDS from a text, or from an iterable of texts, which is read once.

        char: unk=False, specials=(). byte: specials=(). word: vocab_size=50_000, min_frequency=1, specials=("</s>",).
        bpe: vocab_size=512, min_frequency=2, specials=("<|endoftext|>",), progress=False. gpt2: path, or folders to
        look for gpt2_tokenizer.bin in before the current one and data/. byte and gpt2 need no text.
        """
        from gpt2c.tokenizers import vocabularies

        if kind not in KINDS:
            raise UsageError(f"there is no tokenizer {kind!r}; expected one of {', '.join(KINDS)}")
        if kind == "gpt2":
            return cls._gpt2(**options)
        if kind == "byte":
            return cls.around(vocabularies.make_byte(**options))
        if text is None:
            raise UsageError(f"a {kind} tokenizer is made from a text; name one")
        makers: dict[str, Callable[..., Any]] = {
            "char": vocabularies.make_char,
            "word": vocabularies.make_word,
            "bpe": vocabularies.make_bpe,
        }
        return cls.around(makers[kind]([text] if isinstance(text, str) else text, **options))

    @classmethod
    def _gpt2(cls, path=None, folders=()):
        path = path or find_file(GPT2_FILE, *folders)
        if path is None:
            raise TokenizationError(
                "there is no gpt2_tokenizer.bin here or in data/; run downloaddataset.sh --only gpt2_tokenizer.bin"
            )
        made = cls.load(path)
        if made.kind != "gpt2":
            raise TokenizationError(
                f"{path} has a vocabulary of {made.vocab_size} tokens that is not GPT-2's; fetch it again "
                "with downloaddataset.sh --only gpt2_tokenizer.bin"
            )
        return made

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read a tokenizer.json, or the tokenizer of llm.c, rnn-rust, randyGPT or GRUfinity; the content says which, not the
        name."""
        with open_input(path) as file:
            header = file.read(llmc_tokenizer.HEADER_BYTES)
            if llmc_tokenizer.is_llmc(header):
                return cls(*llmc_tokenizer.read(file, header, path))
            if byte_list.is_list(header):
                byte_list.check(header + file.read(byte_list.LONGEST), path)
                return cls.make("byte")
            if not header.lstrip().startswith(b"{"):
                raise TokenizationError(
                    f"{path} begins with the bytes {header[:4].hex(' ')}; expected the magic "
                    f"{llmc_tokenizer.MAGIC} of llm.c's tokenizer or a tokenizer.json"
                )
            try:
                document = json.loads((header + file.read()).decode())
            except UnicodeDecodeError:
                raise TokenizationError(f"{path} has bytes that are not UTF-8; expected a tokenizer.json") from None
            except (ValueError, RecursionError) as error:
                raise TokenizationError(f"{path} is not a JSON file: {error}") from None
        from gpt2c.tokenizers import foreign as foreign_tokenizers

        return cls.around(foreign_tokenizers.read(document) or library_of(document))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From a tokenizer.json; a vocabulary that is none of the KINDS encodes and decodes as the library does."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TokenizationError(f"the tokenizer is not JSON: {error}") from None
        return cls.from_document(document)

    @classmethod
    def from_document(cls, document: Any) -> Self:
        """From a tokenizer.json that was parsed."""
        return cls.around(library_of(document))

    @classmethod
    def around(cls, library: Any, strings: Sequence[str] = ()) -> Self:
        """From an object of the `tokenizers` library. `strings`: its tokens by id, where they are at hand."""
        from tokenizers import decoders, models

        from gpt2c.tokenizers.vocabularies import BOS_NAMES, EOT_NAMES, find_special, is_split_as_gpt2, joins_pieces

        strings = strings or list(takewhile(lambda s: s is not None, map(library.id_to_token, count())))
        if len(strings) < (n := library.get_vocab_size()):
            raise TokenizationError(f"this tokenizer.json has {n} tokens but no id {len(strings)}; expected the ids 0 to {n - 1}")
        byte_level = isinstance(library.decoder, decoders.ByteLevel)
        specials = {t.content: i for i, t in library.get_added_tokens_decoder().items() if t.special}
        pieces, spaced = joins_pieces(library)
        made = cls(map(raw if byte_level else of_piece if pieces else str.encode, strings))
        made._specials = set(specials.values())
        made._byte_level = byte_level
        made._split_as_gpt2 = is_split_as_gpt2(library)
        made._joined = pieces or isinstance(library.decoder, decoders.ByteLevel | decoders.Fuse)
        made._before = b" " if spaced else b""
        made.bos = find_special(specials, BOS_NAMES)
        made.eot = find_special(specials, EOT_NAMES)
        unknown = getattr(library.model, "unk_token", None)
        others = [i for text, i in specials.items() if text != unknown and i != made.bos]
        if made.eot is None and len(others) == 1:
            made.eot = others[0]
        made.ends = [] if made.eot is None else [made.eot]
        model = library.model
        encodes = isinstance(model, models.BPE) or not isinstance(model, models.Unigram) and set(BYTES) <= set(made.tokens)
        if encodes or not byte_level:
            made._library = library
        return made

    @cached_property
    def _library(self):
        """The `tokenizers` library's object that encodes; InputError where the vocabulary only decodes."""
        from tokenizers import models

        merges = recover_merges(self.tokens, self.eot)
        return self._with_eot(models.BPE({visible(t): i for i, t in enumerate(self.tokens)}, merges))

    def _with_eot(self, model):
        """The library's object for a byte-level model that has the end-of-text token in its vocabulary."""
        from tokenizers import AddedToken

        from gpt2c.tokenizers.vocabularies import over_bytes

        library = over_bytes(model)
        if self.eot is not None:
            library.add_special_tokens([AddedToken(visible(self.tokens[self.eot]), special=True, normalized=False)])
        return library

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def opens(self) -> int | None:
        """The id before each text of a data set, and of a model's own: `bos` where the model wants it, else `eot`."""
        return self.bos if self.adds_bos else self.eot

    @cached_property
    def kind(self) -> str:
        """One of the KINDS; for what is none of them the name of the library's model."""
        if self._byte_level:
            if not self._split_as_gpt2:
                return "bpe"
            if self.tokens[:256] == BYTES and self._specials == set(range(256, self.vocab_size)):
                return "byte"
            return "gpt2" if hashlib.sha256(b"\0".join(self.tokens)).hexdigest() == GPT2_DIGEST else "bpe"
        from tokenizers import models

        from gpt2c.tokenizers import vocabularies

        model = self._library.model
        if isinstance(model, models.WordLevel):
            return "char" if vocabularies.is_split_by(self._library, vocabularies.CHARACTERS) else "word"
        return type(model).__name__.lower()

    def to_json(self) -> str:
        """A tokenizer.json that the tokenizers library loads and that gives the same ids."""
        from tokenizers import models

        try:
            return self._library.to_str()
        except InputError:  # decodes only: written as a Unigram, whose list may hold a token twice
            return self._with_eot(models.Unigram([(visible(t), 0.0) for t in self.tokens])).to_str()

    def save(self, path: StrPath) -> None:
        """Write a tokenizer.json, or a list of the bytes where there are only these and the name ends in .txt."""
        plain = Path(path).suffix == ".txt" and self.kind == "byte" and self.vocab_size == 256
        text = byte_list.TEXT if plain else self.to_json()
        with atomic_write(path) as file:
            file.write(text.encode())

    def save_bin(self, path: StrPath) -> None:
        """Write llm.c's tokenizer file, version 2: the tokens alone, without merges."""
        if not self._byte_level or self.eot is None:
            lacks = "an end-of-text id" if self._byte_level else "byte-level tokens"
            raise UsageError(f"llm.c's tokenizer file needs {lacks}, which this tokenizer has not; write a tokenizer.json")
        llmc_tokenizer.write(path, self.tokens, self.eot)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """{text: id}"""
        return {t.content: id for id, t in self._library.get_added_tokens_decoder().items() if t.special}

    @cached_property
    def special_pattern(self) -> re.Pattern:
        """Finds what spells a special token: the leftmost, and of these the longest."""
        return re.compile("|".join(map(re.escape, sorted(self.special_tokens, key=len, reverse=True))) or "(?!)")

    @cached_property
    def control_ids(self) -> set[int]:
        """The ids that no text has: of all special tokens but one that is for what is unknown alone."""
        unknown = getattr(self._library.model, "unk_token", None)
        ends = {self.bos, self.eot, *self.ends}
        return {id for text, id in self.special_tokens.items() if text != unknown or id in ends}

    def encode(self, text: str, special: bool = False, bos: bool = False, *, allow_special: bool = False) -> list[int]:
        """Text -> list of ids. The text of a special token is plain text unless `special` (or its alias `allow_special`).
        With `bos` the id that begins a text goes before it."""
        ids = self._encode_with_library([text], True)[0] if special or allow_special else self.encode_array(text).tolist()
        if not bos:
            return ids
        if self.bos is None:
            raise UsageError("the tokenizer has no token that begins a text; leave bos out")
        return [self.bos, *ids]

    def prompt(self, text: str) -> list[int]:
        """The ids of a text that a model is to continue; of none, the id that opens one."""
        return self.encode(text, bos=self.adds_bos) if text else [self.opens or 0]

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any) -> list[int]:
        """The ids of a conversation, [{"role": "user", "content": "..."}, ...], as the chat template writes it, and the beginning
        of an answer. Only the template's own text becomes special tokens. `variables`: what else the template knows."""
        from gpt2c.tokenizers.templates import chat_ids

        return chat_ids(self, messages, add_generation_prompt=add_generation_prompt, **variables)

    def encode_array(self, text: str) -> np.ndarray:
        """Text -> int32 array of ids; the text of a special token is plain text."""
        if self.kind == "byte":
            return np.frombuffer(utf8(text), np.uint8).astype(np.int32)
        if self.kind == "char":
            return self._encode_characters(text)
        from gpt2c.tokenizers.vocabularies import cut

        lists = self._encode_with_library(list(cut(text, PIECE_CHARACTERS)) if self._may_cut else [text])
        return np.concatenate([np.array(ids, np.int32) for ids in lists])

    def _encode_characters(self, text):
        ids = self._id_of_code_point[np.frombuffer(utf8(text, "utf-32-le"), "<u4")]
        if ids.min(initial=0) < 0:
            self._refuse(text, int(np.argmax(ids < 0)))
        return ids

    @cached_property
    def _id_of_code_point(self):
        """(0x110000,) int32; -1 where there is no such character and no <unk>."""
        unknown = self._library.token_to_id(self._library.model.unk_token)
        table = np.full(0x110000, -1 if unknown is None else unknown, np.int32)
        for token, id in self._library.get_vocab(with_added_tokens=False).items():
            if len(token) == 1:
                table[ord(token)] = id
        return table

    @cached_property
    def _may_cut(self):
        from gpt2c.tokenizers.vocabularies import WORDS, is_split_by

        return self._split_as_gpt2 or is_split_by(self._library, WORDS)

    def _encode_with_library(self, texts, special=False):
        """The list of ids of each text."""
        library = self._library
        for text in texts:
            utf8(text)
            if lacking := self._lacking(self.special_pattern.sub("", text) if special else text):
                self._refuse(text, min(map(text.index, lacking)))
        try:
            with refusals("the text cannot be encoded"):
                lists = self._ids(texts, special)
        except TokenizationError:
            with refusals("the text cannot be encoded"):
                unknown = next(filter(None, (_unknown(library, text) for text in texts)), "")
            if unknown:
                raise TokenizationError(f"the text cannot be encoded: {unknown}") from None
            raise
        return lists if special or self.control_ids.isdisjoint(chain.from_iterable(lists)) else list(map(self._apart, texts))

    def _ids(self, texts, special=False):
        with ENCODING:
            self._library.encode_special_tokens = not special
            return [e.ids for e in self._library.encode_batch_fast(texts, add_special_tokens=False)]

    def _apart(self, text):
        """The ids of a text with words that are special tokens in the vocabulary: each is cut behind its first character."""
        starts = [found.start() + 1 for found in self.special_pattern.finditer(text)]
        ids = [id for ids in self._ids([text[a:b] for a, b in pairwise([0, *starts, len(text)])]) for id in ids]
        if found := self.control_ids.intersection(ids):
            name = self.tokens[min(found)].decode("utf-8", "replace")
            raise TokenizationError(f"the text has what this vocabulary takes for its special token {name!r}; take it out")
        return ids

    @cached_property
    def _parts(self):
        """The characters or bytes, each as bytes, that a BPE without <unk> has, where the library leaves out all others; else
        None."""
        from tokenizers import models

        from gpt2c.tokenizers.vocabularies import LINES, is_split_by

        model = self._library.model
        if not isinstance(model, models.BPE) or model.unk_token is not None:
            return None
        if self._byte_level:
            return None if not set(BYTES).difference(self.tokens) else {token for token in self.tokens if len(token) == 1}
        return {s for s in self.tokens if len(s.decode(errors="replace")) == 1} if is_split_by(self._library, LINES) else None

    def _lacking(self, text):
        """The characters of a text that the library would leave out."""
        if self._parts is None:
            return set()
        every = {c: [bytes([b]) for b in c.encode()] if self._byte_level else [c.encode()] for c in set(text)}
        return {c for c, parts in every.items() if not self._parts.issuperset(parts)}

    def _refuse(self, text, at):
        raise TokenizationError(
            f"the character {text[at]!r} at offset {at} of the text is not in the vocabulary of this "
            "tokenizer; leave it out, or, for a model of your own, make a tokenizer from text that has it, or with <unk>"
        )

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UsageError(f"{i} is not an id of this tokenizer, which has 0 to {self.vocab_size - 1}")
        if self._joined:
            return b"".join([self.tokens[i] for i in ids]).removeprefix(self._before)
        with refusals("the ids cannot be decoded"):
            return self._library.decode(ids, skip_special_tokens=False).encode()

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A decoder for ids that arrive one at a time, after these, whose text is there already."""
        return TextStream(self, after)


def _unknown(library, text):
    """Names the first piece of the text that a vocabulary of words or characters lacks; "" if none."""
    pieces = library.pre_tokenizer.pre_tokenize_str(text) if library.pre_tokenizer else [(text, None)]
    return next((f"{p!r} is not in the vocabulary" for p, _ in pieces if library.token_to_id(p) is None), "")
