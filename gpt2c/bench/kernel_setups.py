"""The arrays of a kernel that is measured, its calls, and whether what comes out is right.

A kernel's door says which arrays it takes and in which shapes, so a case is but a size for each letter. What else an array
must be, other than random, follows from its name. What a backward is given from the forward, the forward has stored. Where
the kernel's outputs are large and their rows independent, a sample of them is compared.
"""

import math
from typing import NamedTuple

import numpy as np

from gpt2c._core import DOORS, Stream
from gpt2c.bench.kernel_oracles import UPDATES, expected
from gpt2c.engine.arena import aligned
from gpt2c.errors import Gpt2cError

HALF_UNIT = 2.0**-24  # what rounding to float32 changes at most, relatively

rng = np.random.default_rng(1)


# What kernels of decoding are called where they have one row.
ONE_ROW = {"few_rows_forward": "matmul_one_row", "attention_decode_forward": "attention_one_row"}


class Case(NamedTuple):
    kernel: str
    label: str
    sizes: dict  # by letter, and whole scalars by name
    absent: tuple = ()  # arrays that may be None, and are
    turns: int = 0  # if not 0: one row, of so many arrays in turn that they come from memory, as in decoding
    in_place: tuple = ()  # (output, the input that it is)

    @property
    def title(self):
        return ONE_ROW[self.kernel] if self.turns else self.kernel

    def size(self, letter):
        """Columns of an output (P), unless said, are those that a product fills (N)."""
        return self.sizes["N" if letter == "P" and letter not in self.sizes else letter]

    @property
    def shape(self):
        sizes = [f"{letter}={size}" for letter, size in self.sizes.items()]
        return " ".join(sizes + [f"x{self.turns}"] * (self.turns > 0))

    @property
    def name(self):
        return f"{self.title}-{self.label}"


# Outputs that are read as well: what a backward adds to, and what is updated. Of other backwards all, of other kernels none.
READ = {
    "adamw": ("params", "m", "v"),
    "sgd": ("params", "m"),
    "add_scaled": ("y",),
    "clamp": ("x",),
    "attention_cached_forward": ("kcache", "vcache"),
    "attention_decode_forward": ("kcache", "vcache"),
    "cope_cached_forward": ("kcache", "vcache"),
    "rope": ("x",),
    "scatter": ("x",),
    "crossentropy_backward": (),
    "scan_backward": (),
    "ponder_backward": (),
    "moe_backward": (),
    "gru_backward": (
        "dxr", "dhid_norm", "dtime_decay", "dtime_first", "dmu_k", "dmu_v", "dmu_r", "dmoe_norm"),
}  # fmt: skip

# Scalars that have no default.
SCALARS = {
    "lr": 6e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "decay": 0.1, "bias1": 1 - 0.9**UPDATES, "bias2": 1 - 0.95**UPDATES,
    "step": 1, "last": 2, "threshold": 0.5, "weight": 0.05, "stream": 0, "p": 0.1, "a": 0.3, "limit": 0.5,
}  # fmt: skip

# Arrays that are not just normally distributed: from a shape and the case's sizes.
VALUES = {
    "tokens": lambda shape, n: rng.integers(n["V"], size=shape, dtype=np.int32),
    "targets": lambda shape, n: rng.integers(n.get("V", 1), size=shape, dtype=np.int32),
    "chosen": lambda shape, n: np.tile(np.arange(shape[-1], dtype=np.int32), (*shape[:-1], 1)),
    "pos": lambda shape, n: np.full(shape, n["S"] - n.get("T", 1), np.int32),  # the last there is room for
    "slot": lambda shape, n: np.arange(shape[0], dtype=np.int32),
    "rotations": lambda shape, n: rotations(*shape),
    "noise": lambda shape, n: np.array([1, 2], np.int32),  # seed and counter
    "depth": lambda shape, n: rng.integers(1, 3, size=shape).astype(np.float32),
    "count": lambda shape, n: np.full(shape, n["R"], np.float32),
    "total": lambda shape, n: uniform(*shape),
    "probs": lambda shape, n: uniform(*shape),
    "den0": lambda shape, n: uniform(*shape),
    "h0": lambda shape, n: uniform(*shape),
    "v": lambda shape, n: uniform(*shape),
}
DECAYS = ("scan_forward", "scan_backward")  # their `a`

# The roundings behind an element of what a kernel stores: the length of its sum, or what leads to it. Of other kernels 32.
ROUNDINGS = {
    "matmul_forward": lambda C, **_: C,
    "few_rows_forward": lambda C, **_: C,
    "few_rows_pair_forward": lambda C, **_: C,
    "matmul_backward_x": lambda N, **_: N,
    "matmul_backward_w": lambda R, **_: R,
    "attention_forward": lambda T, D, **_: T + D,
    "attention_backward": lambda T, D, H, K, **_: T * H // K + D,
    "attention_materialised_forward": lambda T, D, **_: T + D,
    "attention_materialised_backward": lambda T, D, H, K, **_: T * H // K + D,
    "attention_cached_forward": lambda S, D, **_: S + D,
    "attention_decode_forward": lambda S, D, **_: S + D,
    "cope_forward": lambda T, D, M, **_: T * M + D,  # T gates add up to a position, whose unit is as many as M
    "cope_backward": lambda T, D, M, **_: T * M + D,
    "cope_cached_forward": lambda S, D, M, **_: S * M + D,
    "layernorm_forward": lambda C, **_: C,
    "layernorm_backward": lambda R, C, **_: max(R, C),
    "rmsnorm_forward": lambda C, **_: C,
    "rmsnorm_backward": lambda R, C, **_: max(R, C),
    "head_norm_forward": lambda D, **_: D,
    "head_norm_backward": lambda R, N, D, **_: max(R * N, D),
    "dyt_backward": lambda R, C, **_: R * C,
    "scaled_residual_backward": lambda R, C, **_: R * C,
    "halting_forward": lambda C, **_: C,
    "halting_backward": lambda R, C, **_: R + C,
    "crossentropy_forward": lambda V, **_: V,
    "crossentropy_backward": lambda V, **_: V,
    "embedding_backward": lambda B, T, **_: B * T,
    "global_norm": lambda **_: 1 << 14,  # longer parts are summed in float64
    "moe_forward": lambda H, **_: 6 * H,
    "moe_backward": lambda H, **_: 9 * H,
    "moe_backward_w": lambda B, T, **_: B * T,
    "gru_forward": lambda T, H, **_: T * H,
    "gru_backward": lambda T, H, **_: T * H,
}

# Where not all of an array is touched: how many elements are read and written.
PARTS = {
    ("embedding_forward", "wte"): lambda B, T, C, **_: B * T * C,
    ("repack", "blocks"): lambda N, C, **_: N * C,
    ("embedding_backward", "dwte"): lambda B, T, C, **_: 2 * B * T * C,
    **{
        (f"attention_{way}_forward", cache): lambda B, S, K, D, **_: B * S * K * D
        for way in ("cached", "decode")
        for cache in ("kcache", "vcache")
    },
    **{("cope_cached_forward", cache): lambda B, S, C, **_: B * S * C for cache in ("kcache", "vcache")},
    **{(kernel, "x"): lambda B, C, **_: B * C for kernel in ("gather", "scatter")},
    ("rope", "x"): lambda B, T, N, D, **_: 2 * B * T * N * D,
}


def outputs(kernel):
    return [name for name, _, _, _, writable in DOORS[kernel].arrays if writable]


def inputs(kernel):
    return [name for name, _, _, _, writable in DOORS[kernel].arrays if not writable]


def constant(value, *shape):
    array = aligned(*shape)
    array.fill(value)
    return array


def uniform(*shape):
    return rng.random(out=constant(0, *shape), dtype=np.float32)


def rotations(*shape):
    """Cosines and sines of any angles."""
    cosines = rng.random((shape[0], shape[2]))
    both = constant(0, *shape)
    both[...] = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)
    return both


def normal(*shape):
    return rng.standard_normal(out=constant(0, *shape), dtype=np.float32)


def numpy_matmul_forward(out, x, w, b):
    np.matmul(x, w.T, out=out)
    if b is not None:
        np.add(out, b, out=out)


def numpy_matmul_backward_x(dx, dout, w):
    np.add(dx, dout @ w, out=dx)


def numpy_matmul_backward_w(dw, db, dout, x):
    np.add(dw, dout.T @ x, out=dw)
    if db is not None:
        np.add(db, dout.sum(axis=0), out=db)


# The same on the same arrays.
NUMPY = {
    "matmul_forward": numpy_matmul_forward,
    "few_rows_forward": numpy_matmul_forward,
    "matmul_backward_x": numpy_matmul_backward_x,
    "matmul_backward_w": numpy_matmul_backward_w,
}


def reads(kernel, output):
    return output in READ[kernel] if kernel in READ else "_backward" in kernel


def shape_of(case, dims):
    return tuple(dim if isinstance(dim, int) else dim[0] * case.size(dim[1]) for dim in dims)


def moved(case):
    """Bytes to and from memory: 4 for an element that must be read and 4 where it must be written, whatever caches do."""
    total = 0
    for name, _, dims, _, writable in DOORS[case.kernel].arrays:
        if part := PARTS.get((case.kernel, name)):
            total += part(**case.sizes)
        elif name not in case.absent:
            total += math.prod(shape_of(case, dims)) * (1 + (writable and reads(case.kernel, name)))
    return 4 * total * max(case.turns, 1)


def filled(case, kernel, array):
    """An array as it is before a call."""
    name, _, dims, dtype, writable = array
    shape = shape_of(case, dims)
    if dtype == "u8":  # a KV cache or rows of a file, in float32
        return normal(*shape[:-1], shape[-1] // 4).view(np.uint8)
    if writable and not reads(kernel, name):  # what is not written shows
        return np.full(shape, -1, np.int32) if dtype == "i32" else constant(np.nan, *shape)
    if writable and "_backward" in kernel and name != "dtotal":
        return constant(0, *shape)
    if name == "a" and kernel in DECAYS:
        return uniform(*shape)
    if name in VALUES:
        return VALUES[name](shape, case.sizes)
    values = normal(*shape)
    if not {(1, "R"), (1, "B")} & set(dims):  # weights: what comes out is about as large as what went in
        values /= math.sqrt(shape[-1])
    if name == "params":  # so small that an error in the update shows beside it
        values *= 0.02
    return values


def arrays_of(case, kernel, given):
    """name -> array, of a door's arrays those that are not given"""
    missing = {array[0]: array for array in DOORS[kernel].arrays if array[0] not in given}
    return {name: None if name in case.absent else filled(case, kernel, array) for name, array in missing.items()}


def scalars_of(case, kernel):
    return {
        name: case.sizes.get(name, SCALARS[name] if default is None and name in SCALARS else default)
        for name, _, default in DOORS[kernel].scalars
    }


def made(case):
    """-> name -> array, of the kernel's arrays and of those that its forward had"""
    forward = case.kernel.partition("_backward")[0] + "_forward"
    given = {}
    if forward != case.kernel and forward in DOORS and set(outputs(forward)) & set(inputs(case.kernel)):
        given = arrays_of(case, forward, {})
        getattr(Stream(), forward)(**given, **scalars_of(case, forward))
    given |= arrays_of(case, case.kernel, given)
    for output, source in case.in_place:
        given[output] = given[source]
    return given


class Sample:
    """Of arrays whose first size the outputs share, and with it independent rows: some of these. Of others all."""

    def __init__(self, case):
        self.dims = {name: dims for name, _, dims, _, _ in DOORS[case.kernel].arrays}
        first = {self.dims[name][0] for name in outputs(case.kernel) if name not in case.absent}
        self.dim, self.rows = None, None
        if len(first) == 1 and not isinstance(*first, int) and not case.kernel.startswith("dropout"):  # a mask is of all
            (self.dim,) = first
            sizes = [dims for dims in self.dims.values() if self.dim in dims]
            most = 1 if self.dim == (1, "B") else 1 << 14 if all(len(dims) == 1 for dims in sizes) else 16
            self.rows = np.unique(np.linspace(case.sizes[self.dim[1]] - 1, 0, most).astype(int))

    def of(self, name, array):
        """A copy of what is looked at."""
        if array is None:
            return None
        if array.dtype == np.uint8:
            array = array.view(np.float32)
        dims = self.dims.get(name, ())
        if dims == [1]:
            return array.item()
        return array.take(self.rows, dims.index(self.dim)) if self.dim in dims else array.copy()

    def sizes(self, case):
        return case.sizes if self.dim is None else case.sizes | {self.dim[1]: len(self.rows)}


class Subject(NamedTuple):
    arrays: dict  # by name
    want: list  # of each output what the sample should be

    def call(self, case):
        """The arrays that the kernel itself takes."""
        return {name: self.arrays[name] for name in outputs(case.kernel) + inputs(case.kernel)}

    def verify(self, case):
        """An error if what the kernel stored is not right."""
        sample = Sample(case)
        roundings = ROUNDINGS.get(case.kernel, lambda **_: 32)(**case.sizes)
        allowed = 4 * HALF_UNIT * math.sqrt(roundings)  # independent roundings add up like that; 4 is room for those in terms
        for name, want in zip(outputs(case.kernel), self.want):
            if self.arrays[name] is None:
                continue
            got = np.asarray(sample.of(name, self.arrays[name]))
            error = np.linalg.norm(got.ravel() - np.ravel(want)) / (np.linalg.norm(want) or 1)
            if not error <= allowed:
                raise Gpt2cError(
                    f"{case.name} is wrong by {error:.1e} of its norm in {name}, expected at most {allowed:.1e}: it is not "
                    "timed; please report this with the output of gpt2c.info()"
                )


def set_up(case):
    arrays, sample = made(case), Sample(case)
    arguments = {name: sample.of(name, array) for name, array in arrays.items()}
    arguments |= sample.sizes(case) | scalars_of(case, case.kernel)
    return Subject(arrays, list(expected(case.kernel, arguments)))


def prepare(case):
    """(the recorded calls of a case, the same with NumPy or None), once the results are verified."""
    stream, subjects = Stream("record"), [set_up(case) for _ in range(max(case.turns, 1))]
    calls = [subject.call(case) for subject in subjects]
    for call in calls:
        getattr(stream, case.kernel)(**call, **scalars_of(case, case.kernel))
    program = stream.program()
    program.run()
    for subject in subjects:
        subject.verify(case)
    numpy = NUMPY.get(case.kernel)
    return program, numpy and (lambda: [numpy(**call) for call in calls])
