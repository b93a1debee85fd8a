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


@pytest.mark.parametrize("said", [
    SAID, SAID | {"bos": None, "adds_bos": False, "template": ""}, SAID | {"ends": [256]}, SAID | {"ends": [258, 257, 256, 5, 6]},
    SAID | {"eot": None, "ends": []}, SAID | {"eot": 258, "ends": [256]},
])  # fmt: skip
@pytest.mark.parametrize("ending", ["safetensors", "json", "gguf"])
def test_it_survives_every_save(said, ending, model, tmp_path):
    tokenizer, sampling = (
        model.tokenizer,
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "repetition_penalty": 1.1},
    )
    tokenizer.chat_template, tokenizer.adds_bos, tokenizer.ends = said["template"], said["adds_bos"], said["ends"]
    tokenizer.bos, tokenizer.eot = said["bos"], said["eot"]
    model.turns, model.sampling = 3 if said["template"] else 0, sampling
    model.save(tmp_path / f"x.{ending}")
    for number, then in enumerate(("safetensors", "json", "gguf")):
        gpt2c.load(tmp_path / f"x.{ending}").save(tmp_path / f"{number}.{then}")
        last = gpt2c.load(tmp_path / f"{number}.{then}")
        assert conventions(last.tokenizer) == said and (last.turns, last.sampling) == (model.turns, sampling)
        assert last.tokenizer.tokens == tokenizer.tokens and last.tokenizer.special_tokens == tokenizer.special_tokens


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
