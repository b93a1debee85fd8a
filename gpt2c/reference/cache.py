"""The oracle of kernels/cache.h: how a KV cache comes to hold numbers. `stored_numbers` says which they are then."""

import numpy as np


def cached(kind, x):
    """x (..., n) float32 as bytes (..., bytes of n numbers)."""
    x = np.ascontiguousarray(x, np.float32)
    if kind == "bf16":
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8)
    if kind == "f16":
        return x.astype(np.float16).view(np.uint8)
    if kind == "f32":
        return x.view(np.uint8)
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    d = abs(blocks).max(-1, keepdims=True, initial=0) / np.float32(127)
    q = blocks * np.divide(1, d, out=np.zeros_like(d), where=d > 0)
    q = np.copysign(np.floor(abs(q) + np.float32(0.5)), q).astype(np.int8)
    both = np.concatenate([d.astype(np.float16).view(np.uint8), q.view(np.uint8)], axis=-1)
    return both.reshape(*x.shape[:-1], -1)
