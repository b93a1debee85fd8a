"""The llama family in GGUF: architectures llama, qwen2 and qwen3, their names there, and what the metadata say.

In an architecture llama the rows of queries and keys are in another order (Rows.heads): RoPE turns neighbours there, and in
gpt2c, as in the others, the elements j and j + D/2 of a head.
"""

import math

import numpy as np

from gpt2c.errors import SerializationError, UsageError
from gpt2c.formats.gguf import Rows, invalid, short

FREQUENCIES = "rope_freqs.weight"
LLAMA3 = ("32,1,4,8192", "8,1,4,8192")  # of Llama 3.2 and 3.1: factor, low, high, original
NOT_HERE = {"expert_count": "a mixture of experts", "attention.sliding_window": "sliding windows"}  # what must be 0 or missing


def architecture(config):
    """What GGUF calls a model of this config."""
    if config["qkv_bias"] and config["qk_norm"]:
        raise UsageError("GGUF has no llama with both biases and norms of queries and keys: choose another format")
    return "qwen3" if config["qk_norm"] else "qwen2" if config["qkv_bias"] else "llama"


def config(name, content):
    """The fields of the family's Config, as the tensors and the metadata agree on them."""
    for key, what in NOT_HERE.items():
        if content.said(f"{name}.{key}", int, 0):
            raise SerializationError(f"{content.path} holds a model with {what}, which gpt2c's llama has not")
    if (scaling := content.said(f"{name}.rope.scaling.type", str, "none")) != "none":
        raise SerializationError(f"{content.path} scales RoPE as {scaling[:40]!r}, which gpt2c's llama does not")
    vocab_size, channels = content.shape("token_embd.weight", 2)
    layers, heads = content.layers(f"{name}.block_count"), content.said(f"{name}.attention.head_count", int)
    rows, hidden = content.shape("blk.0.attn_q.weight", 2)[0], content.shape("blk.0.ffn_up.weight", 2)[0]
    groups = content.said(f"{name}.attention.head_count_kv", int, heads)
    if not 1 <= groups <= heads <= rows or heads % groups or rows % (2 * heads):
        raise invalid(content.path, f"{rows:,} rows are no {heads:,} heads of an even size for {groups:,} of keys and values")
    size = rows // heads
    sizes = {
        "embedding_length": channels,
        "feed_forward_length": hidden,
        "vocab_size": vocab_size,
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.dimension_count": size,
    }
    content.agrees({f"{name}.{key}": number for key, number in sizes.items()})
    theta = short(content.said(f"{name}.rope.freq_base", float, 10000.0))
    epsilon = short(content.said(f"{name}.attention.layer_norm_rms_epsilon", float))
    if not (0 < theta < math.inf and 0 <= epsilon < math.inf):
        raise invalid(content.path, f"its rope.freq_base is {theta:g} and the epsilon of its norms {epsilon:g}")
    return dict(
        vocab_size=vocab_size,
        channels=channels,
        hidden=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=size,
        max_seq_len=content.said(f"{name}.context_length", int),
        rope_theta=theta,
        rope_scaling=_scaling(content, theta, size),
        norm_eps=epsilon,
        tied="output.weight" not in content.tensors,
        qkv_bias="blk.0.attn_q.bias" in content.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in content.tensors,
    )


def metadata(name, config):
    size = config["head_dim"]
    said = {
        "block_count": config["num_layers"],
        "context_length": config["max_seq_len"],
        "embedding_length": config["channels"],
        "feed_forward_length": config["hidden"],
        "attention.head_count": config["num_heads"],
        "attention.head_count_kv": config["num_kv_heads"],
        "attention.layer_norm_rms_epsilon": config["norm_eps"],
        "rope.freq_base": config["rope_theta"],
        "rope.dimension_count": size,
        "vocab_size": config["vocab_size"],
    }
    if size * config["num_heads"] != config["channels"]:
        said |= {"attention.key_length": size, "attention.value_length": size}
    return {f"{name}.{key}": value for key, value in said.items()}


def tensors(name, config):
    """[(parameter, its shape, the Rows that it consists of)]."""
    V, C, F, L = (config[field] for field in ("vocab_size", "channels", "hidden", "num_layers"))
    H, K, D = (config[field] for field in ("num_heads", "num_kv_heads", "head_dim"))
    turned = {"q": H, "k": K, "v": 0} if name == "llama" else {"q": 0, "k": 0, "v": 0}
    rows = {"q": H * D, "k": K * D, "v": K * D}
    layer = {
        "ln1w": [Rows("attn_norm.weight", (C,))],
        "qkvw": [Rows(f"attn_{x}.weight", (rows[x], C), turned[x]) for x in "qkv"],
        "qkvb": [Rows(f"attn_{x}.bias", (rows[x],), turned[x]) for x in "qkv"] if config["qkv_bias"] else [],
        "qnormw": [Rows("attn_q_norm.weight", (D,))] if config["qk_norm"] else [],
        "knormw": [Rows("attn_k_norm.weight", (D,))] if config["qk_norm"] else [],
        "attprojw": [Rows("attn_output.weight", (C, H * D))],
        "ln2w": [Rows("ffn_norm.weight", (C,))],
        "gatew": [Rows("ffn_gate.weight", (F, C))],
        "upw": [Rows("ffn_up.weight", (F, C))],
        "downw": [Rows("ffn_down.weight", (C, F))],
    }
    found = [("wte", (V, C), [Rows("token_embd.weight", (V, C))])]
    for parameter, parts in layer.items():
        if parts:
            shape = (L, sum(part.shape[0] for part in parts), *parts[0].shape[1:])
            found.append((parameter, shape, [part._replace(name=f"blk.{l}.{part.name}") for l in range(L) for part in parts]))
    found.append(("lnfw", (C,), [Rows("output_norm.weight", (C,))]))
    if not config["tied"]:
        found.append(("lm_head", (V, C), [Rows("output.weight", (V, C))]))
    return found


def others(config):
    """{name: array} of what a file has besides the parameters."""
    scaling = config["rope_scaling"]
    return {FREQUENCIES: _factors(scaling, config["rope_theta"], config["head_dim"])} if scaling else {}


def _scaling(content, theta, size):
    """The field rope_scaling for the factors in a file: four numbers where they give them to the bit."""
    if FREQUENCIES not in content.tensors:
        return ""
    part = content.part(FREQUENCIES)
    if (part.kind, part.shape) != ("f32", (size // 2,)):
        raise invalid(content.path, f"{FREQUENCIES} is {part.kind} {part.shape}, expected f32 {(size // 2,)}")
    found = np.concatenate(list(part.pieces())).view("<f4")
    if not (np.isfinite(found) & (found > 0)).all():
        raise invalid(content.path, f"{FREQUENCIES} has factors that are not positive")
    named = (f"llama3:{numbers}" for numbers in LLAMA3)
    exact = (scaling for scaling in named if (_factors(scaling, theta, size) == found).all())
    return next(exact, "factors:" + ",".join(map(str, found)))


def _factors(scaling, theta, size):
    """What the inverse frequencies of RoPE are divided by, (D/2,) float32."""
    kind, _, numbers = scaling.partition(":")
    if kind == "factors":
        return np.array([float(number) for number in numbers.split(",")], np.float32)
    factor, low, high, original = (float(number) for number in numbers.split(","))
    with np.errstate(all="ignore"):  # a file may say any theta
        return _llama3(np.float32(theta), size, factor, low, high, original)


def _llama3(theta, size, factor, low, high, original):
    """Long wavelengths are `factor` times as long, short ones stay, those between are between; float32, as converters do it."""
    inverse = np.float32(1) / theta ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))
    wavelength = np.float32(2 * math.pi) / inverse
    smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    between = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    return np.where(wavelength < original / high, 1, np.where(wavelength > original / low, factor, between)).astype(np.float32)
