"""GGUF's container, against files packed by hand (hand_gguf): what is in them, and what is wrong with them."""

import itertools
import struct
import tracemalloc

import numpy as np
import pytest
from hand_gguf import FORMS, bytes_of, laid_out, pack

from gpt2c.errors import InputError, SerializationError, VersionError
from gpt2c.formats import blocks, gguf
from gpt2c.formats.weights import Part

ROWS = np.arange(12, dtype="<f4").reshape(3, 4)
ARRAYS = [("a", (3, 4), 0, ROWS.tobytes()), ("b.weight", (2, 32), 8, bytes(range(68))), ("c", (5,), 30, bytes(range(10)))]
VALUES = {0: 200, 1: -3, 2: 60000, 3: -300, 4: 2**32 - 1, 5: -(2**31), 6: 0.5, 7: True, 10: 2**64 - 1, 11: -(2**63), 12: 1e300}


def file(path, pairs=(), arrays=ARRAYS, **how):
    tensors, data = laid_out(arrays, how.get("alignment", 32))
    path.write_bytes(pack(list(pairs), tensors, data, **how))
    return path


def contents(content, name):
    return np.concatenate(list(content.part(name).pieces())).tobytes()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 8, 64, 4096])
def test_a_file_packed_by_hand_is_read(version, alignment, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "PIECE", 32)
    pairs = [("general.alignment", 4, alignment), ("é", 8, "日")]
    content = gguf.read(file(tmp_path / "x", pairs, version=version, alignment=alignment))
    assert content.version == version and content.metadata == {"general.alignment": alignment, "é": "日"}
    assert {name: (t.kind, t.shape) for name, t in content.tensors.items()} == {
        "a": ("f32", (3, 4)), "b.weight": ("q8_0", (2, 32)), "c": ("bf16", (5,)),
    }  # fmt: skip
    assert all(contents(content, name) == data for name, _, _, data in ARRAYS)


def test_values_of_every_type(tmp_path):
    pairs = [(str(kind), kind, value) for kind, value in VALUES.items()]
    pairs += [(f"{kind} twice", 9, (kind, [value, value])) for kind, value in VALUES.items()]
    pairs += [("texts", 9, (8, ["a", "", "é"])), ("none", 9, (4, [])), ("deep", 9, (9, [(9, [(8, ["a"])]), (9, [])]))]
    found = gguf.read(file(tmp_path / "x", pairs)).metadata
    for kind, value in VALUES.items():
        assert found[str(kind)] == value and type(found[str(kind)]) is type(value)
        assert found[f"{kind} twice"].tolist() == [value, value]
    assert found["texts"] == ["a", "", "é"] and found["none"].size == 0 and found["deep"] == [[["a"]], []]


def test_what_is_written_is_read_by_hand(tmp_path):
    metadata = {
        "flag": True,
        "count": 2**32 - 1,
        "rate": 0.1,
        "name": "é",
        "texts": ["a", "日"],
        "kinds": np.array([1, -3], np.int32),
    }
    parts = {name: Part(gguf.KINDS[kind], shape, lambda data=data: [data]) for name, shape, kind, data in ARRAYS}
    gguf.write(tmp_path / "x", metadata, parts)
    tensors, values = bytes_of((tmp_path / "x").read_bytes())
    assert tensors == {name: (kind, list(shape[::-1]), data) for name, shape, kind, data in ARRAYS}
    expected = metadata | {"rate": pytest.approx(0.1), "texts": [8, ["a", "日"]], "kinds": [5, [1, -3]]}
    assert values == expected
    assert (tmp_path / "x").stat().st_size % 32 == 0
    again = gguf.read(tmp_path / "x")
    gguf.write(tmp_path / "y", metadata, {name: again.part(name) for name in again.tensors})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path):
    def fails():
        yield b"abc"
        raise SerializationError("it became shorter")

    with pytest.raises(SerializationError):
        gguf.write(tmp_path / "x", {}, {"a": Part("f32", (3,), fails)})
    assert not list(tmp_path.iterdir())


# ---- hostile files

ONE = [("a", (4,), 0, bytes(16))]
HUGE = 2**64 - 1


@pytest.mark.parametrize("pairs, tensors, how, said", [
    ([], [("a", [4], 0, 0)], dict(counts=(HUGE, 0)), "it says that it has 18,446,744,073,709,551,615 tensors"),
    ([], [("a", [4], 0, 0)], dict(counts=(0, 2**16 + 1)), "0 tensors and 65,537 keys"),
    ([], [("a", [HUGE, HUGE, HUGE, HUGE], 0, 0)], {}, "the tensor 'a' has"),
    ([], [("a", [2**32, 2**32], 0, 0)], {}, "the tensor 'a' has 73,786,976,294,838,206,464 bytes"),
    ([], [("a", [5], 0, 0)], {}, "the tensor 'a' has 20 bytes at byte 64 of 80"),
    ([], [("a", [4], 0, 32)], {}, "the tensor 'a' has 16 bytes at byte 96 of 80"),
    ([], [("a", [4], 0, HUGE - 31)], {}, "the tensor 'a' has 16 bytes"),
    ([], [("a", [2], 0, 8)], {}, "the tensor 'a' has 8 bytes at byte 72 of 80"),
    ([], [("a", [], 0, 0)], {}, "0 dimensions, expected 1 to 4"),
    ([], [("a", [1] * 5, 0, 0)], {}, "5 dimensions, expected 1 to 4"),
    ([], [("a", [0], 0, 0)], {}, r"of shape \(0,\) is no whole number of blocks"),
    ([], [("a", [16], 8, 0)], {}, r"of shape \(16,\) is no whole number of blocks"),
    ([], [("a", [4], 99, 0)], {}, "'a' is stored as number 99; gpt2c reads F32, F16, BF16, Q8_0"),
    ([], [("a\n", [4], 10, 0)], {}, r"'a\\n' is stored as Q2_K"),
    ([], [("a", [4], 0, 0), ("a", [4], 0, 0)], {}, "two of its tensors have the same name"),
    ([], [("a", [4], 0, 0), ("b", [2], 0, 0)], {}, "the tensor 'b' begins before the one before it ends"),
    ([], [("a" * 65, [4], 0, 0)], {}, "a name has 65 bytes, expected at most 64"),
    ([], [(b"\xff", [4], 0, 0)], {}, "is not UTF-8"),
    ([("k", 4, 1), ("k", 4, 1)], [], {}, "two of its keys are the same"),
    ([("k" * 2**16, 4, 1)], [], {}, "a name has 65,536 bytes"),
    ([("k", 8, b"\x80")], [], {}, "is not UTF-8"),
    ([("k", 0, 2), ("x", 9, (9, [(9, [(9, [(9, [(4, [])])])])]))], [], {}, "an array before byte"),
    ([("general.alignment", 4, 0)], [], {}, "its alignment is '0', expected a power of two"),
    ([("general.alignment", 4, 48)], [], {}, "its alignment is '48'"),
    ([("general.alignment", 8, "32")], [], {}, "its alignment is '32'"),
    ([], [], dict(version=1), "of version 1, expected 2 or 3: convert it again"),
    ([], [], dict(version=3 << 24), "for big-endian machines"),
])  # fmt: skip
def test_what_is_wrong_is_said(pairs, tensors, how, said, tmp_path):
    (tmp_path / "x").write_bytes(pack(pairs, tensors, bytes(16), **how))
    with pytest.raises(SerializationError, match=said) as error:
        gguf.read(tmp_path / "x")
    assert "\n" not in str(error.value) and str(tmp_path / "x") in str(error.value)


def test_a_newer_version_is_said_to_be_one(tmp_path):
    with pytest.raises(VersionError, match="of version 4, expected 2 or 3: a newer gpt2c may read it"):
        gguf.read(file(tmp_path / "x", version=4))


def test_types_that_there_are_not(tmp_path):
    key = struct.pack("<Q", 1) + b"k"
    for value in struct.pack("<I", 13), struct.pack("<2IQ", 9, 13, 0), struct.pack("<IB", 7, 2), struct.pack("<2IQB", 9, 7, 1, 3):
        (tmp_path / "x").write_bytes(b"GGUF" + struct.pack("<I2Q", 3, 0, 1) + key + value)
        with pytest.raises(SerializationError, match="of type 13|neither 0 nor 1"):
            gguf.read(tmp_path / "x")


def test_lengths_are_not_believed(tmp_path):
    """Whatever number stands in the place of any other, reading takes no more memory than the file has."""
    whole = pack([("texts", 9, (8, ["a"] * 9)), ("n", 9, (12, [0.5] * 9)), ("t", 8, "b")], *laid_out(ARRAYS))
    tracemalloc.start()
    for at, value in itertools.product(range(8, len(whole) - 200, 4), (2**16, 2**24, 2**31, 2**40, HUGE)):
        (tmp_path / "x").write_bytes(whole[:at] + struct.pack("<Q", value) + whole[at + 8 :])
        try:
            gguf.read(tmp_path / "x")
        except InputError:
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_headers_have_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "MOST_BYTES", 1000)
    with pytest.raises(SerializationError, match="its header has more than 1,000 bytes"):
        gguf.read(file(tmp_path / "x", [("k", 8, "a" * 1000)]))
    monkeypatch.setattr(gguf, "MOST_TEXTS", 20)
    gguf.read(file(tmp_path / "x", [("k", 9, (8, ["a"] * 10)), ("l", 9, (8, ["a"] * 10))]))
    with pytest.raises(SerializationError, match="has 11 elements"):
        gguf.read(file(tmp_path / "x", [("k", 9, (8, ["a"] * 10)), ("l", 9, (8, ["a"] * 11))]))


def test_every_file_that_was_cut_is_refused(tmp_path):
    path = file(tmp_path / "x", [("k", 8, "abc"), ("l", 9, (4, [1, 2]))])
    whole = path.read_bytes().rstrip(b"\0")
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(SerializationError):
            gguf.read(path)


def test_another_file_in_its_place_is_refused(tmp_path):
    content = gguf.read(file(tmp_path / "x"))
    (tmp_path / "x").unlink()
    file(tmp_path / "x", [("k", 8, "")])
    with pytest.raises(SerializationError, match="is another file than when its header was read"):
        contents(content, "a")


def test_the_types_are_those_of_the_hand_packer():
    assert {number: np.dtype(form).itemsize for number, form in gguf.NUMBERS.items()} == {
        number: struct.calcsize(form) for number, form in FORMS.items() if number != 7
    }
