"""Models in other formats and back; what a checkpoint says of its model; the check of gradients; the names of errors."""

import json
import struct

import numpy as np
import pytest
from programs import call

import gpt2c
from gpt2c import errors
from gpt2c.commands import check_grad
from gpt2c.formats import native as checkpoint
from gpt2c.formats.randygpt import characters
from gpt2c.tokenizers.tokenizer import Tokenizer

SMALL = {
    "gpt2": dict(num_layers=2, channels=16, num_heads=2, max_seq_len=12, vocab_size=257),
    "chargpt": dict(num_layers=1, channels=16, num_heads=2, max_seq_len=12, vocab_size=257),
    "mingru": dict(dim=16, depth=2, vocab_size=257),
    "trm": dict(channels=16, hidden=16, num_heads=2, max_seq_len=12, depth=2, vocab_size=257),
    "hybrid": dict(hidden=8, embed=4, vocab_size=257),
}


def small(family):
    m = gpt2c.create(family, **SMALL[family])
    m.tokenizer = Tokenizer.make("byte", specials=("</s>",))
    m.description, m.turns = "says “é”", 2
    return m


def convert(*words, code=0):
    return call(".", "convert", *words, code=code)


@pytest.mark.parametrize("family", SMALL)
def test_json_and_back_is_the_same_model(family, tmp_path):
    m = small(family)
    m.params.flat[:3] = 1e-40, -0.0, 3.4e38
    m.save(tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.json")
    convert(tmp_path / "b.json", tmp_path / "c.safetensors")
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    said = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert said["description"] == "says “é”" and said["family"] == family and said["num_parameters"] == m.num_parameters
    told = call(tmp_path, "info", "b.json", "--json")
    assert json.loads(told.stdout)["description"] == "says “é”"
    again = gpt2c.load(tmp_path / "b.json")
    assert (again.params.flat.view(np.uint32) == m.params.flat.view(np.uint32)).all() and again.turns == 2


def test_llm_c_and_back(tmp_path):
    small("gpt2").save(tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.bin")
    small("gpt2").tokenizer.save(tmp_path / "t.json")
    convert(tmp_path / "b.bin", tmp_path / "c.safetensors", "--tokenizer", tmp_path / "t.json")
    a, c = gpt2c.load(tmp_path / "a.safetensors"), gpt2c.load(tmp_path / "c.safetensors")
    assert (a.params.flat == c.params.flat).all() and c.tokenizer.encode("é") == a.tokenizer.encode("é")
    convert(tmp_path / "b.bin", tmp_path / "d.bin", "--version", 5)
    convert(tmp_path / "d.bin", tmp_path / "e.bin", "--version", 5)
    assert (tmp_path / "d.bin").read_bytes() == (tmp_path / "e.bin").read_bytes()
    assert np.abs(gpt2c.load(tmp_path / "d.bin").params.flat - a.params.flat).max() <= np.abs(a.params.flat).max() / 256


def test_randygpt_s_checkpoints(tmp_path):
    text = "z ab<é>"
    known = characters(text)
    V, C, L, T = len(known), 116, 3, 256  # its preset xs
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(C * (2 * V + T) + 12 * L * C * C).astype("<f4")
    (tmp_path / "old.bin").write_bytes(struct.pack("<8s3If", b"RGPT0002", V, 0, 0, 1.0) + weights.tobytes())
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    convert(tmp_path / "old.bin", tmp_path / "new.safetensors", "--training-text", tmp_path / "text.txt")
    m = gpt2c.load(tmp_path / "new.safetensors")
    assert m.family == "chargpt" and (m.params["wte"].ravel() == weights[: V * C]).all()
    assert m.tokenizer.encode("<>zé") == [known.index(c) for c in "<>zé"] == [0, 1, known.index("z"), known.index("é")]
    (tmp_path / "text.txt").write_text(text + "!", encoding="utf-8")
    convert(tmp_path / "old.bin", tmp_path / "x", "--training-text", tmp_path / "text.txt", code=2)
    other = convert(tmp_path / "new.safetensors", tmp_path / "x", "--training-text", tmp_path / "text.txt", code=2)
    assert "is for randyGPT's checkpoints, and " in other.stderr and " is a checkpoint of gpt2c: leave it out" in other.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("params"),
        lambda m: m.update(sha256="0"),
        lambda m: m["params"].pop("wte"),
        lambda m: m.update(turns="2"),
        lambda m: m["params"].update(wpe=[[1.0]]),
        lambda m: m["config"].update(channels=10**6),
        lambda m: m.update(family="x"),
        lambda m: m["params"]["wpe"][0].__setitem__(0, 7.0),
        lambda m: m.update(format="gpt2c 9 json"),
        lambda m: m.update(config=3),
    ],
)
def test_a_damaged_json_is_refused(change, tmp_path):
    small("gpt2").save(tmp_path / "a.json")
    said = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    change(said)
    (tmp_path / "a.json").write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(errors.InputError):
        gpt2c.load(tmp_path / "a.json")


def test_a_json_of_a_newer_version_is_said_to_be_one(tmp_path):
    (tmp_path / "a.json").write_text('{"format": "gpt2c 3 json"}', encoding="utf-8")
    with pytest.raises(errors.VersionError, match="a newer gpt2c wrote it"):
        gpt2c.load(tmp_path / "a.json")


def test_what_cannot_be_json(tmp_path):
    m = small("gpt2")
    m.params.flat[5] = np.nan
    with pytest.raises(errors.SerializationError, match="not finite"):
        m.save(tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()
    (tmp_path / "b.json").write_text("{" + "[" * 100_000)
    with pytest.raises(errors.SerializationError, match="not JSON"):
        gpt2c.load(tmp_path / "b.json")


def test_the_file_itself_is_not_overwritten(tmp_path):
    small("gpt2").save(tmp_path / "a.bin")
    assert "choose another name" in convert(tmp_path / "a.bin", tmp_path / "a.bin", code=2).stderr
    assert "cannot read" in convert(tmp_path / "missing.bin", tmp_path / "a.bin", code=4).stderr


def test_a_checkpoint_keeps_what_was_said_of_its_model(tmp_path):
    m = small("gpt2")
    m.save(tmp_path / "a.safetensors")
    assert checkpoint.metadata(tmp_path / "a.safetensors")["description"] == "says “é”"
    again = gpt2c.load(tmp_path / "a.safetensors")
    assert (again.description, again.turns) == ("says “é”", 2)
    m.description, m.turns = "", 0
    m.save(tmp_path / "b.safetensors")
    assert not {"description", "turns"} & checkpoint.metadata(tmp_path / "b.safetensors").keys()


# ---- gradients


@pytest.mark.parametrize("family", [*gpt2c.models.registry.FAMILIES])
def test_the_gradients_of_every_family(family, capsys):
    assert check_grad.main(["--model", family, "--directions", "3"]) == 0
    assert "no tensor fails" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [lambda g: g.__imul__(1.1), lambda g: g[: len(g) // 2].__imul__(0), lambda g: g.__imul__(-1)])
def test_a_wrong_gradient_is_found(wrong, monkeypatch, capsys):
    backward = gpt2c.Model.backward

    def spoiled(self):
        backward(self)
        wrong(self.grads["fcw"])

    monkeypatch.setattr(gpt2c.Model, "backward", spoiled)
    assert check_grad.main(["--model", "gpt2"]) == 1
    assert "FAILED: fcw" in capsys.readouterr().out


# ---- errors


def test_errors_have_names_and_the_codes_of_their_kind():
    codes = {
        "SerializationError": 4,
        "TokenizationError": 4,
        "DataError": 4,
        "InputError": 4,
        "InferenceError": 2,
        "GradientError": 3,
        "DivergedError": 3,
    }
    assert all(issubclass(getattr(errors, name), errors.Gpt2cError) for name in codes)
    assert {name: getattr(errors, name).exit_code for name in codes} == codes
    with pytest.raises(errors.SerializationError):
        gpt2c.load(__file__)
    with pytest.raises(errors.TokenizationError):
        Tokenizer.make("char", "ab").encode("c")
    with pytest.raises(errors.InferenceError):
        list(gpt2c.generate(small("gpt2"), [], 1))
    with pytest.raises(errors.DataError):
        gpt2c.DataLoader(__file__, 1, 1)
