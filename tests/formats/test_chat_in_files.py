"""Files of models keep what a tokenizer.json does not say: its chat template, and how texts begin and end."""

import json
import struct

import pytest
from make_corpus import CONFIG, CORPUS
from test_checkpoint import rewrite

import gpt2c
from gpt2c.errors import InputError, SerializationError
from gpt2c.formats import json as json_format
from gpt2c.formats import native
from gpt2c.tokenizers.conventions import conventions
from gpt2c.tokenizers.tokenizer import Tokenizer
from gpt2c.tokenizers.turns import TEMPLATE

SAID = {"template": "{{ bos_token }}é", "bos": 257, "eot": 256, "ends": [258, 256], "adds_bos": True}
MODULES = {"safetensors": native, "json": json_format}


@pytest.fixture
def model():
    made = gpt2c.create("gpt2", **CONFIG | {"vocab_size": 259, "padded_vocab_size": 384})
    made.tokenizer = Tokenizer.make("byte", specials=("<|bos|>", "<|eos|>", "<|im_end|>"))
    return made


def without(path):
    """A checkpoint as it was written before there was anything of this in it."""
    blob = path.read_bytes()
    start = 8 + struct.unpack("<Q", blob[:8])[0]
    table = json.loads(blob[8:start])
    about = table.pop("__metadata__")
    del about["chat"], about["sha256"]
    digest = native._digest(table, about, [blob[start:]])
    rewrite(path, lambda header: header.update(__metadata__=about | {"sha256": digest}))


@pytest.mark.parametrize("ending", ["safetensors", "json"])
def test_it_survives_every_save(model, ending, tmp_path):
    tokenizer, path = model.tokenizer, tmp_path / f"x.{ending}"
    tokenizer.chat_template, tokenizer.adds_bos, tokenizer.ends = SAID["template"], True, SAID["ends"]
    tokenizer.bos, tokenizer.eot = 257, 256
    model.save(path)
    again = gpt2c.load(path)
    assert conventions(again.tokenizer) == SAID
    again.save(tmp_path / f"y.{'json' if ending == 'safetensors' else 'safetensors'}")
    last = gpt2c.load(next(tmp_path.glob("y.*")))
    assert conventions(last.tokenizer) == SAID and last.tokenizer.to_json() == tokenizer.to_json()


@pytest.mark.parametrize("name", ["x", "model.json", "model_v1.json"])
def test_files_without_it_are_read_as_before(name, model, tmp_path):
    if name == "x":
        model.save(tmp_path / "x")
        without(tmp_path / "x")
    """Those that say that their model learned from conversations have the template of these."""
    old = gpt2c.load((tmp_path if name == "x" else CORPUS) / name)
    plain, template = Tokenizer.from_json(old.tokenizer.to_json()), TEMPLATE if name != "x" else ""
    assert (old.turns > 0) == (name != "x")
    assert conventions(old.tokenizer) == conventions(plain) | {"template": template} and not plain.adds_bos
    assert plain.ends == ([] if plain.eot is None else [plain.eot]) and not plain.chat_template


WRONG = [
    ("template", 3), ("template", None), ("bos", 259), ("bos", -1), ("bos", True), ("eot", 1.0), ("ends", 257), ("ends", [259]),
    ("ends", ["<|eos|>"]), ("ends", [[257]]), ("adds_bos", 1), ("bos", None), ("ends", None),
]  # fmt: skip


@pytest.mark.parametrize("name, value", WRONG)
@pytest.mark.parametrize("ending", ["safetensors", "json"])
def test_what_is_wrong_with_it_is_said(name, value, ending, model, tmp_path, monkeypatch):
    """In a file that is otherwise whole, its SHA-256 included."""
    monkeypatch.setattr(MODULES[ending], "conventions", lambda _: SAID | {name: value})
    path = tmp_path / f"x.{ending}"
    model.save(path)
    with pytest.raises(SerializationError, match="what it says of chat is not"):
        gpt2c.load(path)


@pytest.mark.parametrize("found", [[], {}, {"template": ""}, 3])
def test_what_is_no_such_object_is_refused(found, model, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "conventions", lambda _: found)
    model.save(tmp_path / "x")
    with pytest.raises(SerializationError, match="what it says of chat is not"):
        gpt2c.load(tmp_path / "x")


def test_the_sha_256_covers_it(model, tmp_path):
    model.save(tmp_path / "x")
    model.save(tmp_path / "x.json")
    rewrite(tmp_path / "x", lambda header: header["__metadata__"].update(chat=json.dumps(SAID)))
    document = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    (tmp_path / "x.json").write_text(json.dumps(document | {"chat": SAID}), encoding="utf-8")
    for name in ("x", "x.json"):
        with pytest.raises(InputError, match="SHA-256"):
            gpt2c.load(tmp_path / name)
