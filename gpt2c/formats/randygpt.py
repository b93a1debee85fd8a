"""randyGPT's checkpoints, RGPT0001 to RGPT0003, as arrays under this project's names.

All are little-endian: 8 bytes of magic, u32 vocabulary, iteration and optimizer step, f32 best loss, then float32 arrays
in the order wte, wpe, lm_head and, for each layer, wq, wk, wv, wo, fc1, fc2.

    RGPT0001   the weights; then m and v of wte, wpe and lm_head, each pair together; then those of each layer's matrices
    RGPT0002   the weights alone
    RGPT0003   all weights, then all m, then all v

The files say neither how large the model is nor which characters it knows. The size of a file tells which of randyGPT's
models it can be; the characters come from the text that the model was trained on.
"""

import os
import struct

import numpy as np

from gpt2c.errors import SerializationError
from gpt2c.formats.weights import Weights
from gpt2c.support.files import open_input

HEADER = struct.Struct("<8s3If")
COPIES = {b"RGPT0001": 3, b"RGPT0002": 1, b"RGPT0003": 3}  # of all weights: themselves, m, v
MOST_TOKENS = 2**22

# (channels, heads, layers, positions): the model that the program was written for, then its later presets by name
SHAPES = {
    "default": (128, 8, 6, 64),
    "xs": (116, 4, 3, 256),
    "s": (128, 4, 8, 256),
    "ds": (128, 4, 12, 256),
    "m": (192, 6, 6, 256),
    "deep": (192, 6, 16, 256),
    "l": (256, 8, 6, 256),
    "xl": (384, 8, 8, 256),
}


def is_rgpt(head):
    """Whether a file that begins with these 8 bytes is one of these checkpoints."""
    return head[:8] in COPIES


def read(path):
    """The Weights in a file, of a chargpt, with the moments that it has; its size is checked before anything is allocated."""
    with open_input(path) as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size or not is_rgpt(head):
            raise SerializationError(
                f"{path} begins with {head[:8]!r}, expected a checkpoint of randyGPT: RGPT0001, RGPT0002 or RGPT0003"
            )
        magic, vocab, iteration, step, best_loss = HEADER.unpack(head)
        if not 1 <= vocab <= MOST_TOKENS:
            raise SerializationError(f"{path} declares {vocab} tokens, expected 1 to {MOST_TOKENS}")
        size = os.fstat(file.fileno()).st_size
        shape = next((shape for shape in SHAPES.values() if _file_size(magic, vocab, shape) == size), None)
        if shape is None:
            sizes = ", ".join(f"{_file_size(magic, vocab, s):,} ({name})" for name, s in SHAPES.items())
            raise SerializationError(
                f"{path} has {size:,} bytes; for {vocab} tokens a model of randyGPT takes {sizes}: it is "
                "cut short, or of another size"
            )
        copies = [_empty_tensors(vocab, shape) for _ in range(COPIES[magic])]
        parts = [list(_parts(tensors, shape)) for tensors in copies]  # in the order of the weights
        if magic == b"RGPT0001":
            order = [*parts[0], *(part for pair in zip(*parts[1:]) for part in pair)]
        else:
            order = [part for copy in parts for part in copy]
        for part in order:
            if file.readinto(part) != part.nbytes:
                raise SerializationError(f"{path} became shorter while it was read")
    channels, heads, layers, positions = shape
    config = dict(max_seq_len=positions, vocab_size=vocab, num_layers=layers, num_heads=heads, channels=channels)
    params, moments = copies[0], {}
    for prefix, tensors in zip(("m.", "v."), copies[1:]):
        moments |= {prefix + name: array for name, array in tensors.items()}
    facts = {"iteration": iteration, "step": step, "best_loss": best_loss}  # the last one done, from 0; updates done
    return Weights("chargpt", config, params, moments=moments, form=magic.decode(), facts=facts)


def characters(text):
    """The characters of a model trained on this text, by id: its marks of beginning and end, then the text's, sorted."""
    return ["<", ">", *sorted(set(text) - {"<", ">"})]


def _file_size(magic, vocab, shape):
    C, _, layers, positions = shape
    return HEADER.size + 4 * COPIES[magic] * (C * (2 * vocab + positions) + 12 * layers * C * C)


def _empty_tensors(vocab, shape):
    C, _, L, positions = shape
    shapes = {
        "wte": (vocab, C),
        "wpe": (positions, C),
        "qkvw": (L, 3 * C, C),
        "attprojw": (L, C, C),
        "fcw": (L, 4 * C, C),
        "fcprojw": (L, C, 4 * C),
        "lm_head": (vocab, C),
    }
    return {name: np.empty(shape, "<f4") for name, shape in shapes.items()}


def _parts(tensors, shape):
    """Views of the tensors in the order of the file: wq, wk and wv are the thirds of qkvw."""
    C, _, layers, _ = shape
    yield from (tensors["wte"], tensors["wpe"], tensors["lm_head"])
    for layer in range(layers):
        for third in range(3):
            yield tensors["qkvw"][layer, third * C : (third + 1) * C]
        yield from (tensors[name][layer] for name in ("attprojw", "fcw", "fcprojw"))
