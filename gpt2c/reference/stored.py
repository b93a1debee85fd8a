"""The oracle of kernels/repack.c and stored.h: the numbers in rows of stored blocks, and how those rows lie in memory.

`rows` is (N, bytes of a row), uint8, as in a file; C numbers a row. Scales are float16. Columns of a block: 32, or 256 (K).
"""

from typing import NamedTuple

import numpy as np

GROUP, LINE = 16, 64  # rows that are interleaved; the bytes to a multiple of which a plane is filled up


class Blocks(NamedTuple):
    """What blocks consist of: integers and their scales, (N, blocks, ...)."""

    columns: int
    zero: int  # what a code of 0 stands for, times -1, in the types without m
    codes: np.ndarray  # (N, C), from 0 up
    d: np.ndarray  # float16
    m: np.ndarray | None = None  # float16
    scales: np.ndarray | None = None  # (N, blocks, parts)
    minimums: np.ndarray | None = None


def _halves(b, at):
    return np.ascontiguousarray(b[..., at : at + 2]).view(np.float16)[..., 0]


def _four_bits(q):
    """Two elements in each byte: those in the lower halves come first."""
    return np.concatenate([q & 15, q >> 4], -1)


def _fifth_bits(h):
    return np.unpackbits(h, axis=-1, bitorder="little") << 4


def unpacked(kind, rows):
    """The Blocks of rows."""
    columns, nbytes = {"q8_0": (32, 34), "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24),
                       "q4_K": (256, 144), "q5_K": (256, 176), "q6_K": (256, 210)}[kind]  # fmt: skip
    N, b = len(rows), rows.reshape(len(rows), -1, nbytes)
    m = scales = minimums = None
    d, zero = _halves(b, 0), {"q8_0": 128, "q4_0": 8, "q5_0": 16, "q6_K": 32}.get(kind, 0)
    if kind == "q8_0":
        codes = b[..., 2:] ^ 128
    elif kind in ("q4_0", "q4_1"):
        m = _halves(b, 2) if kind == "q4_1" else None
        codes = _four_bits(b[..., nbytes - 16 :])
    elif kind in ("q5_0", "q5_1"):
        m = _halves(b, 2) if kind == "q5_1" else None
        codes = _four_bits(b[..., nbytes - 16 :]) | _fifth_bits(b[..., nbytes - 20 : nbytes - 16])
    elif kind in ("q4_K", "q5_K"):
        m, s = _halves(b, 2), b[..., 4:16]
        low, middle, last = s[..., :4], s[..., 4:8], s[..., 8:]
        scales = np.concatenate([low & 63, last & 15 | low >> 6 << 4], -1)
        minimums = np.concatenate([middle & 63, last >> 4 | middle >> 6 << 4], -1)
        codes = _four_bits(b[..., nbytes - 128 :].reshape(N, -1, 4, 32))  # (N, blocks, 4, 64): pairs of parts
        if kind == "q5_K":
            bits = np.unpackbits(b[..., 16:48, None], axis=-1, bitorder="little")  # (N, blocks, 32, 8)
            codes = codes | (bits.swapaxes(-1, -2).reshape(codes.shape) << 4)
    else:
        d, scales = _halves(b, 208), b[..., 192:208].view(np.int8)
        lower = _four_bits(b[..., :128].reshape(N, -1, 2, 64))  # (N, blocks, 2, 128)
        upper = b[..., 128:192].reshape(N, -1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
        codes = lower | upper.reshape(lower.shape) << 4
    return Blocks(columns, zero, codes.reshape(N, -1), d, m, scales, minimums)


def scale_and_least(blocks):
    """x = scale * code + least: both for each number, (N, C) float64."""
    scale = blocks.d.astype(np.float64)[..., None]  # (N, blocks, 1)
    least = blocks.m.astype(np.float64)[..., None] if blocks.m is not None else 0 * scale
    if blocks.scales is not None:
        scale = scale * blocks.scales
        least = -least * blocks.minimums if blocks.minimums is not None else 0 * scale
    every = blocks.codes.shape[1] // (scale.shape[1] * scale.shape[2] or 1)  # numbers that share a scale
    scale, least = (np.repeat(a.reshape(len(a), -1), every, axis=1) for a in (scale, least))
    return scale, least - blocks.zero * scale


def stored_numbers(kind, rows):
    """(N, C) float64"""
    if kind in ("f32", "f16"):
        return rows.view(kind.replace("f", "float")).astype(np.float64)
    if kind == "bf16":
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    blocks = unpacked(kind, rows)
    scale, least = scale_and_least(blocks)
    return scale * blocks.codes + least


def repack(kind, rows):
    """The bytes of a matrix as kernels take it (kernels/stored.h)."""
    if kind in ("f32", "f16", "bf16"):
        return rows.reshape(-1)
    blocks = unpacked(kind, np.concatenate([rows, np.zeros((-len(rows) % GROUP, rows.shape[1]), np.uint8)]))
    G = len(blocks.codes) // GROUP
    blocks.codes[len(rows) :] = 0  # what fills up the last group
    steps = blocks.codes.reshape(G, GROUP, -1, 8, 4)  # of four columns each, 8 in a block of 32
    planes = [half.reshape(G, GROUP, -1).swapaxes(1, 2) for half in (blocks.d, blocks.m) if half is not None]
    for part in (blocks.scales, blocks.minimums):
        if part is not None:
            planes.append(part.reshape(G, GROUP, -1).swapaxes(1, 2))
    if kind in ("q5_0", "q5_1", "q5_K"):
        high = ((steps >> 4) << np.arange(8, dtype=np.uint8)[:, None]).sum(3, dtype=np.uint8)
        planes.append(high.swapaxes(1, 2))
    if kind == "q6_K":
        quarters = (steps >> 4).reshape(G, GROUP, -1, 2, 4, 4) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
        planes.append(quarters.sum(4, dtype=np.uint8).transpose(0, 2, 3, 1, 4))
    if kind == "q8_0":
        planes.append(steps.transpose(0, 2, 3, 1, 4))
    else:
        planes.append((steps[..., :4, :] & 15 | steps[..., 4:, :] << 4).transpose(0, 2, 3, 1, 4))
    filled = []
    for plane in planes:
        flat = np.ascontiguousarray(plane).reshape(G, -1).view(np.uint8)
        filled.append(np.pad(flat, ((0, 0), (0, -flat.shape[1] % LINE))))
    return np.concatenate(filled, axis=1).reshape(-1)
