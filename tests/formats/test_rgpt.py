"""randyGPT's checkpoints, from bytes written here as its documents describe them."""

import struct

import numpy as np
import pytest

import gpt2c
from gpt2c.errors import InputError
from gpt2c.formats import randygpt
from gpt2c.formats.randygpt import characters

V, C, L, T = 5, 128, 6, 64
WEIGHTS = [("wte", (V, C)), ("wpe", (T, C)), ("lm", (V, C))]
for _layer in range(L):
    WEIGHTS += [(f"{name}{_layer}", (C, C)) for name in ("wq", "wk", "wv", "wo")]
    WEIGHTS += [(f"fc1{_layer}", (4 * C, C)), (f"fc2{_layer}", (C, 4 * C))]


def written(path, version, seed=1):
    """A file, and its arrays {"": weights, "m": ..., "v": ...} by randyGPT's names."""
    rng = np.random.default_rng(seed)
    arrays = {kind: {name: rng.standard_normal(shape, np.float32) for name, shape in WEIGHTS} for kind in ("", "m", "v")}
    names = [name for name, _ in WEIGHTS]
    order = {
        1: [("", n) for n in names] + [(k, n) for n in names for k in "mv"],
        2: [("", n) for n in names],
        3: [(k, n) for k in ("", "m", "v") for n in names],
    }[version]
    body = b"".join(arrays[kind][name].tobytes() for kind, name in order)
    path.write_bytes(b"RGPT000%d" % version + struct.pack("<3If", V, 41, 42, 1.5) + body)
    return arrays


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_is_read(tmp_path, version):
    arrays = written(tmp_path / "x.bin", version)
    found = randygpt.read(tmp_path / "x.bin")
    assert found.config == dict(max_seq_len=64, vocab_size=5, num_layers=6, num_heads=8, channels=128)
    assert found.facts == {"iteration": 41, "step": 42, "best_loss": 1.5}
    assert version != 2 or found.moments == {}
    for kind, file in arrays.items() if version != 2 else [("", arrays[""])]:
        of_all = found.tensors | found.moments
        tensors = {name: of_all[f"{kind}.{name}" if kind else name] for name in found.tensors}
        np.testing.assert_array_equal(tensors["wte"], file["wte"])
        np.testing.assert_array_equal(tensors["wpe"], file["wpe"])
        np.testing.assert_array_equal(tensors["lm_head"], file["lm"])
        for layer in range(L):
            thirds = [file[f"{name}{layer}"] for name in ("wq", "wk", "wv")]
            np.testing.assert_array_equal(tensors["qkvw"][layer], np.concatenate(thirds))
            for ours, theirs in (("attprojw", "wo"), ("fcw", "fc1"), ("fcprojw", "fc2")):
                np.testing.assert_array_equal(tensors[ours][layer], file[f"{theirs}{layer}"])


def test_it_loads_as_a_chargpt(tmp_path):
    arrays = written(tmp_path / "x.bin", 1)
    model = gpt2c.load(tmp_path / "x.bin")
    assert (model.family, model.tokenizer, model.config.channels) == ("chargpt", None, 128)
    np.testing.assert_array_equal(model.params["qkvw"][2, 128:256], arrays[""]["wk2"])
    assert np.isfinite(model.forward(np.array([[0, 1, 2]]), np.array([[1, 2, 3]])))


def test_the_size_of_the_tinyshakespeare_model_is_the_documents(tmp_path):
    """14,459,928 bytes for 67 tokens; a later preset is told by its size."""
    path = tmp_path / "x.bin"
    path.write_bytes(b"RGPT0001" + struct.pack("<3If", 67, 0, 1, 2.0))
    with open(path, "r+b") as file:
        file.truncate(14_459_928)
    assert sum(a.size for a in randygpt.read(path).tensors.values()) == 1_204_992
    path.write_bytes(b"RGPT0002" + struct.pack("<3If", 10, 0, 1, 2.0))
    with open(path, "r+b") as file:
        file.truncate(24 + 4 * (116 * (20 + 256) + 3 * 12 * 116**2))
    assert randygpt.read(path).config["channels"] == 116


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda b: b[:-1], "cut short"),
        (lambda b: b + b"x", "cut short"),
        (lambda b: b[:20], "begins with"),
        (lambda b: b"RGPT0004" + b[8:], "begins with b'RGPT0004'"),
        (lambda b: b[:8] + b"\0\0\0\0" + b[12:], "declares 0 tokens"),
        (lambda b: b[:8] + b"\xff\xff\xff\xff" + b[12:], "declares 4294967295 tokens"),
        (lambda b: b"", "begins with b''"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, change, message):
    path = tmp_path / "x.bin"
    written(path, 2)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        randygpt.read(path)


def test_characters_are_those_of_the_text_after_two_marks():
    assert characters("hello <b>\n") == ["<", ">", "\n", " ", "b", "e", "h", "l", "o"]
