"""Folders of Hugging Face: models of transformers compute what they compute there, go both ways to the bit, and what gpt2c has
not is said."""

import json
import tracemalloc

import numpy as np
import pytest
from hand_safetensors import golden_folder, pack, unpack
from programs import call

import gpt2c
from gpt2c import formats
from gpt2c.errors import Gpt2cError, InputError, SerializationError, UsageError
from gpt2c.formats import safetensors
from gpt2c.formats.weights import loaded
from gpt2c.models import files
from gpt2c.tokenizers.tokenizer import Tokenizer

KINDS = "gpt2", "llama", "mistral", "qwen2", "qwen3"
DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
kinds, dtypes = pytest.mark.parametrize("kind", KINDS), pytest.mark.parametrize("dtype", DTYPES)
SIZES = dict(vocab_size=50, channels=16, num_layers=2, num_heads=4, max_seq_len=12)


def document(path, name="config.json"):
    return json.loads((path / name).read_text())


def changed(path, **values):
    """A folder whose config.json says this too; None: does not say it."""
    said = {key: value for key, value in (document(path) | values).items() if value is not None}
    (path / "config.json").write_text(json.dumps(said))
    return path


def tensors_of(path):
    return unpack((path / "model.safetensors").read_bytes())


def refusal(path):
    """The sentence that refuses a folder."""
    with pytest.raises(SerializationError) as error:
        gpt2c.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- transformers' numbers


@kinds
def test_loss_logits_gradients_and_greedy_tokens_are_those_of_transformers(kind, tmp_path):
    golden = golden_folder(tmp_path / "x", kind)
    model = gpt2c.load(tmp_path / "x")
    assert model.forward(golden["tokens"], golden["targets"]) == pytest.approx(float(golden["loss"]), rel=2e-6)
    assert abs(model.logits[..., :41] - golden["logits"]).max() <= 1e-4
    model.zero_grad()
    model.backward()
    golden_folder(tmp_path / "grads", kind, of="grads")
    for name, tensor in formats.read(tmp_path / "grads").tensors.items():
        expected = loaded(tensor)
        assert np.linalg.norm(model.grads[name] - expected) <= 1e-4 * np.linalg.norm(expected), name
    found = list(gpt2c.generate(model, golden["tokens"][0, :5].tolist(), 20, temperature=0))
    assert found[-20:] == golden["greedy"].tolist()


# ---- both ways


@dtypes
@kinds
def test_a_folder_comes_back_to_the_bit(kind, dtype, tmp_path):
    golden_folder(tmp_path / "a", kind, dtype)
    formats.write(tmp_path / "b/", files.read(tmp_path / "a").alone())  # a Path has no slash at its end
    assert formats.format_of(tmp_path / "b") is formats.NATIVE
    formats.write(f"{tmp_path}/c/", files.read(tmp_path / "a").alone())
    gpt2c.load(tmp_path / "a").save(f"{tmp_path}/d/", dtype=DTYPES[dtype])
    expected, said = tensors_of(tmp_path / "a"), document(tmp_path / "a")
    torch_type = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    allowed = {"mistral": {"architectures", "model_type"}, "gpt2": {"attn_pdrop", "embd_pdrop", "resid_pdrop"}}.get(kind, set())
    for path in tmp_path / "c", tmp_path / "d":
        assert tensors_of(path) == expected
        again = document(path)
        assert again["dtype"] == again["torch_dtype"] == torch_type
        ignored = {"dtype", "transformers_version", "use_cache", "initializer_range", "layer_types", "max_window_layers"}
        known = {key: value for key, value in said.items() if key in again and key not in ignored}
        assert {"architectures", "model_type", "vocab_size"} <= known.keys()
        assert {key for key in known if again[key] != known[key]} == allowed  # without windows it is a llama; no dropout
        assert files.read(path).config == files.read(tmp_path / "a").config


@kinds
def test_a_model_in_several_files_is_the_same(kind, tmp_path, monkeypatch):
    golden_folder(tmp_path / "a", kind, shards=3)
    golden_folder(tmp_path / "b", kind)
    model = gpt2c.load(tmp_path / "a")
    assert model.params.flat.tobytes() == gpt2c.load(tmp_path / "b").params.flat.tobytes()
    monkeypatch.setattr(safetensors, "MOST_DATA", 5000)
    model.save(f"{tmp_path}/c/")
    index = document(tmp_path / "c", "model.safetensors.index.json")
    names = sorted(path.name for path in (tmp_path / "c").glob("*.safetensors"))
    assert names == [f"model-{n:05}-of-{len(names):05}.safetensors" for n in range(1, len(names) + 1)] and len(names) > 2
    assert set(index["weight_map"].values()) == set(names)
    found = {name: tensor for file in names for name, tensor in unpack((tmp_path / "c" / file).read_bytes()).items()}
    assert found == tensors_of(tmp_path / "b")
    assert index["metadata"]["total_size"] == sum(len(data) for *_, data in found.values())
    assert max((tmp_path / "c" / name).stat().st_size for name in names) < 5000 + 4000
    assert gpt2c.load(tmp_path / "c").params.flat.tobytes() == model.params.flat.tobytes()


def test_numbers_that_are_no_numbers_are_copied_as_they_are(tmp_path):
    golden_folder(tmp_path / "a", "qwen2", "BF16")
    data = bytearray((tmp_path / "a/model.safetensors").read_bytes())
    data[-2:] = b"\x85\x7f"  # a NaN with a payload
    (tmp_path / "a/model.safetensors").write_bytes(data)
    formats.write(f"{tmp_path}/b/", files.read(tmp_path / "a").alone())
    assert tensors_of(tmp_path / "b") == tensors_of(tmp_path / "a")


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "qwen3"])
def test_a_folder_becomes_gguf_and_a_folder_again(kind, tmp_path):
    golden_folder(tmp_path / "a", kind)
    formats.write(tmp_path / "x.gguf", files.read(tmp_path / "a").alone())
    formats.write(f"{tmp_path}/b/", files.read(tmp_path / "x.gguf").alone())
    assert tensors_of(tmp_path / "b") == tensors_of(tmp_path / "a")


def test_what_is_quantised_becomes_float32_and_is_said(tmp_path):
    gpt2c.create("llama", **SIZES | {"channels": 64}).save(tmp_path / "x.gguf", dtype="q8_0")
    notes = formats.write(f"{tmp_path}/a/", files.read(tmp_path / "x.gguf").alone())
    assert notes[0] == "f32: tensors that were q8_0, which such a folder has not (15)" and len(notes) == 2
    assert {dtype for dtype, *_ in tensors_of(tmp_path / "a").values()} == {"F32"}
    assert gpt2c.load(tmp_path / "a").params.flat.tobytes() == gpt2c.load(tmp_path / "x.gguf").params.flat.tobytes()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_tensor_at_a_time_is_in_memory(family, tmp_path):
    gpt2c.create(family, vocab_size=4096, channels=256, num_layers=16, num_heads=4, max_seq_len=8).save(f"{tmp_path}/a/")
    for source, target, dtype in (
        ("a", "x.gguf", ""), ("x.gguf", "b/", ""), ("a", "c/", "bf16"), ("a", "x.safetensors", ""), ("x.safetensors", "d/", ""),
    ):  # fmt: skip
        content = files.read(tmp_path / source)
        sizes = [tensor.nbytes for tensor in content.weights.tensors.values()]
        tracemalloc.start()
        formats.write(f"{tmp_path}/{target}", content.alone(), dtype=dtype)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < max(sizes) + 4 * 2**20 < sum(sizes) / 1.5, (source, target)


# ---- what else a folder says


def test_what_gpt2c_says_of_a_model_comes_back(tmp_path):
    model = gpt2c.create("gpt2", **SIZES)
    model.description, model.turns, model.sampling = "says “é”", 3, {"temperature": 0.7, "top_k": 40, "min_p": 0.05}
    model.save(f"{tmp_path}/a/")
    assert document(tmp_path / "a")["gpt2c"] == {"description": "says “é”", "turns": 3}
    generation = document(tmp_path / "a", "generation_config.json")
    assert generation["do_sample"] is True and generation["top_k"] == 40
    again = gpt2c.load(tmp_path / "a")
    assert (again.description, again.turns, again.sampling) == (model.description, model.turns, model.sampling)
    (tmp_path / "a/generation_config.json").write_text(json.dumps(generation | {"do_sample": False}))
    assert gpt2c.load(tmp_path / "a").sampling == {}  # transformers takes the likeliest token, whatever else is there
    (tmp_path / "a/generation_config.json").write_text(json.dumps(generation | {"top_p": 7}))
    assert "its sampling is {" in refusal(tmp_path / "a")
    (tmp_path / "a/generation_config.json").write_text(json.dumps(generation | {"temperature": 10**400}))
    assert "its sampling is {" in refusal(tmp_path / "a")
    (tmp_path / "a/generation_config.json").unlink()
    assert "its turns is 'x'" in refusal(changed(tmp_path / "a", gpt2c={"turns": "x"}))


@pytest.mark.parametrize("said, expected", [
    (dict(rope_parameters=None, rope_theta=5e5), (5e5, "")),
    (dict(rope_parameters=None), (1e4, "")),
    (dict(rope_parameters={"rope_type": "default"}, rope_theta=7e5), (7e5, "")),
    (dict(rope_parameters=None, rope_theta=500000, rope_scaling={
        "type": "llama3", "factor": 32, "low_freq_factor": 1, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }), (5e5, "llama3:32.0,1.0,4.0,8192")),
    (dict(head_dim=None, num_key_value_heads=None), (100.0, "llama3:8.0,1.0,4.0,16")),
    (dict(layer_types=["full_attention"] * 2, sliding_window=4), (100.0, "llama3:8.0,1.0,4.0,16")),
])  # fmt: skip
def test_older_versions_say_it_otherwise(said, expected, tmp_path):
    golden_folder(tmp_path / "x", "llama")
    config = gpt2c.load(changed(tmp_path / "x", **said)).config
    assert (config.rope_theta, config.rope_scaling) == expected
    assert (config.head_dim, config.num_kv_heads, config.norm_eps, config.tied) == (4, 2, 1e-5, False)


@pytest.mark.parametrize("kind, prefix, buffers", [
    ("gpt2", "transformer.", {"transformer.h.0.attn.bias": ("U8", [2], b"01"), "h.1.attn.masked_bias": ("F32", [], bytes(4))}),
    ("qwen2", "model.", {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F64", [2], bytes(16))}),
])  # fmt: skip
def test_other_files_have_other_names_and_more_tensors(kind, prefix, buffers, tmp_path):
    golden_folder(tmp_path / "x", kind)
    before, tensors = gpt2c.load(tmp_path / "x").params.flat.tobytes(), tensors_of(tmp_path / "x")
    table = next(name for name in tensors if name.endswith(("wte.weight", "embed_tokens.weight")))
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    for more in buffers, {"lm_head.weight": tensors[table]}:
        (tmp_path / "x/model.safetensors").write_bytes(pack(bare | more))
        assert gpt2c.load(tmp_path / "x").params.flat.tobytes() == before
    for more, said in [
        ({"lm_head.weight": (*tensors[table][:2], bytes(len(tensors[table][2])))}, "lm_head.weight is not "),
        (dict([next(iter(tensors.items()))]), "both with and without"),
        ({"score\n.weight": ("F32", [1], bytes(4))}, r"tensors that such a model has not: 'score\n.weight'"),
    ]:
        (tmp_path / "x/model.safetensors").write_bytes(pack(bare | more))
        assert said in refusal(tmp_path / "x")


# ---- what gpt2c has not


@pytest.mark.parametrize("kind, said, why", [
    ("gpt2", dict(model_type="gemma3"), "holds a model of type 'gemma3'; gpt2c reads gpt2, llama, mistral, qwen2, qwen3"),
    ("gpt2", dict(model_type=None), "its model_type is missing, expected text"),
    ("gpt2", dict(activation_function="relu"), "its activation_function is 'relu'; gpt2c's gpt2 knows 'gelu_new' only"),
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
    ("gpt2", dict(scale_attn_weights=False), "its scale_attn_weights is False; gpt2c's gpt2 knows True only"),
    ("gpt2", dict(reorder_and_upcast_attn=True), "reorder_and_upcast_attn is True"),
    ("gpt2", dict(add_cross_attention=True), "add_cross_attention is True"),
    ("gpt2", dict(layer_norm_epsilon=1e-6), "its layer_norm_epsilon is 1e-06; gpt2c's gpt2 knows 1e-05 only"),
    ("gpt2", dict(tie_word_embeddings=False), "tie_word_embeddings is False"),
    ("gpt2", dict(n_inner=7), "its n_inner is 7, and 64 by its tensors"),
    ("gpt2", dict(n_head=3), "it has 16 channels and 3 heads, expected a multiple"),
    ("gpt2", dict(n_layer=3), "it has no tensor h.2.ln_1.weight"),
    ("gpt2", dict(n_layer=1), "tensors that such a model has not: 'h.1.attn.c_attn.bias'"),
    ("gpt2", dict(n_layer=10**30), "it says that it has 1000000000000000000000000000000 layers, and has 28 tensors"),
    ("gpt2", dict(n_layer=True), "its n_layer is True, expected a whole number"),
    ("llama", dict(quantization_config={"bits": 4}), "its quantization_config is {'bits': 4}; gpt2c's llama has none"),
    ("llama", dict(hidden_act="gelu"), "its hidden_act is 'gelu'; gpt2c's llama knows 'silu' only"),
    ("llama", dict(attention_bias=True), "its attention_bias is True"),
    ("llama", dict(mlp_bias=True), "its mlp_bias is True"),
    ("llama", dict(num_local_experts=8), "its num_local_experts is 8; gpt2c's llama has none"),
    ("llama", dict(partial_rotary_factor=0.5), "its partial_rotary_factor is 0.5"),
    ("llama", dict(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}), "its partial_rotary_factor is 0.5"),
    ("llama", dict(rope_parameters={"rope_theta": 1e4, "rope_type": "yarn"}), "scales RoPE as 'yarn'; gpt2c's llama knows def"),
    ("llama", dict(rope_parameters={"rope_theta": 1e4, "rope_type": "llama3"}), "its factor is missing, expected a number"),
    ("llama", dict(rope_parameters=[1]), "its rope_parameters is [1], expected an object"),
    ("llama", dict(max_position_embeddings=None), "its max_position_embeddings is missing"),
    ("llama", dict(num_attention_heads=3), "16 and 8 rows are no 3 heads of an even size"),
    ("llama", dict(num_key_value_heads=4), "its num_key_value_heads is 4, and 2 by its tensors"),
    ("llama", dict(tie_word_embeddings=True), "lm_head.weight is not embed_tokens.weight"),
    ("llama", dict(rms_norm_eps=float("inf")), "its rms_norm_eps is inf, expected a number"),
    ("llama", dict(rms_norm_eps=10**400), "its rms_norm_eps is 1000"),
    ("mistral", dict(sliding_window=8), "attention has a sliding window of 8, which gpt2c's llama has not"),
    ("qwen2", dict(tie_word_embeddings=False), "it has no tensor lm_head.weight"),
    ("qwen2", dict(model_type="llama"), "tensors that such a model has not: 'layers.0.self_attn.k_proj.bias'"),
    ("qwen3", dict(layer_types=["full_attention", "sliding_attention"], sliding_window=8), "has a sliding window of 8"),
    ("qwen3", dict(layer_types=None, use_sliding_window=True, sliding_window=8, max_window_layers=1), "a sliding window of 8"),
])  # fmt: skip
def test_what_gpt2c_has_not_is_said(kind, said, why, tmp_path):
    golden_folder(tmp_path / "x", kind)
    assert why in refusal(changed(tmp_path / "x", **said))


def test_windows_that_are_never_left_are_none(tmp_path):
    golden_folder(tmp_path / "x", "mistral")
    gpt2c.load(changed(tmp_path / "x", sliding_window=32))
    golden_folder(tmp_path / "y", "qwen2")
    gpt2c.load(changed(tmp_path / "y", layer_types=None, use_sliding_window=True, sliding_window=8, max_window_layers=2))


@pytest.mark.parametrize("fields, why", [
    (dict(qkv_bias=True, qk_norm=True), "has no llama with both biases and norms of queries and keys"),
    (dict(rope_scaling="factors:1.0,2.0"), "has no factors of RoPE"),
])  # fmt: skip
def test_a_model_that_hugging_face_has_no_name_for_is_not_written(fields, why, tmp_path):
    with pytest.raises(UsageError, match=why):
        gpt2c.create("llama", **SIZES, **fields).save(f"{tmp_path}/x/")
    with pytest.raises(UsageError, match="a folder of Hugging Face holds models of gpt2, llama, not of mingru"):
        gpt2c.create("mingru", dim=4, depth=1, vocab_size=5).save(f"{tmp_path}/x/")
    assert not list(tmp_path.iterdir())


def test_numbers_too_large_for_a_dtype_leave_nothing_behind(tmp_path):
    model = gpt2c.create("gpt2", **SIZES)
    model.params["wpe"][0, 0] = 1e6
    with pytest.raises(UsageError, match="wpe.weight cannot be f16"):
        model.save(f"{tmp_path}/x/", dtype="f16")
    with pytest.raises(UsageError, match="dtype 'q8_0' is none of a folder of Hugging Face"):
        model.save(f"{tmp_path}/x/", dtype="q8_0")
    assert not list(tmp_path.iterdir())


# ---- folders that are there


def test_the_tokenizer_comes_back(tmp_path):
    model = gpt2c.create("llama", **SIZES | {"vocab_size": 300})
    made = model.tokenizer = Tokenizer.make("byte", specials=("<s>", "</s>", "<|im_end|>"))
    made.chat_template, made.ends, made.adds_bos = "{{ messages[0].content }}", [258, 257], True
    model.save(f"{tmp_path}/x/")
    assert document(tmp_path / "x")["eos_token_id"] == [258, 257] and document(tmp_path / "x")["bos_token_id"] == 256
    assert document(tmp_path / "x", "generation_config.json") == {"bos_token_id": 256, "eos_token_id": [258, 257]}
    again = gpt2c.load(tmp_path / "x").tokenizer
    assert (again.chat_template, again.ends, again.adds_bos, again.bos) == (made.chat_template, made.ends, True, 256)
    assert again.encode("é</s>", special=True) == made.encode("é</s>", special=True)
    (tmp_path / "x/tokenizer.json").write_text('{"model": 3}')
    assert "its tokenizer cannot be used" in refusal(tmp_path / "x")
    (tmp_path / "x/tokenizer.json").unlink()
    weights = formats.read(tmp_path / "x")
    assert weights.tokenizer is None and "no tokenizer.json" in weights.facts["tokenizer in the folder"]


def test_a_folder_that_is_not_empty_is_overwritten_only_if_that_is_asked_for(tmp_path):
    folder, model = tmp_path / "x", gpt2c.create("gpt2", **SIZES)
    folder.mkdir()
    model.save(folder)
    before = tensors_of(folder)
    model.params.flat[...] += 1
    with pytest.raises(UsageError, match="is not empty; choose another folder, or overwrite it"):
        model.save(folder)
    assert tensors_of(folder) == before
    (folder / "merges.txt").write_text("")
    model.save(folder, overwrite=True)
    assert tensors_of(folder) != before and not (folder / "merges.txt").exists() and list(tmp_path.iterdir()) == [folder]
    (folder / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="'thesis.tex' in it is no part of a model"):
        model.save(folder, overwrite=True)
    assert (folder / "thesis.tex").exists()


def test_folders_without_a_model_are_said(tmp_path):
    with pytest.raises(InputError, match="is a folder without a config.json: it holds no model"):
        gpt2c.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("")
    assert "has no model.safetensors (what it has in .bin files is Python's pickle)" in refusal(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    for text in "", "[]", "{", '{"a": ' * 100_000, '{"a": ' + "9" * 5000 + "}":
        (tmp_path / "config.json").write_text(text)
        assert "config.json is not valid: it is no" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "merges.txt").write_bytes(b"\xff")
    assert "merges.txt is not valid: it is not UTF-8" in refusal(tmp_path)
    with pytest.raises(Gpt2cError, match="of a Hugging Face model, name the folder"):
        golden_folder(tmp_path / "x", "gpt2")
        gpt2c.load(tmp_path / "x/model.safetensors")


def test_convert_and_info(tmp_path):
    golden_folder(tmp_path / "a", "llama", "BF16")
    done = call(tmp_path, "convert", "a", "b/", "--dtype", "f16", "--description", "other")
    assert "b/: llama, " in done.stdout
    assert "is not empty" in call(tmp_path, "convert", "a", "b", code=2).stderr
    call(tmp_path, "convert", "a", "b", "--overwrite", "--description", "third")
    said = json.loads(call(tmp_path, "info", "b", "--json").stdout)
    assert said["format"] == "Hugging Face, model type llama" and said["tensors"] == "21 bf16" and said["description"] == "third"
    assert "holds no model" in call(tmp_path, "convert", ".", "c/", code=4).stderr
    assert "is not the folder of a run" in call(tmp_path, "info", ".", code=4).stderr
