"""The container of Hugging Face's models, against files packed by hand and, written, against the safetensors library; damaged and
hostile ones are refused in one sentence, before anything is allocated."""

import json
import struct

import numpy as np
import pytest
from hand_safetensors import apart, pack, stored, together

from gpt2c.errors import SerializationError
from gpt2c.formats import parts, safetensors
from gpt2c.formats.weights import loaded

ARRAYS = {
    name: np.random.default_rng(0).standard_normal(shape, np.float32) for name, shape in [("é", (2, 3)), ("b", (5,)), ("c", ())]
}


def packed(path, dtypes=("F32", "BF16", "F16")):
    path.write_bytes(pack({name: stored(array, dtype) for (name, array), dtype in zip(ARRAYS.items(), dtypes)}, {"format": "pt"}))
    return path


def test_a_file_is_read(tmp_path):
    found = safetensors.read(packed(tmp_path / "x"))
    assert list(found) == list(ARRAYS)
    for (name, array), precision in zip(ARRAYS.items(), (0, 2**-7, 2**-10)):
        assert found[name].shape == array.shape
        np.testing.assert_allclose(loaded(parts.unread(array.shape, [found[name].part()])), array, rtol=precision)


def test_the_library_reads_what_is_written(tmp_path):
    from safetensors.numpy import load_file

    tensors = {
        name: parts.converted(name, parts.of_array(array), kind)
        for (name, array), kind in zip(ARRAYS.items(), ("f16", "f32", "f16"))
    }
    safetensors.write(tmp_path / "x", tensors)
    again = load_file(tmp_path / "x")
    for (name, array), dtype in zip(ARRAYS.items(), (np.float16, np.float32, np.float16)):
        np.testing.assert_array_equal(again[name], array.astype(dtype))
    table = apart((tmp_path / "x").read_bytes())[0]
    assert table.pop("__metadata__") == {"format": "pt"}
    assert [entry["data_offsets"] for entry in table.values()] == [[0, 20], [20, 32], [32, 34]]  # float32 first: they are aligned


def header(table, data=b"", length=None):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("data, said", [
    (b"", "it begins with b''"),
    (b"\0" * 8, "expected the length of its header and a brace"),
    (header({}, length=2**63), "expected the length"),
    (header({}, length=2**64 - 1), "expected the length"),
    (header({}, length=3), "expected the length"),
    (header({}, length=1), "expected the length"),
    (header(b"[]"), "expected the length"),
    (header(b"{]"), "it is not JSON"),
    (header(b'{"\xff": 1}'), "it is not JSON"),
    (header(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "it is not JSON"),
    (header(b'{"a": ' + b"9" * 5000 + b"}"), "it is not JSON"),
    (header({}, b"x"), "its tensors end at byte 10 of 11"),
    (header({"a": 1}), "the tensor 'a' has no dtype"),
    (header({"a\n" * 100: 1}), r"has no dtype"),
    (header({"a": {"dtype": 3}}), "has no dtype"),
    (header({"a": entry([2**62, 2**62], [0, 0])}), "has 0 bytes"),
    (header({"a": entry([1] * 9, [0, 4])}, bytes(4)), "has shape [1, 1"),
    (header({"a": entry([-1], [0, 4])}, bytes(4)), "has shape [-1]"),
    (header({"a": entry([True], [0, 4])}, bytes(4)), "has shape [True]"),
    (header({"a": entry([1.0], [0, 4])}, bytes(4)), "has shape [1.0]"),
    (header({"a": entry(None, [0, 4])}, bytes(4)), "has shape None"),
    (header({"a": entry([1], [0, 4, 8])}, bytes(4)), "offsets [0, 4, 8]"),
    (header({"a": entry([1], [4, 0])}, bytes(4)), "offsets [4, 0]"),
    (header({"a": entry([1], [0, 2**64])}, bytes(4)), "offsets [0, 18446744073709551616]"),
    (header({"a": entry([1], [0, 8])}, bytes(8)), "the tensor 'a' of shape [1] has 8 bytes"),
    (header({"a": entry([1], [0, 4], "BF16")}, bytes(4)), "has 4 bytes"),
    (header({"a": entry([1], [4, 8])}, bytes(8)), "the tensor 'a' begins at byte 4 of the data, expected 0"),
    (header({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}, bytes(4)), "'b' begins at byte 0 of the data, expected 4"),
    (header({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, bytes(12)), "begins at byte 8 of the data, expected 4"),
    (header({"a": entry([2**40], [0, 2**42])}, bytes(4)), "its tensors end at byte"),
])  # fmt: skip
def test_what_is_wrong_is_said(data, said, tmp_path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(SerializationError) as error:
        safetensors.read(tmp_path / "x")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_every_prefix_is_refused(tmp_path):
    whole = packed(tmp_path / "x").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:size])
        with pytest.raises(SerializationError):
            safetensors.read(tmp_path / "x")


def test_a_file_that_changed_meanwhile_is_not_read_on(tmp_path):
    part = safetensors.read(packed(tmp_path / "x"))["é"].part()
    packed(tmp_path / "x", ("F32", "F32", "F16"))
    with pytest.raises(SerializationError, match="is another file than when its header was read"):
        list(part.pieces())


@pytest.mark.parametrize("names, said", [
    ([], "its weight_map does not name a file"),
    ({"a": 1}, "its weight_map does not name a file"),
    ({"a": "../x.safetensors"}, "its weight_map does not name a file beside it"),
    ({"a": "/etc/passwd"}, "its weight_map does not name a file beside it"),
    ({"a": "sub\\x.safetensors"}, "its weight_map does not name a file beside it"),
    ({"a": "x\n.safetensors"}, "its weight_map does not name a file beside it"),
    ({"a": "x\0.safetensors"}, "its weight_map does not name a file beside it"),
    ({"": "x.safetensors"}, "'x.safetensors' does not have the tensor ''"),
    ({"b": "x.safetensors", "nope": "x.safetensors"}, "'x.safetensors' does not have the tensor 'nope'"),
])  # fmt: skip
def test_an_index_names_files_beside_it_and_what_they_have(names, said, tmp_path):
    packed(tmp_path / "x.safetensors")
    (tmp_path / safetensors.INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(SerializationError) as error:
        safetensors.read_folder(tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)
    (tmp_path / safetensors.INDEX).write_text(json.dumps({"weight_map": {"b": "x.safetensors"}}))
    assert list(safetensors.read_folder(tmp_path)) == ["b"]


def test_taking_apart_and_together_changes_nothing(tmp_path):
    data = packed(tmp_path / "x").read_bytes()
    assert together(apart(data)) == data
