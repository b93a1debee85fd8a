"""llm.c's model and debug-state files, against files packed by hand."""

import itertools
import os
import shutil
import struct
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2c.errors import InputError, ResourceError, UsageError
from gpt2c.formats import llmc
from gpt2c.formats.blocks import bf16_bits

T, V, L, NH, C = 3, 5, 2, 2, 4
FIELDS = ("max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size")
GPT2_124M = dict(zip(FIELDS, (1024, 50257, 12, 12, 768, 50304), strict=True))
LAYERNORM = (2, 3, 8, 9, 14, 15)  # positions of the LayerNorm tensors in a file


def tiny(Vp=8):
    return dict(zip(FIELDS, (T, V, L, NH, C, Vp), strict=True))


def shapes(Vp):
    return [(Vp, C), (T, C), (L, C), (L, C), (L, 3 * C, C), (L, 3 * C), (L, C, C), (L, C), (L, C), (L, C),
            (L, 4 * C, C), (L, 4 * C), (L, C, 4 * C), (L, C), (C,), (C,)]  # fmt: skip


def tensors(Vp, seed=0):
    """One float32 array per tensor. All but the LayerNorm tensors hold numbers that bf16 holds exactly."""
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(-128, 128, shape).astype("f4") / 32 for shape in shapes(Vp)]
    for i in LAYERNORM:
        arrays[i] = rng.standard_normal(arrays[i].shape, dtype="f4")
    arrays[0][V:] = 0
    return arrays


def block(arrays):
    return np.concatenate([a.ravel() for a in arrays])


def upper_halves(array):
    """The bytes of bf16 numbers: bytes 2 and 3 of every little-endian float32."""
    return np.frombuffer(array.astype("<f4").tobytes(), np.uint8).reshape(-1, 4)[:, 2:].tobytes()


def model_file(path, version, arrays):
    Vp = 0 if version <= 2 else len(arrays[0])
    data = struct.pack("<8i", 20240326, version, T, V, L, NH, C, Vp) + bytes(1024 - 32)
    for i, array in enumerate(arrays):
        stored = array[:V] if i == 0 and version <= 2 else array
        half = version == 5 or (version in (2, 4) and i not in LAYERNORM)
        data += upper_halves(stored) if half else stored.astype("<f4").tobytes()
    path.write_bytes(data)
    return path


def debug_file(path, version, x, y, logits, loss, grads):
    data = struct.pack("<4i", 20240327, version, *x.shape) + bytes(1024 - 16)
    data += x.astype("<i4").tobytes() + y.astype("<i4").tobytes() + logits.astype("<f4").tobytes()
    data += struct.pack("<f", loss)
    for i, grad in enumerate(grads):
        data += (grad[:V] if i == 0 and version == 1 else grad).astype("<f4").tobytes()
    path.write_bytes(data)
    return path


def debug_parts():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, V, (2, 2, T))
    return x, y, rng.standard_normal((2, T, V), dtype="f4"), 1.625, tensors(8, seed=2)


@pytest.fixture
def model(tmp_path):
    return model_file(tmp_path / "model.bin", 3, tensors(8))


# ---- shapes and sizes


def test_shapes_and_sizes_of_the_124m_model():
    found = llmc.gpt2_shapes(SimpleNamespace(**GPT2_124M))
    names = "wte wpe ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb lnfw lnfb"
    assert " ".join(found) == names
    assert found == llmc.gpt2_shapes(GPT2_124M)
    assert list(llmc.gpt2_shapes(tiny()).values()) == shapes(8)
    assert sum(np.prod(shape) for shape in found.values()) == 124_475_904

    header = llmc.Header(3, **GPT2_124M)
    assert llmc.model_bytes(header) == 497_904_640
    assert llmc.model_bytes(header._replace(version=5)) == 248_952_832
    assert llmc.model_bytes(header._replace(version=1)) == 1024 + 4 * 124_439_808
    assert llmc.debug_bytes(header, B=4, T=64) == 549_369_860


# ---- models


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_every_version_of_a_hand_packed_model_is_read(tmp_path, version):
    Vp = 128 if version <= 2 else 8  # versions 1 and 2 do not store it
    arrays = tensors(Vp)
    if version == 5:
        for i in LAYERNORM:
            arrays[i] = np.round(arrays[i] * 16) / 16
    path = model_file(tmp_path / "model.bin", version, arrays)
    assert llmc.read_header(path) == llmc.Header(version, **tiny(Vp))

    flat = np.full(sum(a.size for a in arrays), np.nan, np.float32)
    llmc.read_model(path, flat)
    assert flat.tobytes() == block(arrays).tobytes()


@pytest.mark.parametrize("version", [2, 4, 5])
def test_bf16_is_read_in_chunks(tmp_path, monkeypatch, version):
    monkeypatch.setattr(llmc, "CHUNK", 7)
    test_every_version_of_a_hand_packed_model_is_read(tmp_path, version)


@pytest.mark.parametrize("version", [3, 5])
def test_write_read_write_is_the_same_file(tmp_path, monkeypatch, version):
    monkeypatch.setattr(llmc, "CHUNK", 100)
    flat = np.random.default_rng(3).standard_normal(block(tensors(8)).size, dtype="f4")
    flat[:5] = np.nan, np.inf, -np.inf, -0.0, 1e-45
    first, second = tmp_path / "first.bin", tmp_path / "second.bin"
    llmc.write_model(first, tiny(), flat, version)
    again = np.empty_like(flat)
    llmc.read_model(first, again)
    llmc.write_model(second, llmc.read_header(first), again, version)
    assert first.read_bytes() == second.read_bytes()
    if version == 3:
        assert again.tobytes() == flat.tobytes()


@pytest.mark.parametrize("version", [3, 5])
def test_a_written_model_is_the_hand_packed_one(tmp_path, version):
    arrays = [np.round(a * 16) / 16 for a in tensors(8)]
    path = tmp_path / "written.bin"
    llmc.write_model(path, SimpleNamespace(**tiny()), block(arrays), version)
    assert path.read_bytes() == model_file(tmp_path / "packed.bin", version, arrays).read_bytes()


def test_bf16_rounds_to_nearest_even():
    # Every upper half, with lower halves at, beside and far from the tie.
    upper = np.arange(2**16, dtype=np.uint32) << 16
    x = np.concatenate([upper | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).view(np.float32)
    found = (bf16_bits(x).astype(np.uint32) << 16).view(np.float32)

    nan = np.isnan(x)
    assert np.isnan(found[nan]).all()
    exact = x[~nan].astype(np.float64)
    _, exponent = np.frexp(exact)
    step = np.ldexp(1.0, np.maximum(exponent, -125) - 8)  # 8 significant bits; subnormals share one step
    with np.errstate(invalid="ignore"):
        nearest = np.where(np.isinf(exact), exact, np.rint(exact / step) * step)
    nearest[np.abs(nearest) >= 2.0**128] *= np.inf
    np.testing.assert_array_equal(found[~nan], nearest)
    np.testing.assert_array_equal(np.signbit(found[~nan]), np.signbit(exact))


def test_what_cannot_be_written_is_refused(tmp_path):
    flat, path = block(tensors(8)), tmp_path / "model.bin"
    for config, array, version in [
        (tiny(), flat, 1),
        (tiny(), flat[1:], 3),
        (tiny(), flat.astype(np.float64), 3),
        (tiny(), np.repeat(flat, 2)[::2], 3),
        (tiny(Vp=V - 1), flat[: -(9 - V) * C], 3),
    ]:
        with pytest.raises((UsageError, InputError)):
            llmc.write_model(path, config, array, version)
    assert not list(tmp_path.iterdir())


def test_a_model_larger_than_what_is_free_is_refused_at_once(tmp_path, monkeypatch, model):
    before = model.read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1234))
    with pytest.raises(ResourceError, match=f"{len(before):,} bytes are needed"):
        llmc.write_model(model, tiny(), block(tensors(8)))
    assert model.read_bytes() == before
    assert list(tmp_path.iterdir()) == [model]


def test_a_block_that_does_not_fit_is_refused(model):
    size = block(tensors(8)).size
    for flat in (np.empty(size + 1, "f4"), np.empty(size, "f8"), np.empty(2 * size, "f4")[::2]):
        with pytest.raises(UsageError, match="the block is"):
            llmc.read_model(model, flat)


# ---- hostile models


@pytest.mark.parametrize("version", [2, 3, 5])
def test_every_truncation_and_growth_is_refused(tmp_path, version):
    path = model_file(tmp_path / "model.bin", version, tensors(8))
    whole = path.stat().st_size
    llmc.read_header(path)
    for size in [whole + 1, whole + 4096, *range(whole - 1, -1, -1)]:
        os.truncate(path, size)
        with pytest.raises(InputError, match=f"has {size:,} bytes"):
            llmc.read_header(path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(model, monkeypatch):
    whole = os.stat(model)
    os.truncate(model, whole.st_size - 1)
    monkeypatch.setattr(os, "fstat", lambda fd: whole)
    with pytest.raises(InputError, match="became shorter"):
        llmc.read_model(model, np.empty(block(tensors(8)).size, np.float32))


def test_hostile_header_values_are_refused_without_allocating(model):
    grid = (0, 1, -1, 2**15, 2**31 - 1, -(2**31))
    one = [((field, value),) for field in range(1, 8) for value in grid]
    two = [a + b for a, b in itertools.product(one, one) if a[0][0] < b[0][0]]
    tracemalloc.start()
    for changes in one + two:
        header = [20240326, 3, T, V, L, NH, C, 8]
        for field, value in changes:
            header[field] = value
        with open(model, "r+b") as file:
            file.write(struct.pack("<8i", *header))
        if set(changes) <= {(3, 1), (5, 1)}:  # V = 1 in as many rows, or one head: the size still fits
            llmc.read_header(model)
            continue
        with pytest.raises(InputError, match=f"({'|'.join(('version', *FIELDS))}) is|bytes, expected"):
            llmc.read_header(model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20  # read buffers and pytest's own records, far below what the headers ask for


def test_other_files_are_named(model):
    kinds = {
        20240327: "debug state",
        20240328: "tokenizer",
        20240520: "GPT-2 token file",
        20240522: "multiple-choice",
        20240527: "optimizer state",
        20240801: "Llama-3 token file",
        20240803: "Llama-3 model",
        7: "begins with 7",
    }
    body = model.read_bytes()
    for magic, kind in kinds.items():
        model.write_bytes(struct.pack("<i", magic) + body[4:])
        with pytest.raises(InputError, match=kind):
            llmc.read_header(model)
    model.write_bytes(body)
    with pytest.raises(InputError, match="is a GPT-2 model of llm.c, expected a debug state"):
        llmc.load_debug_state(model, tiny())


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in [
        (tmp_path / "missing.bin", "No such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
    ]:
        with pytest.raises(InputError, match=words):
            llmc.read_header(path)


# ---- debug states


@pytest.mark.parametrize("version", [1, 2])
def test_a_hand_packed_debug_state_is_read(tmp_path, version):
    x, y, logits, loss, grads = debug_parts()
    path = debug_file(tmp_path / "debug.bin", version, x, y, logits, loss, grads)
    state = llmc.load_debug_state(path, SimpleNamespace(**tiny()))
    assert state.x.dtype == state.y.dtype == np.int32
    np.testing.assert_array_equal(state.x, x)
    np.testing.assert_array_equal(state.y, y)
    np.testing.assert_array_equal(state.logits, logits)
    assert type(state.loss) is float and state.loss == loss
    assert list(state.grads) == list(llmc.gpt2_shapes(tiny()))
    for found, expected in zip(state.grads.values(), grads, strict=True):
        np.testing.assert_array_equal(found, expected)  # wte's pad rows are zero in `expected`


@pytest.mark.parametrize("columns", [V, 8])
def test_a_written_debug_state_is_the_hand_packed_one(tmp_path, columns):
    x, y, logits, loss, grads = debug_parts()
    padded = np.full((2, T, columns), np.nan, np.float32)
    padded[..., :V] = logits
    named = dict(zip(llmc.gpt2_shapes(tiny()), grads, strict=True))
    llmc.write_debug_state(tmp_path / "written.bin", tiny(), x, y, padded, loss, named)
    packed = debug_file(tmp_path / "packed.bin", 2, x, y, logits, loss, grads)
    assert (tmp_path / "written.bin").read_bytes() == packed.read_bytes()
    with pytest.raises(UsageError, match="y has shape"):
        llmc.write_debug_state(tmp_path / "bad.bin", tiny(), x, y[:1], padded, loss, named)
    with pytest.raises(UsageError, match="lnfb has shape"):
        wide = named | {"lnfb": np.zeros(C + 1)}
        llmc.write_debug_state(tmp_path / "bad.bin", tiny(), x, y, padded, loss, wide)
    assert not (tmp_path / "bad.bin").exists()


def test_a_damaged_debug_state_is_refused(tmp_path):
    parts = debug_parts()
    path = debug_file(tmp_path / "debug.bin", 2, *parts)
    body = path.read_bytes()
    for field, value in itertools.product((1, 2, 3), (0, -1, 1, 4, 2**15, 2**31 - 1, -(2**31))):
        path.write_bytes(body[: 4 * field] + struct.pack("<i", value) + body[4 * field + 4 :])
        with pytest.raises(InputError):
            llmc.load_debug_state(path, tiny())
    for position, name in ((1024, "x"), (1024 + 4 * 2 * T, "y")):
        for token in (V, -1):
            path.write_bytes(body[:position] + struct.pack("<i", token) + body[position + 4 :])
            with pytest.raises(InputError, match=f"{name} has ids"):
                llmc.load_debug_state(path, tiny())
    path.write_bytes(body)
    llmc.load_debug_state(path, tiny())
    for size in [len(body) + 1, *range(len(body) - 1, -1, -1)]:
        os.truncate(path, size)
        with pytest.raises(InputError, match=f"has {size:,} bytes"):
            llmc.load_debug_state(path, tiny())


@pytest.mark.parametrize("B, steps", [(0, T), (1, T + 1)])
def test_a_debug_state_beyond_the_model_is_refused(tmp_path, B, steps):
    x = np.zeros((B, steps), np.int32)
    path = debug_file(tmp_path / "debug.bin", 2, x, x, np.zeros((B, steps, V)), 1.0, tensors(8))
    with pytest.raises(InputError, match=f"B, T are {B}, {steps}"):
        llmc.load_debug_state(path, tiny())
