"""GPT-2 in GGUF files: names, metadata, tokenizer, storage types; against files packed by hand and, where it is installed, the
gguf package."""

import json
import tracemalloc

import numpy as np
import pytest
from hand_gguf import BLOCKS, apart, bytes_of, laid_out, pack, together
from programs import call

import gpt2c
from gpt2c import formats
from gpt2c.errors import SerializationError, UsageError
from gpt2c.formats import blocks, gguf, gguf_models
from gpt2c.models import files
from gpt2c.tokenizers.byte_level import GPT2_BYTES
from gpt2c.tokenizers.tokenizer import Tokenizer

V, T, L, H, C = 300, 8, 2, 4, 64
CONFIG = dict(vocab_size=V, max_seq_len=T, num_layers=L, num_heads=H, channels=C)
LAYER = {
    "attn_norm.weight": ("ln1w", (C,)),
    "attn_norm.bias": ("ln1b", (C,)),
    "attn_qkv.weight": ("qkvw", (3 * C, C)),
    "attn_qkv.bias": ("qkvb", (3 * C,)),
    "attn_output.weight": ("attprojw", (C, C)),
    "attn_output.bias": ("attprojb", (C,)),
    "ffn_norm.weight": ("ln2w", (C,)),
    "ffn_norm.bias": ("ln2b", (C,)),
    "ffn_up.weight": ("fcw", (4 * C, C)),
    "ffn_up.bias": ("fcb", (4 * C,)),
    "ffn_down.weight": ("fcprojw", (C, 4 * C)),
    "ffn_down.bias": ("fcprojb", (C,)),
}
SHAPES = {"token_embd.weight": (V, C), "position_embd.weight": (T, C), "output_norm.weight": (C,), "output_norm.bias": (C,)}
SHAPES |= {f"blk.{l}.{name}": shape for l in range(L) for name, (_, shape) in LAYER.items()}
PAIRS = [
    ["general.architecture", 8, "gpt2"],
    ["general.name", 8, "tiny"],
    ["gpt2.block_count", 4, L],
    ["gpt2.context_length", 4, T],
    ["gpt2.embedding_length", 4, C],
    ["gpt2.feed_forward_length", 4, 4 * C],
    ["gpt2.attention.head_count", 4, H],
    ["gpt2.attention.layer_norm_epsilon", 6, 1e-5],
]
BPE = Tokenizer([*GPT2_BYTES, b"th", b"the", b" the", b"<|endoftext|>"], eot=259)


def packed(path, kind=0, pairs=PAIRS):
    """A file of random numbers: matrices in blocks of this type where their rows are whole ones, all else float32."""
    rng, arrays = np.random.default_rng(kind), []
    for name, shape in SHAPES.items():
        elements, size = BLOCKS[kind]
        if len(shape) == 1 or shape[-1] % elements:
            arrays.append((name, shape, 0, rng.standard_normal(shape, np.float32).tobytes()))
        else:
            arrays.append((name, shape, kind, rng.bytes(int(np.prod(shape)) // elements * size)))
    path.write_bytes(pack(pairs, *laid_out(arrays)))
    return path


def model(tokenizer=None, **fields):
    made = gpt2c.create("gpt2", **CONFIG | fields)
    made.tokenizer, made.description = tokenizer, "tiny"
    return made


def parameter(params, name):
    """The array of a model that a tensor of a file is."""
    if name.startswith("blk."):
        _, layer, rest = name.split(".", 2)
        return params[LAYER[rest][0]][int(layer)]
    ours = {"token_embd.weight": "wte", "position_embd.weight": "wpe", "output_norm.weight": "lnfw", "output_norm.bias": "lnfb"}
    return params[ours[name]][: SHAPES[name][0]]


def numbers(kind, data):
    elements, size = BLOCKS[kind]
    out = np.empty(len(data) // size * elements, np.float32)
    blocks.decode(gguf.KINDS[kind], np.frombuffer(data, np.uint8), out)
    return out


# ---- tensors


@pytest.mark.parametrize("kind", BLOCKS)
def test_files_of_every_storage_type_are_read_and_copied_as_they_are(kind, tmp_path):
    path = packed(tmp_path / "a", kind)
    tensors, _ = bytes_of(path.read_bytes())
    assert kind in {tensor[0] for tensor in tensors.values()}
    loaded = gpt2c.load(path)
    assert loaded.config == model().config and loaded.config.padded_vocab_size == 384 and loaded.description == "tiny"
    for name, (kind_of, _, data) in tensors.items():
        found = parameter(loaded.params, name).reshape(-1)
        np.testing.assert_array_equal(found.view(np.uint32), numbers(kind_of, data).view(np.uint32), name)
    assert not loaded.params["wte"][V:].any()
    formats.write(tmp_path / "b.gguf", files.read(path).alone())
    again, said = bytes_of((tmp_path / "b.gguf").read_bytes())
    assert again == tensors
    assert {key: said[key] for key, *_ in PAIRS} == {
        key: pytest.approx(value) if kind == 6 else value for key, kind, value in PAIRS
    }


@pytest.mark.parametrize(
    "dtype, kind", [("f32", 0), ("f16", 1), ("bf16", 30), ("q8_0", 8), ("q4_0", 2), ("q4_1", 3), ("q5_0", 6)]
)
def test_a_model_is_written_in_each_type_and_the_file_comes_back_from_a_checkpoint(dtype, kind, tmp_path):
    model(BPE).save(tmp_path / "a.gguf", dtype=dtype)
    tensors, said = bytes_of((tmp_path / "a.gguf").read_bytes())
    kinds = {name: kind_of for name, (kind_of, *_) in tensors.items()}
    head = 8 if dtype.startswith("q4") else kind
    wanted = {"token_embd.weight": head, "position_embd.weight": 0}
    assert kinds == {name: wanted.get(name, kind if len(shape) > 1 else 0) for name, shape in SHAPES.items()}
    assert {name: dims for name, (_, dims, _) in tensors.items()} == {n: list(shape[::-1]) for n, shape in SHAPES.items()}
    assert said["general.file_type"] == gguf_models.FILE_TYPES[dtype] and said["general.architecture"] == "gpt2"
    gpt2c.load(tmp_path / "a.gguf").save(tmp_path / "b.safetensors")
    gpt2c.load(tmp_path / "b.safetensors").save(tmp_path / "c.gguf", dtype=dtype)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()


def test_what_is_not_of_the_type_that_was_asked_for_is_said(tmp_path):
    weights = model(channels=48).weights()
    notes = formats.write(tmp_path / "x.gguf", weights, dtype="q4_1")
    assert notes == [
        "f16: tensors whose rows are no multiple of 32 numbers (7)",
        "f32: position_embd.weight, which llama.cpp adds as it is (1)",
        "f32: tensors of one dimension (18)",
        "written without a tokenizer: the model has no tokenizer",
    ]
    weights.tensors["fcw"][1, 3] = 1e6
    with pytest.raises(UsageError, match=r"blk.1.ffn_up.weight cannot be f16: it has numbers that are infinite or too large"):
        formats.write(tmp_path / "y.gguf", weights, dtype="f16")
    assert not (tmp_path / "y.gguf").exists()


def test_a_head_that_is_the_token_table_may_be_there(tmp_path):
    version, pairs, tensors, data = apart(packed(tmp_path / "a").read_bytes())
    table = next(tensor for tensor in tensors if tensor[0] == "token_embd.weight")
    data = bytes.fromhex(data)
    rows = data[table[3] : table[3] + 4 * V * C]
    tensors.append(["output.weight", table[1], 0, len(data)])
    (tmp_path / "b").write_bytes(together([version, pairs, tensors, (data + rows).hex()]))
    assert gpt2c.load(tmp_path / "b").params.flat.tobytes() == gpt2c.load(tmp_path / "a").params.flat.tobytes()
    (tmp_path / "b").write_bytes(together([version, pairs, tensors, (data + bytes(len(rows))).hex()]))
    with pytest.raises(SerializationError, match="output.weight is not token_embd.weight; gpt2c's gpt2 has one matrix for both"):
        gpt2c.load(tmp_path / "b")


@pytest.mark.parametrize("source, target", [
    ("a.gguf", "b.gguf"), ("a.gguf", "b.safetensors"), ("a.gguf", "b.bin"), ("a.bin", "b.gguf"), ("a.bin", "b.safetensors"),
])  # fmt: skip
def test_one_tensor_at_a_time_is_in_memory(source, target, tmp_path):
    model(channels=128, num_layers=16).save(tmp_path / source)
    content = files.read(tmp_path / source)
    sizes = [tensor.nbytes for tensor in content.weights.tensors.values()]
    tracemalloc.start()
    formats.write(tmp_path / target, content.alone())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < max(sizes) + 3 * 2**20 < sum(sizes) / 1.5


# ---- tokenizers


@pytest.mark.parametrize("tokenizer", [BPE, Tokenizer.make("byte", specials=("<|bos|>", "</s>"))])
def test_the_tokenizer_comes_back(tokenizer, tmp_path):
    model(tokenizer).save(tmp_path / "x.gguf")
    _, said = bytes_of((tmp_path / "x.gguf").read_bytes())
    assert said["tokenizer.ggml.model"] == "gpt2" and said["tokenizer.ggml.pre"] == "gpt-2"
    tokens, kinds = said["tokenizer.ggml.tokens"][1], said["tokenizer.ggml.token_type"][1]
    assert len(tokens) == len(kinds) == V and tokens[said["tokenizer.ggml.eos_token_id"]] in ("<|endoftext|>", "</s>")
    assert [id for id, kind in enumerate(kinds) if kind == 3] == sorted(tokenizer._specials)
    assert {kind for kind in kinds[tokenizer.vocab_size :]} == {5}
    assert said["tokenizer.ggml.merges"][1] == (["t h", "th e", "Ġ the"] if tokenizer is BPE else ["h e"])
    again = gpt2c.load(tmp_path / "x.gguf").tokenizer
    text = "the other é日 <|endoftext|></s>"
    assert again.encode(text) == tokenizer.encode(text) and again.decode(again.encode(text)) == text
    assert again.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)
    assert (again.eot, again.bos) == (tokenizer.eot, tokenizer.bos)


def test_a_model_goes_without_a_tokenizer_that_gguf_has_no_name_for(tmp_path):
    (note,) = formats.write(tmp_path / "x.gguf", model(Tokenizer.make("char", "abc")).weights())
    assert note.startswith("written without a tokenizer: its tokenizer, of kind char, is no byte-level BPE")
    assert gpt2c.load(tmp_path / "x.gguf").tokenizer is None
    assert bytes_of((tmp_path / "x.gguf").read_bytes())[1]["tokenizer.ggml.model"] == "none"
    with pytest.raises(UsageError, match="the tokenizer has 260 ids, the model 100: give it its own"):
        model(BPE, vocab_size=100).save(tmp_path / "y.gguf")


@pytest.mark.parametrize("change, why", [
    ({"model": "llama"}, "of kind 'llama', which gpt2c does not read"), ({"pre": "other"}, "splits text as 'other'"),
])  # fmt: skip
def test_a_model_is_read_without_a_tokenizer_that_gpt2c_has_not(change, why, tmp_path):
    pairs = [*PAIRS, ["tokenizer.ggml.model", 8, change.get("model", "gpt2")], ["tokenizer.ggml.pre", 8, change.get("pre", "x")]]
    weights = formats.read(packed(tmp_path / "x", pairs=pairs))
    assert weights.tokenizer is None and weights.facts["tokenizer in the file"].startswith(why)


# ---- what is wrong


def changed(path, change):
    """The file with its pairs, a dict {key: [type, value]}, and its tensors, {name: [dims, type, offset]}, changed."""
    version, pairs, tensors, data = apart(path.read_bytes())
    pairs, tensors = {key: rest for key, *rest in pairs}, {name: rest for name, *rest in tensors}
    change(pairs, tensors)
    path.write_bytes(together([version, [[k, *r] for k, r in pairs.items()], [[n, *r] for n, r in tensors.items()], data]))


def swapped(tensors, a, b):
    tensors[a], tensors[b] = tensors[b], tensors[a]


@pytest.mark.parametrize("change, said", [
    (lambda p, t: p.pop("general.architecture"), "its general.architecture is missing, expected text"),
    (lambda p, t: p.update({"general.architecture": [8, "llama\n"]}), r"of architecture 'llama\\n'; gpt2c reads gpt2"),
    (lambda p, t: p.update({"general.type": [8, "adapter"]}), "holds no model: its general.type is 'adapter'"),
    (lambda p, t: p.update({"split.count": [2, 3]}), "is one of 3 files of a model"),
    (lambda p, t: p.update({"general.name": [4, 3]}), "its general.name is '3', expected text"),
    (lambda p, t: p.pop("gpt2.block_count"), "its gpt2.block_count is missing, expected a whole number"),
    (lambda p, t: p.update({"gpt2.block_count": [7, True]}), "its gpt2.block_count is 'True'"),
    (lambda p, t: p.update({"gpt2.block_count": [10, 2**60]}), "it has 1,152,921,504,606,846,976 layers, and has 28 tensors"),
    (lambda p, t: p.update({"gpt2.block_count": [4, 3]}), "it has no tensor blk.2.attn_norm.weight"),
    (lambda p, t: p.update({"gpt2.block_count": [4, 1]}), "tensors that such a model has not: 'blk.1.attn_norm.bias'"),
    (lambda p, t: p.update({"gpt2.embedding_length": [4, 65]}), "its gpt2.embedding_length is 65, and 64 by its tensors"),
    (lambda p, t: p.update({"gpt2.context_length": [4, 9]}), "its gpt2.context_length is 9, and 8 by its tensors"),
    (lambda p, t: p.update({"gpt2.feed_forward_length": [4, 64]}), "its gpt2.feed_forward_length is 64, and 256"),
    (lambda p, t: p.update({"gpt2.attention.head_count": [4, 0]}), "64 channels and 0 heads"),
    (lambda p, t: p.update({"gpt2.attention.head_count": [4, 7]}), "64 channels and 7 heads"),
    (lambda p, t: p.update({"gpt2.attention.layer_norm_epsilon": [6, 1e-6]}), "LayerNorm's epsilon is 1e-06, and 1e-05 in"),
    (lambda p, t: p.update({"gpt2.attention.layer_norm_epsilon": [6, float("nan")]}), "LayerNorm's epsilon is nan"),
    (lambda p, t: t.pop("token_embd.weight"), "it has no tensor token_embd.weight"),
    (lambda p, t: t["position_embd.weight"].__setitem__(0, [C * T]), "expected 2 dimensions"),
    (lambda p, t: swapped(t, "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"), r"has shape \(64, 256\), expected \(256, 64\)"),
    (lambda p, t: t.update({"é": t.pop("output_norm.bias")}), "it has no tensor output_norm.bias"),
])  # fmt: skip
def test_what_is_wrong_is_said(change, said, tmp_path):
    changed(packed(tmp_path / "x"), change)
    with pytest.raises(SerializationError, match=said) as error:
        gpt2c.load(tmp_path / "x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change, said", [
    (lambda p: p.pop("tokens"), "its tokens and merges are not lists of texts"),
    (lambda p: p.update(tokens=[5, [1] * V]), "its tokens and merges are not lists of texts"),
    (lambda p: p.update(merges=[9, [[8, ["a"]]]]), "its tokens and merges are not lists of texts"),
    (lambda p: p["tokens"][1].pop(), "its token_type is not the kind of each of 299 tokens"),
    (lambda p: (p["tokens"][1].pop(), p["token_type"][1].pop()), "it has 299 tokens, and 300 rows for them"),
    (lambda p: p["tokens"][1].__setitem__(5, "th"), "its 260 tokens are only 259 different ones"),
    (lambda p: p["merges"][1].append("q the"), None),
    (lambda p: p["merges"][1].append("the"), "its merges do not fit its tokens"),
    (lambda p: p["token_type"].__setitem__(0, 6) or p["token_type"].__setitem__(1, [0.5] * V), "its token_type is not the kind"),
])  # fmt: skip
def test_what_is_wrong_with_a_tokenizer_is_said(change, said, tmp_path):
    def within(pairs, _):
        beginning = "tokenizer.ggml."
        lists = {key.removeprefix(beginning): value for key, (kind, value) in pairs.items() if kind == 9}
        change(lists)
        for key in [key for key, (kind, _) in pairs.items() if kind == 9]:
            del pairs[key]
        pairs.update({beginning + name: [9, value] for name, value in lists.items()})

    model(BPE).save(tmp_path / "x.gguf")
    changed(tmp_path / "x.gguf", within)
    if said is None:  # a merge that gives no token is never made
        assert gpt2c.load(tmp_path / "x.gguf").tokenizer.encode("the") == BPE.encode("the")
        return
    with pytest.raises(SerializationError, match=said) as error:
        gpt2c.load(tmp_path / "x.gguf")
    assert "\n" not in str(error.value)


# ---- the table, and programs


def test_only_gpt2_is_written_and_only_in_gguf_are_there_dtypes(tmp_path):
    other = gpt2c.create("mingru", dim=4, depth=1, vocab_size=5)
    with pytest.raises(UsageError, match="a GGUF file holds models of gpt2, llama, not of mingru: choose another ending"):
        other.save(tmp_path / "x.gguf")
    for path in tmp_path / "x.safetensors", tmp_path / "x.bin", tmp_path / "x.json":
        with pytest.raises(UsageError, match="dtype 'q8_0' is none of "):
            model().save(path, dtype="q8_0")
    with pytest.raises(UsageError, match="dtype 'q6_K' is none of a GGUF file"):
        model().save(tmp_path / "x.gguf", dtype="q6_K")
    assert not list(tmp_path.iterdir())


def test_convert_and_info(tmp_path):
    model().save(tmp_path / "a.gguf", dtype="q8_0")
    done = call(tmp_path, "convert", "a.gguf", "b.gguf", "--dtype", "q4_0", "--description", "other")
    assert "b.gguf: gpt2, " in done.stdout and "q8_0: token table and head (1)" in done.stdout
    call(tmp_path, "convert", "b.gguf", "c.safetensors")
    assert (gpt2c.load(tmp_path / "b.gguf").params.flat == gpt2c.load(tmp_path / "c.safetensors").params.flat).all()
    said = json.loads(call(tmp_path, "info", "b.gguf", "--json").stdout)
    assert said["format"] == "GGUF, version 3, architecture gpt2" and said["tensors"] == "19 f32, 8 q4_0, 1 q8_0"
    assert said["description"] == "other" and said["tokenizer in the file"] == "the file has none"
    (tmp_path / "d").write_bytes(b"GGUF")
    assert "d is not a valid GGUF file: 4 bytes are said to follow byte 4 of 4" in call(tmp_path, "info", "d", code=4).stderr


# ---- the foreign judge


def test_the_gguf_package_reads_what_is_written_and_writes_what_is_read(tmp_path):
    theirs = pytest.importorskip("gguf", reason="the gguf package is not installed")
    made = model(BPE)
    for dtype in blocks.WRITTEN:
        made.save(tmp_path / "x.gguf", dtype=dtype)
        mine, found = gpt2c.load(tmp_path / "x.gguf"), theirs.GGUFReader(tmp_path / "x.gguf")
        assert {tensor.name for tensor in found.tensors} == set(SHAPES)
        for tensor in found.tensors:
            values = theirs.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(values, parameter(mine.params, tensor.name))
        assert found.get_field("gpt2.block_count").contents() == L
        assert found.get_field("tokenizer.ggml.merges").contents() == ["t h", "th e", "Ġ the"]
    writer = theirs.GGUFWriter(tmp_path / "y.gguf", "gpt2")
    for name, add in (
        ("block_count", L), ("context_length", T), ("embedding_length", C), ("feed_forward_length", 4 * C),
        ("head_count", H), ("layer_norm_eps", 1e-5), ("tokenizer_model", "gpt2"), ("tokenizer_pre", "gpt-2"),
        ("token_list", found.get_field("tokenizer.ggml.tokens").contents()), ("token_merges", ["t h", "th e", "Ġ the"]),
    ):  # fmt: skip
        getattr(writer, f"add_{name}")(add)
    for name in SHAPES:
        writer.add_tensor(name, np.ascontiguousarray(parameter(made.params, name)))
    for step in "header", "kv_data", "tensors":
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    again = gpt2c.load(tmp_path / "y.gguf")
    assert (again.params.flat == made.params.flat).all() and again.tokenizer.encode("the") == BPE.encode("the")


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
def test_llama_cpp_goes_on_as_gpt2c_does(dtype, tmp_path):
    theirs = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    made = model(BPE, max_seq_len=64)
    made.params["wte"][BPE.eot :] = 0  # neither the end nor what is no token
    made.params.flat[...] *= 6  # logits that are far apart
    made.save(tmp_path / "x.gguf", dtype=dtype)
    mine = gpt2c.load(tmp_path / "x.gguf")
    ids = mine.tokenizer.encode("the")
    for _ in range(8):
        mine.forward(np.array([ids]))
        ids.append(int(mine.logits[0, -1, : BPE.eot].argmax()))
    params = theirs.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(tmp_path / "x.gguf"), 64, 1, False
    asked = {"prompt": "the", "max_tokens": 8, "temperature": 0}
    found = theirs.Server(params).handle_completions(asked)["choices"][0]["text"]
    assert found == mine.tokenizer.decode(ids)[3:]
