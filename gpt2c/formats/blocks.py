"""How numbers are stored: float32, 16 bits, and GGUF's blocks of small integers with a scale; decoding to float32 and encoding.

A block holds `elements` numbers in `nbytes` bytes; scales are float16, little-endian. q: integers, d: scale, m: minimum.

    f32 f16 bf16   one number
    q8_0           d, 32 x int8                            d q
    q4_0           d, 32 x 4 bits                          d (q - 8)
    q4_1           d, m, 32 x 4 bits                       d q + m
    q5_0           d, 32 fifth bits, 32 x 4 bits           d (q - 16)
    q5_1           d, m, 32 fifth bits, 32 x 4 bits        d q + m
    q4_K q5_K      d, m, 8 scales and 8 minimums of 6 bits, [256 fifth bits,] 256 x 4 bits: (d s) q - (m n)
    q6_K           256 x 4 bits, 256 x 2 bits, 16 x int8, d: (d s) (q - 32)

Four bits: a byte has one element in its lower half and in its upper half another, half a block (K: 32, q6_K: 64) further on.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PIECE = 2**18  # elements that are converted at a time: what is needed in between stays small, and in the cache


class Kind(NamedTuple):
    elements: int  # of a block
    nbytes: int
    decode: Callable[[np.ndarray], np.ndarray]  # (n, nbytes) uint8 -> float32 with n * elements
    encode: Callable[[np.ndarray], np.ndarray] | None = None  # (n, elements) float32 -> bytes of n blocks, as any array


def size(kind, elements):
    """Bytes of so many numbers, whole blocks of them."""
    return elements // KINDS[kind].elements * KINDS[kind].nbytes


def count(kind, nbytes):
    """Numbers in so many bytes, whole blocks of them."""
    return nbytes // KINDS[kind].nbytes * KINDS[kind].elements


def decode(kind, data, out):
    """Whole blocks, flat uint8 -> `out`, flat float32."""
    elements, nbytes, decoded, _ = KINDS[kind]
    blocks, step = data.reshape(-1, nbytes), PIECE // elements
    with np.errstate(invalid="ignore"):  # infinite scales of a file that has them
        for at in range(0, len(blocks), step):
            out[at * elements : (at + step) * elements] = decoded(blocks[at : at + step]).reshape(-1)


def encode(kind, values):
    """Flat float32, whole blocks of it -> their bytes, piece by piece."""
    encoded = KINDS[kind].encode
    for at in range(0, values.size, PIECE):
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            yield encoded(values[at : at + PIECE].reshape(-1, KINDS[kind].elements)).reshape(-1).view(np.uint8)


def fits(kind, values):
    """Whether numbers of this size can be stored so: float16, and a scale that is one, end at 65504, and blocks of integers know
    no infinity."""
    if kind in ("f32", "bf16"):
        return True
    most = {"f16": 1, "q8_0": 127, "q4_0": 8, "q4_1": 1, "q5_0": 16}[kind] * 65504.0
    finite = values if kind != "f16" else values[np.isfinite(values)]
    return not finite.size or bool(max(-float(finite.min()), float(finite.max())) <= most)


def bf16_bits(x):
    """The bf16 numbers nearest to a float32 array, ties to even, as uint16: the upper half of a float32."""
    bits = x.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded).astype(np.uint16)  # rounding could lose a NaN


# ---- decoding: b is (n, nbytes) uint8


def _half(b, at):
    """The float16 at this byte of each block, (n, 1) float32."""
    return np.ascontiguousarray(b[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(q):
    """(..., m) bytes -> (..., 2, m): lower halves, then upper ones."""
    return np.stack([q & 15, q >> 4], -2)


def _four_bits(b, at):
    return _nibbles(b[:, at:]).reshape(-1, 32)


def _five_bits(b, at):
    return _four_bits(b, at + 4) | np.unpackbits(b[:, at : at + 4], axis=1, bitorder="little") << 4


def _bf16(b):
    return (b.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q8_0(b):
    return _half(b, 0) * b[:, 2:].view(np.int8)


def _q4_0(b):
    return _half(b, 0) * (_four_bits(b, 2).view(np.int8) - 8)


def _q4_1(b):
    return _half(b, 0) * _four_bits(b, 4) + _half(b, 2)


def _q5_0(b):
    return _half(b, 0) * (_five_bits(b, 2).view(np.int8) - 16)


def _q5_1(b):
    return _half(b, 0) * _five_bits(b, 4) + _half(b, 2)


def _scales(b):
    """d s and m n of the 8 parts of 32 elements, (n, 8, 1) each. Four scales and four minimums lie in the lower six bits of a
    byte each; the others have their lower four bits in the last four bytes and the upper two in those six left."""
    low, other, last = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = np.concatenate([low & 63, last & 15 | low >> 6 << 4], 1)
    minimums = np.concatenate([other & 63, last >> 4 | other >> 6 << 4], 1)
    return (_half(b, 0) * scales)[..., None], (_half(b, 2) * minimums)[..., None]


def _q4_k(b):
    scale, minimum = _scales(b)
    return scale * _nibbles(b[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32) - minimum


def _q5_k(b):
    scale, minimum = _scales(b)
    fifth = b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # bit k of byte l: element l of part k
    return scale * (_nibbles(b[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | fifth << 4) - minimum


def _q6_k(b):
    lower = _nibbles(b[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    upper = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    q = (lower | upper << 4).view(np.int8).reshape(-1, 16, 16) - 32
    return (_half(b, 208) * b[:, 192:208].view(np.int8))[..., None] * q


# ---- encoding: x is (n, elements) float32


def _largest(x):
    """The element of largest magnitude in each block, with its sign."""
    return np.take_along_axis(x, np.abs(x).argmax(1, keepdims=True), 1)


def _inverse(d):
    """1 / d; 0 where that is more than a float32 holds, and where all of the block is 0."""
    inverse = 1 / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _joined(*parts):
    """Blocks of these parts, (n, m) each."""
    return np.concatenate([part.view(np.uint8) for part in parts], 1)


def _halves(d):
    return d.astype("<f2")


def _packed(q):
    """32 x 4 bits."""
    return q[:, :16] & 15 | q[:, 16:] << 4


def _to_q8_0(x):
    d = np.abs(x).max(1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    whole = np.trunc(scaled)
    return _joined(_halves(d), (whole + np.trunc(2 * (scaled - whole))).astype(np.int8))  # to nearest, ties away from 0


def _nearest_from(x, d, half, most):
    """x / d + half in whole numbers from 0 to `most`, half of the range up."""
    return np.clip((x.astype(np.float64) * _inverse(d) + (half + 0.5)).astype(np.float32).astype(np.uint8), 0, most)


def _to_q4_0(x):
    d = _largest(x) / np.float32(-8)
    return _joined(_halves(d), _packed(_nearest_from(x, d, 8, 15)))


def _to_q5_0(x):
    d = _largest(x) / np.float32(-16)
    q = _nearest_from(x, d, 16, 31)
    return _joined(_halves(d), np.packbits(q >> 4, axis=1, bitorder="little"), _packed(q))


def _to_q4_1(x):
    m = x.min(1, keepdims=True)
    d = (x.max(1, keepdims=True) - m) / np.float32(15)
    q = np.clip(((x - m) * _inverse(d) + np.float32(0.5)).astype(np.uint8), 0, 15)
    return _joined(_halves(d), _halves(m), _packed(q))


KINDS = {
    "f32": Kind(1, 4, lambda b: b.view("<f4"), lambda x: x.astype("<f4", copy=False)),
    "f16": Kind(1, 2, lambda b: b.view("<f2"), lambda x: x.astype("<f2")),
    "bf16": Kind(1, 2, _bf16, bf16_bits),
    "q8_0": Kind(32, 34, _q8_0, _to_q8_0),
    "q4_0": Kind(32, 18, _q4_0, _to_q4_0),
    "q4_1": Kind(32, 20, _q4_1, _to_q4_1),
    "q5_0": Kind(32, 22, _q5_0, _to_q5_0),
    "q5_1": Kind(32, 24, _q5_1),
    "q4_K": Kind(256, 144, _q4_k),
    "q5_K": Kind(256, 176, _q5_k),
    "q6_K": Kind(256, 210, _q6_k),
}
WRITTEN = tuple(name for name, kind in KINDS.items() if kind.encode)
