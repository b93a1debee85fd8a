"""Writes blocks.npz: random blocks of each storage type, the numbers that the gguf package (0.19) reads from them, and the blocks
that it makes of random numbers. python tests/golden/make_block_goldens.py, where gguf is installed."""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

SCALES = {  # bytes of a block at which a float16 begins
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}
WRITTEN = "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"
HALVES = [0.0, -0.0, 2.0**-24, -(2.0**-15), 65504, -1, 1 / 3]  # among the random ones


def main():
    rng, found = np.random.default_rng(0), {}
    for name in ("F32", "F16", "BF16", *SCALES):
        kind = GGMLQuantizationType[name]
        elements, nbytes = GGML_QUANT_SIZES[kind]
        rows = 10 if elements == 256 else 24
        numbers = rng.standard_normal((rows, 32)) * 10.0 ** rng.integers(-7, 4, (rows, 1))
        data = rng.integers(0, 256, (rows, nbytes), np.uint8) if name in SCALES else quantize(numbers.astype(np.float32), kind)
        for at in SCALES.get(name, ()):
            halves = (rng.standard_normal(rows) * 10.0 ** rng.integers(-5, 2, rows)).astype(np.float16)
            halves[rng.choice(rows, len(HALVES), replace=False)] = HALVES
            data[:, at : at + 2] = halves[:, None].view(np.uint8)
        data = data.view(np.uint8)
        found[f"{name}/data"], found[f"{name}/read"] = data, dequantize(data, kind)
    numbers = rng.standard_normal((64, 32)).astype(np.float32) * 10.0 ** rng.integers(-9, 5, (64, 1)).astype(np.float32)
    numbers[0] = 0
    numbers[1] = -0.0
    numbers[2:4] = np.arange(32) - 16, 15.5 - np.arange(32)
    numbers[4] = np.where(np.arange(32) == 7, -3, 0)
    numbers[5:7] = np.linspace(-127, 127, 32), np.round(rng.standard_normal(32) * 50) / 2  # ties of q8_0
    numbers[6, 0] = 127
    numbers[7] = 5
    numbers[8:10] = np.tile([1, -1], 16), np.tile([-1, 1], 16)  # two of the largest magnitude
    found["numbers"] = numbers = numbers.astype(np.float32)
    for name in WRITTEN:
        found[f"{name}/written"] = quantize(numbers, GGMLQuantizationType[name]).view(np.uint8)
    np.savez_compressed(Path(__file__).with_name("blocks.npz"), **found)


if __name__ == "__main__":
    main()
