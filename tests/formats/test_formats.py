"""The table of formats, and what its readers give."""

import json

import numpy as np
import pytest
from make_corpus import CONFIG, CORPUS
from test_checkpoint import rewrite
from test_rgpt import written

import gpt2c
from gpt2c import formats
from gpt2c.errors import InputError, SerializationError, UsageError, VersionError
from gpt2c.formats import json as json_format
from gpt2c.formats import llmc, native
from gpt2c.formats.weights import Unread, is_newer
from gpt2c.models import files
from gpt2c.tokenizers import foreign
from gpt2c.tokenizers.tokenizer import Tokenizer


@pytest.fixture
def model():
    made = gpt2c.create("gpt2", **CONFIG)
    made.tokenizer = Tokenizer.make("char", "abcde")
    return made


def test_a_file_is_told_by_what_it_begins_with(tmp_path, model):
    model.save(tmp_path / "model.json")
    written(tmp_path / "randy.bin", 2)
    found = {
        CORPUS / "weights.safetensors": formats.NATIVE,
        CORPUS / "run.safetensors": formats.NATIVE,
        CORPUS / "model_v3.bin": formats.LLMC,
        CORPUS / "model_v5.bin": formats.LLMC,
        tmp_path / "model.json": formats.JSON,
        tmp_path / "randy.bin": formats.RANDYGPT,
    }
    for number, (path, form) in enumerate(found.items()):
        (tmp_path / str(number)).write_bytes(path.read_bytes())  # under a name that says nothing
        assert formats.format_of(tmp_path / str(number)) is form
        weights = formats.read(tmp_path / str(number))
        assert gpt2c.load(tmp_path / str(number)).family == weights.family and isinstance(weights.config, dict)


@pytest.mark.parametrize("family, ending, form", [
    ("gpt2", ".bin", formats.LLMC), ("gpt2", ".json", formats.JSON), ("gpt2", ".safetensors", formats.NATIVE),
    ("gpt2", "", formats.NATIVE), ("mingru", ".bin", formats.NATIVE), ("mingru", ".json", formats.JSON),
])  # fmt: skip
def test_a_file_is_written_as_its_ending_says(family, ending, form, tmp_path):
    path = tmp_path / f"x{ending}"
    gpt2c.create(family, **({"dim": 4, "depth": 1, "vocab_size": 5} if family == "mingru" else CONFIG)).save(path)
    assert formats.format_of(path) is form


def test_a_version_that_a_format_has_not_is_an_error(tmp_path, model):
    with pytest.raises(UsageError, match="version 5 is llm.c's"):
        model.save(tmp_path / "x.safetensors", version=5)


def test_readers_know_no_family(tmp_path, model):
    weights = formats.NATIVE.read(CORPUS / "run.safetensors")
    assert weights.family == "gpt2" and list(weights.tensors) == list(model.params)
    assert list(weights.moments) == [f"{kind}.{name}" for kind in "mv" for name in model.params]
    assert weights.run.values["step"] == weights.said["step"] == 2
    strange = weights.config | {"channels": 8}
    native.write(tmp_path / "x", formats.weights.Weights("no such", strange, dict(weights.tensors)))
    assert formats.read(tmp_path / "x").config == strange
    with pytest.raises(SerializationError, match="of family 'no such'; this gpt2c has gpt2"):
        gpt2c.load(tmp_path / "x")
    native.write(tmp_path / "x", formats.weights.Weights("gpt2", strange, dict(weights.tensors)))
    with pytest.raises(SerializationError, match=r"wte is float32 \(8, 4\), expected float32 \(8, 8\)"):
        gpt2c.load(tmp_path / "x")


def test_what_has_been_copied_is_let_go():
    content = files.read(CORPUS / "run.safetensors")
    content.build()
    assert not (content.weights.tensors or content.weights.moments or content.weights.run.arrays)
    assert content.run.values["step"] == 2


def test_llm_c_s_tensors_stay_in_the_file_until_they_are_asked_for(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes((CORPUS / "model_v5.bin").read_bytes())
    weights = llmc.read(path)
    assert all(isinstance(tensor, Unread) for tensor in weights.tensors.values())
    out = np.full(weights.tensors["wte"].shape, np.nan, np.float32)
    weights.put("wte", out)
    np.testing.assert_array_equal(out, gpt2c.load(path).params["wte"])
    path.write_bytes((CORPUS / "model_v3.bin").read_bytes())
    with pytest.raises(InputError, match="is another file"):
        weights.put("wte", out)


@pytest.mark.parametrize("form, known, newer", [
    ("gpt2c 10", "gpt2c 9", True), ("gpt2c 9", "gpt2c 10", False), ("gpt2c 2", "gpt2c 1", True), ("gpt2c 1", "gpt2c 1", False),
    ("gpt2c 10 json", "gpt2c 9 json", True), ("gpt2c 2 json", "gpt2c 1", False), ("gpt2c 2", "gpt2c 1 json", False),
    ("gpt3c 2", "gpt2c 1", False), ("gpt2c 0009", "gpt2c 10", False), ("gpt2c " + "9" * 5000, "gpt2c 1", False),
    ("gpt2c ٣", "gpt2c 1", False), (None, "gpt2c 1", False), (2, "gpt2c 1", False), ("", "gpt2c 1", False),
])  # fmt: skip
def test_versions_are_numbers(form, known, newer):
    assert is_newer(form, known) is newer


def test_files_of_version_10_are_newer_than_9(tmp_path, model, monkeypatch):
    model.save(tmp_path / "x.safetensors")
    model.save(tmp_path / "x.json")
    rewrite(tmp_path / "x.safetensors", lambda header: header["__metadata__"].update(format="gpt2c 10"))
    (tmp_path / "x.json").write_text(json.dumps({"format": "gpt2c 10 json"}), encoding="utf-8")
    monkeypatch.setattr(native, "FORMAT", "gpt2c 9")
    monkeypatch.setattr(json_format, "FORMAT", "gpt2c 9 json")
    for name in ("x.safetensors", "x.json"):
        with pytest.raises(VersionError, match="a newer gpt2c wrote it"):
            gpt2c.load(tmp_path / name)


@pytest.mark.parametrize("kind", [TypeError, AttributeError, KeyError, IndexError])
@pytest.mark.parametrize("name", ["x.safetensors", "x.json"])
def test_a_fault_of_our_own_is_not_taken_for_a_damaged_file(kind, name, tmp_path, model, monkeypatch):
    def faulty(*_):
        raise kind("ours")

    model.save(tmp_path / name)
    for owner, what in ((Tokenizer, "from_document"), (files, "make_config"), (files, "_check_tensors")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, what, faulty)
            with pytest.raises(kind, match="ours"):
                gpt2c.load(tmp_path / name)
    vocabulary = {"vocab": ["a", "b", "ab"], "merges": [["a", "b"]]}
    monkeypatch.setattr(foreign, "_bpe", faulty)
    with pytest.raises(kind, match="ours"):
        foreign.read(vocabulary)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda m: m.update(family=3), "its family is not text"),
        (lambda m: m.pop("tokenizer"), "its tokenizer is missing"),
        (lambda m: m.update(tokenizer=[]), "its tokenizer is not an object or null"),
        (lambda m: m.update(tokenizer={"a": 1}), "the tokenizers library refuses"),
        (lambda m: m["params"].update(wte={"a": 1}), "wte is no array of numbers"),
        (lambda m: m["params"].update(wte=[[1], [1, 2]]), "wte is no array of numbers"),
        (lambda m: m["params"].update(wte=[10**400]), "wte is no array of numbers"),
        (lambda m: m["config"].update(channels="4"), "SHA-256"),
        (lambda m: m.update(description="another"), "SHA-256"),
        (lambda m: m.pop("description"), "SHA-256"),
        (lambda m: m.update(turns=3), "SHA-256"),
        (lambda m: m.update(family="chargpt"), "SHA-256"),
        (lambda m: m.update(saved_at=""), "SHA-256"),
        (lambda m: m.update(num_parameters=1), "SHA-256"),
        (lambda m: m.update(note="new"), "SHA-256"),
        (lambda m: m.update(tokenizer=None), "SHA-256"),
        (lambda m: m["tokenizer"]["model"]["vocab"].update(a=1, b=0), "SHA-256"),
        (lambda m: m["params"].update(ln1w=m["params"]["ln2w"], ln2w=m["params"]["ln1w"]), "SHA-256"),
        (lambda m: m.update(params=dict(reversed(m["params"].items()))), "SHA-256"),
        (lambda m: m["params"].update(lnfw=[m["params"]["lnfw"]]), "SHA-256"),
        (lambda m: m.update(format="gpt2c 1 json"), "SHA-256"),
    ],
)
def test_what_is_wrong_with_json_is_said(change, said, tmp_path, model):
    model.tokenizer, model.description, model.turns = Tokenizer.make("char", "ab"), "one", 2
    model.params["ln2w"][...] = 2  # not what ln1w is
    model.save(tmp_path / "x.json")
    document = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    change(document)
    (tmp_path / "x.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(SerializationError, match=said):
        gpt2c.load(tmp_path / "x.json")


def test_json_of_the_first_version_is_read_by_its_own_rule(tmp_path):
    """Whose SHA-256 is that of family, config and numbers."""
    old, path = gpt2c.load(CORPUS / "model_v1.json"), tmp_path / "x.json"
    assert (old.params.flat == gpt2c.load(CORPUS / "weights.safetensors").params.flat).all()
    assert (old.description, old.turns, old.tokenizer.decode([0, 4])) == ("says “é”", 2, "ae")
    document = json.loads((CORPUS / "model_v1.json").read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | {"description": "another"}), encoding="utf-8")
    assert gpt2c.load(path).description == "another"
    document["params"]["lnfw"][0] = 7
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(SerializationError, match="SHA-256"):
        gpt2c.load(path)


def test_half_a_utf_16_pair_survives_in_json(tmp_path, model):
    """As a name that is no UTF-8 arrives from a command line."""
    model.description = "é \udcff"
    model.save(tmp_path / "x.json")
    assert gpt2c.load(tmp_path / "x.json").description == "é \udcff"
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_a_table_that_is_written_as_lists_is_refused(tmp_path, model):
    model.save(tmp_path / "x.safetensors")

    def as_lists(header):
        for name in header.keys() - {"__metadata__"}:
            header[name] = [header[name][key] for key in ("dtype", "shape", "data_offsets")]

    rewrite(tmp_path / "x.safetensors", as_lists)
    with pytest.raises(SerializationError, match="not a valid checkpoint"):
        gpt2c.load(tmp_path / "x.safetensors")
