"""The llama family in GGUF files, against files packed by hand: names, the order of rows, metadata, factors of RoPE."""

import numpy as np
import pytest
from hand_gguf import BLOCKS, apart, bytes_of, laid_out, pack, together

import gpt2c
from gpt2c import formats
from gpt2c.errors import SerializationError, UsageError
from gpt2c.formats import blocks, gguf
from gpt2c.formats.weights import loaded

V, C, F, H, K, L = 40, 256, 256, 4, 2, 2
FREQUENCIES = "rope_freqs.weight"


def shapes(arch, tied=True, factors=False):
    """NumPy's, of one of the architectures; heads of qwen3 are smaller than C / H."""
    D = 32 if arch == "qwen3" else 64
    found = {"token_embd.weight": (V, C), "output_norm.weight": (C,)}
    for l in range(L):
        layer = {
            "attn_norm.weight": (C,), "attn_q.weight": (H * D, C), "attn_k.weight": (K * D, C), "attn_v.weight": (K * D, C),
            "attn_output.weight": (C, H * D), "ffn_norm.weight": (C,), "ffn_gate.weight": (F, C), "ffn_up.weight": (F, C),
            "ffn_down.weight": (C, F),
        }  # fmt: skip
        if arch == "qwen2":
            layer |= {"attn_q.bias": (H * D,), "attn_k.bias": (K * D,), "attn_v.bias": (K * D,)}
        if arch == "qwen3":
            layer |= {"attn_q_norm.weight": (D,), "attn_k_norm.weight": (D,)}
        found |= {f"blk.{l}.{name}": shape for name, shape in layer.items()}
    return found | ({} if tied else {"output.weight": (V, C)}) | ({FREQUENCIES: (D // 2,)} if factors else {})


def pairs(arch):
    found = [
        ("block_count", 4, L), ("context_length", 4, 100), ("embedding_length", 4, C), ("feed_forward_length", 4, F),
        ("attention.head_count", 4, H), ("attention.head_count_kv", 4, K), ("attention.layer_norm_rms_epsilon", 6, 1e-6),
        ("rope.freq_base", 6, 500000.0), ("rope.dimension_count", 4, 32 if arch == "qwen3" else 64), ("vocab_size", 4, V),
    ]  # fmt: skip
    if arch == "qwen3":
        found += [("attention.key_length", 4, 32), ("attention.value_length", 4, 32)]
    return [("general.architecture", 8, arch)] + [(f"{arch}.{key}", kind, value) for key, kind, value in found]


def packed(path, arch, kind=0, factors=None, **more):
    rng, arrays = np.random.default_rng(kind), []
    elements, size = BLOCKS[kind]
    for name, shape in shapes(arch, factors=factors is not None, **more).items():
        if name == FREQUENCIES:
            arrays.append((name, shape, 0, np.asarray(factors, "<f4").tobytes()))
        elif len(shape) == 1 or shape[-1] % elements:
            arrays.append((name, shape, 0, rng.standard_normal(shape, np.float32).tobytes()))
        else:
            arrays.append((name, shape, kind, rng.bytes(int(np.prod(shape)) // elements * size)))
    path.write_bytes(pack(pairs(arch), *laid_out(arrays)))
    return path


def numbers(tensor, shape):
    kind, _, data = tensor
    out = np.empty(int(np.prod(shape)), np.float32)
    blocks.decode(gguf.KINDS[kind], np.frombuffer(data, np.uint8), out)
    return out.reshape(shape)


def halves(rows, heads):
    """Rows of neighbouring elements of each head -> the elements j and j + D/2: the formula of Hugging Face's converter, back."""
    return rows.reshape(heads, len(rows) // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def told(path):
    tensors, said = bytes_of(path.read_bytes())
    return tensors, {key: float(np.float32(value)) if isinstance(value, float) else value for key, value in said.items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_files_are_read_and_copied_as_they_are(arch, kind, tied, tmp_path):
    weights = formats.read(packed(tmp_path / "a.gguf", arch, kind, tied=tied))
    tensors, said = told(tmp_path / "a.gguf")
    D = 32 if arch == "qwen3" else 64
    assert weights.family == "llama" and weights.config == dict(
        vocab_size=V, channels=C, hidden=F, num_layers=L, num_heads=H, num_kv_heads=K, head_dim=D, max_seq_len=100,
        rope_theta=500000.0, rope_scaling="", norm_eps=1e-6, tied=tied, qkv_bias=arch == "qwen2", qk_norm=arch == "qwen3",
    )  # fmt: skip
    of = {name: numbers(tensors[name], shape) for name, shape in shapes(arch, tied).items()}
    turned = halves if arch == "llama" else lambda rows, heads: rows
    expected = {"wte": of["token_embd.weight"], "lnfw": of["output_norm.weight"]}
    stacked = {"ln1w": "attn_norm", "attprojw": "attn_output", "ln2w": "ffn_norm", "gatew": "ffn_gate", "upw": "ffn_up"}
    stacked |= {"downw": "ffn_down"} | ({"qnormw": "attn_q_norm", "knormw": "attn_k_norm"} if arch == "qwen3" else {})
    expected |= {ours: np.stack([of[f"blk.{l}.{name}.weight"] for l in range(L)]) for ours, name in stacked.items()}
    for ours, end in [("qkvw", "weight")] + [("qkvb", "bias")] * (arch == "qwen2"):
        q, k, v = ([of[f"blk.{l}.attn_{x}.{end}"] for l in range(L)] for x in "qkv")
        expected[ours] = np.stack([np.concatenate([turned(q[l], H), turned(k[l], K), v[l]]) for l in range(L)])
    expected |= {} if tied else {"lm_head": of["output.weight"]}
    assert weights.tensors.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(loaded(weights.tensors[name]).view(np.uint32), values.view(np.uint32), name)
    formats.write(tmp_path / "b.gguf", weights)
    again, values = told(tmp_path / "b.gguf")
    assert again == tensors and {key: values[key] for key in said} == said


@pytest.mark.parametrize("scaling, factors", [
    ("llama3:32,1,4,8192", None), ("llama3:8,1,4,8192", None), ("factors:1.0,", np.r_[1, np.full(31, 1 / 3)]),
])  # fmt: skip
def test_the_factors_of_rope_come_back(scaling, factors, tmp_path):
    if factors is None:
        factor, low, high, original = map(float, scaling.split(":")[1].split(","))
        wavelength = 2 * np.pi * 500000.0 ** (np.arange(0, 64, 2) / 64)
        smooth = (original / wavelength - low) / (high - low)
        factors = 1 / ((1 - smooth) / factor + smooth)
        factors[wavelength < original / high], factors[wavelength > original / low] = 1, factor
        written = formats.gguf_llama.others(dict(rope_scaling=scaling, rope_theta=500000.0, head_dim=64))[FREQUENCIES]
        np.testing.assert_allclose(written, factors, rtol=1e-6)
        factors = written
    weights = formats.read(packed(tmp_path / "a.gguf", "llama", factors=factors))
    assert weights.config["rope_scaling"].startswith(scaling)
    formats.write(tmp_path / "b.gguf", weights)
    assert told(tmp_path / "b.gguf")[0] == told(tmp_path / "a.gguf")[0]


@pytest.mark.parametrize("change, said", [
    ({"expert_count": [4, 8]}, "holds a model with a mixture of experts"),
    ({"attention.sliding_window": [4, 512]}, "holds a model with sliding windows"),
    ({"rope.scaling.type": [8, "yarn"]}, "scales RoPE as 'yarn'"),
    ({"attention.head_count_kv": [4, 3]}, "are no 4 heads of an even size for 3 of"),
    ({"attention.head_count_kv": [4, 0]}, "for 0 of keys"),
    ({"attention.head_count": [4, 256]}, "are no 256 heads of an even size"),
    ({"rope.dimension_count": [4, 32]}, "its llama.rope.dimension_count is 32, and 64 by its tensors"),
    ({"rope.freq_base": [6, -1.0]}, "its rope.freq_base is -1"),
    ({"attention.layer_norm_rms_epsilon": [6, float("nan")]}, "epsilon"),
    ({"block_count": [4, 3]}, "it has no tensor blk.2.attn_norm.weight"),
])  # fmt: skip
def test_what_is_wrong_is_said(change, said, tmp_path):
    version, pairs, tensors, data = apart(packed(tmp_path / "x", "llama").read_bytes())
    found = {key: rest for key, *rest in pairs} | {f"llama.{key}": value for key, value in change.items()}
    (tmp_path / "x").write_bytes(together([version, [[key, *rest] for key, rest in found.items()], tensors, data]))
    with pytest.raises(SerializationError, match=said) as error:
        formats.read(tmp_path / "x")
    assert "\n" not in str(error.value)


def test_factors_that_are_none_are_refused(tmp_path):
    with pytest.raises(SerializationError, match="has factors that are not positive"):
        formats.read(packed(tmp_path / "x", "llama", factors=np.zeros(32)))


def test_a_model_that_gguf_has_no_name_for_is_not_written(tmp_path):
    weights = formats.read(packed(tmp_path / "x.gguf", "qwen2"))
    weights.config["qk_norm"] = True
    with pytest.raises(UsageError, match="both biases and norms"):
        formats.write(tmp_path / "y.gguf", weights)


@pytest.mark.parametrize("fields", [{}, {"qkv_bias": True, "tied": False}, {"qk_norm": True}])
def test_a_model_of_the_family_goes_both_ways(tmp_path, fields):
    sizes = dict(vocab_size=97, channels=32, hidden=64, num_layers=2, num_heads=4, num_kv_heads=2, max_seq_len=32)
    model = gpt2c.create("llama", **sizes, **fields)
    model.save(tmp_path / "x.gguf")
    again = gpt2c.load(tmp_path / "x.gguf")
    assert again.config == model.config and again.params.flat.tobytes() == model.params.flat.tobytes()
