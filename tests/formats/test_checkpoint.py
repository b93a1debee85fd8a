"""Saving, loading, and going on as if nothing had happened."""

import json
import struct
from itertools import islice

import numpy as np
import pytest
import safetensors.numpy

import gpt2c
from gpt2c.data import write_shard
from gpt2c.errors import InputError
from gpt2c.models.files import load_run, save
from gpt2c.tokenizers.byte_level import GPT2_BYTES
from gpt2c.tokenizers.tokenizer import Tokenizer

SMALL = dict(num_layers=2, channels=32, num_heads=2, vocab_size=97, max_seq_len=32)


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "x_train.bin"
    write_shard(path, np.random.default_rng(0).integers(0, 97, 5000))
    return path


def trainer(tokens, steps, model=None):
    model = model or gpt2c.create("gpt2", **SMALL)
    config = gpt2c.TrainConfig(
        max_steps=steps, learning_rate=1e-3, lr_schedule="cosine", weight_decay=0.1, val_every=3, val_steps=2
    )
    return gpt2c.Trainer(model, gpt2c.DataLoader(str(tokens), 2, 16, shuffle=True), gpt2c.DataLoader(str(tokens), 2, 16), config)


def test_weights_round_trip(tmp_path):
    m = gpt2c.create("gpt2", **SMALL)
    m.tokenizer = Tokenizer(GPT2_BYTES)
    m.save(tmp_path / "m.safetensors")
    again = gpt2c.load(tmp_path / "m.safetensors")
    assert again.config == m.config and again.params.flat.tobytes() == m.params.flat.tobytes()
    assert again.tokenizer.encode("a b") == m.tokenizer.encode("a b")
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_other_programs_read_it(tmp_path):
    m = gpt2c.create("gpt2", **SMALL)
    m.save(tmp_path / "m.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert list(tensors) and all((tensors[name] == m.params[name]).all() for name in m.params)


@pytest.mark.parametrize("version", [3, 5])
def test_llm_c_files_round_trip(tmp_path, version):
    m = gpt2c.create("gpt2", **SMALL)
    m.save(tmp_path / "m.bin", version=version)
    again = gpt2c.load(tmp_path / "m.bin")
    assert again.config == m.config
    if version == 3:
        assert again.params.flat.tobytes() == m.params.flat.tobytes()
    else:
        np.testing.assert_allclose(again.params.flat, m.params.flat, rtol=2**-8)
    again.save(tmp_path / "again.bin", version=version)
    assert (tmp_path / "m.bin").read_bytes() == (tmp_path / "again.bin").read_bytes()


def test_a_resumed_run_has_the_same_bits(tmp_path, tokens):
    straight = trainer(tokens, 7)
    losses = [(s.loss, s.val_loss) for s in straight]
    straight.save(tmp_path / "straight.safetensors")

    half = trainer(tokens, 7)
    first = [(s.loss, s.val_loss) for s in islice(half, 4)]
    half.sample([1], 5)  # reads nothing that training depends on but the sampling stream
    straight.sample([1], 5)
    half.save(tmp_path / "half.safetensors")
    model, run = load_run(tmp_path / "half.safetensors")
    gpt2c.set_num_threads(3)
    resumed = trainer(tokens, 7, model)
    resumed.restore(run)
    assert first + [(s.loss, s.val_loss) for s in resumed] == losses
    resumed.save(tmp_path / "resumed.safetensors")
    straight.save(tmp_path / "straight.safetensors")
    assert (tmp_path / "resumed.safetensors").read_bytes() == (tmp_path / "straight.safetensors").read_bytes()


def rewrite(path, change):
    """The file with its header, parsed, changed."""
    blob = path.read_bytes()
    length = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob[8 + length :])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda h: h["__metadata__"].update(format="gpt2c 3"), "format 'gpt2c 3', expected 'gpt2c 2'; a newer gpt2c wrote it"),
        (lambda h: h.pop("__metadata__"), "format None"),
        (lambda h: h["__metadata__"].update(config=h["__metadata__"]["config"].replace("32", "48")), "SHA-256"),
        (lambda h: h["__metadata__"].pop("sha256"), "SHA-256"),
        (lambda h: h["wte"].update(shape=[32, 128]), "SHA-256"),
        (lambda h: h["wpe"].update(data_offsets=[0, 4]), "not a valid checkpoint"),
        (lambda h: h["wpe"].update(shape=[-1, 4]), "not a valid checkpoint"),
    ],
)
def test_a_changed_header_is_refused(tmp_path, change, message):
    gpt2c.create("gpt2", **SMALL).save(tmp_path / "m.safetensors")
    rewrite(tmp_path / "m.safetensors", change)
    with pytest.raises(InputError, match=message):
        gpt2c.load(tmp_path / "m.safetensors")


def test_any_flipped_bit_and_any_cut_is_noticed(tmp_path):
    path = tmp_path / "m.safetensors"
    m = gpt2c.create("gpt2", num_layers=1, channels=4, num_heads=1, vocab_size=5, max_seq_len=2)
    save(path, m)
    blob = path.read_bytes()
    rng = np.random.default_rng(1)
    start = 8 + struct.unpack("<Q", blob[:8])[0]
    for at in [*range(0, 120), *rng.integers(start, len(blob), 60)]:
        damaged = bytearray(blob)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            gpt2c.load(path)
    for size in [*range(0, 64), *rng.integers(64, len(blob), 40)]:
        path.write_bytes(blob[:size])
        with pytest.raises(InputError):
            gpt2c.load(path)


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "page.html").write_text("<html>404</html>")
    with pytest.raises(InputError, match="neither a gpt2c checkpoint nor an llm.c model"):
        gpt2c.load(tmp_path / "page.html")
    with pytest.raises(InputError, match="No such file"):
        gpt2c.load(tmp_path / "missing.bin")
    write_shard(tmp_path / "x_train.bin", [1, 2, 3])
    with pytest.raises(InputError, match="is a GPT-2 token file of llm.c, expected a GPT-2 model"):
        gpt2c.load(tmp_path / "x_train.bin")
