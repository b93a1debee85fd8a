"""llm.c's tokenizer file: 256 int32 (magic, version, n, end-of-text id), then for each id one length byte and the bytes.

It was made for decoding only, but the ids of a byte-level BPE are the ranks of its merges, so the merges, and with them
the encoder, can be recovered from it (`byte_level.recover_merges`).
"""

import os
import struct

from gpt2c.errors import TokenizationError, UsageError
from gpt2c.support.files import atomic_write

MAGIC = 20240328
HEADER_BYTES = 1024
GPT2_SIZE = 50257  # version 1 is always GPT-2's vocabulary, whose last id is end-of-text


def is_llmc(header):
    return header[:4] == struct.pack("<I", MAGIC)


def read(file, header, path):
    """The (tokens, eot) of a tokenizer file that is open behind its header."""
    if len(header) < HEADER_BYTES:
        raise TokenizationError(f"{path} has {len(header)} bytes; expected a tokenizer's header of {HEADER_BYTES}")
    _, version, n, eot = struct.unpack_from("<4I", header)
    if version not in (1, 2):
        raise TokenizationError(f"{path} has tokenizer version {version}; expected 1 or 2")
    if version == 1:
        if n != GPT2_SIZE:
            raise TokenizationError(f"{path} has {n} tokens; a version-1 tokenizer is GPT-2's, with {GPT2_SIZE}")
        eot = n - 1
    body_bytes = os.fstat(file.fileno()).st_size - HEADER_BYTES
    if not 2 * n <= body_bytes <= 256 * n:
        raise TokenizationError(f"{path} has {body_bytes} bytes for {n} tokens; expected 2 to 256 for each")

    tokens = []
    for i in range(n):
        length = int.from_bytes(file.read(1), "little")
        token = file.read(length)
        if not token or len(token) < length:
            raise TokenizationError(f"{path} has {len(token)} bytes for token {i} of {n}; expected {length or '1 to 255'}")
        tokens.append(token)
    if file.read(1):
        raise TokenizationError(f"{path} goes on after the last of its {n} tokens; expected it to end there")
    return tokens, eot


def write(path, tokens, eot):
    """Version 2: the tokens alone, without merges."""
    for i, token in enumerate(tokens):
        if not 1 <= len(token) <= 255:
            raise UsageError(f"token {i} has {len(token)} bytes; llm.c's file holds 1 to 255: write a tokenizer.json")
    with atomic_write(path) as file:
        file.write(struct.pack("<4I", MAGIC, 2, len(tokens), eot).ljust(HEADER_BYTES, b"\0"))
        file.write(b"".join(bytes([len(t)]) + t for t in tokens))
