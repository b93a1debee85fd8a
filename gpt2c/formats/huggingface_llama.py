"""The llama family in a folder of Hugging Face: model types llama, mistral, qwen2 and qwen3, their names there, and what
config.json says. Rows of queries and keys are in gpt2c's order."""

from gpt2c.errors import SerializationError, UsageError
from gpt2c.formats.huggingface_folder import Document, Rows, invalid, quoted

PREFIX = "model."  # of names, but not of the head's
TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"
BUFFERS = (".rotary_emb.inv_freq",)  # frequencies, in old files
CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ONLY = dict(  # what gpt2c's llama has no other of
    hidden_act="silu", attention_bias=False, mlp_bias=False, partial_rotary_factor=1.0, num_experts=0, num_local_experts=0
)
THETA, EPSILON = 10000.0, 1e-6  # where config.json does not say
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def config(folder):
    """The fields of the family's Config, as the tensors and config.json agree on them."""
    said, kind = folder.config, folder.config.said("model_type", str)
    said.only("llama", **ONLY)
    vocab_size, channels = folder.shape(TABLE, 2)
    layers, heads = folder.layers("num_hidden_layers"), said.said("num_attention_heads", int)
    _without_windows(said, kind, layers)
    q, k = (folder.shape(f"layers.0.self_attn.{x}_proj.weight", 2)[0] for x in "qk")
    hidden = folder.shape("layers.0.mlp.up_proj.weight", 2)[0]
    if not 1 <= heads <= q or q % (2 * heads) or k % (q // heads) or q % k:
        raise invalid(folder.path, f"{q:,} and {k:,} rows are no {quoted(heads)} heads of an even size, and some of keys")
    size = q // heads
    said.agrees(vocab_size=vocab_size, hidden_size=channels, intermediate_size=hidden)
    said.agrees(head_dim=size, num_key_value_heads=k // size)
    theta, scaling = _rope(said)
    return dict(
        vocab_size=vocab_size,
        channels=channels,
        hidden=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=k // size,
        head_dim=size,
        max_seq_len=said.said("max_position_embeddings", int),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=said.said("rms_norm_eps", float, EPSILON),
        tied=said.said("tie_word_embeddings", bool, False),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )


def _without_windows(said, kind, layers):
    """An error if attention does not always reach back to the first position."""
    longest = said.said("max_position_embeddings", int)
    window = said.said("sliding_window", int, longest)
    if kind == "mistral":
        windowed = True
    elif types := said.said("layer_types", list, []):
        windowed = any(layer != "full_attention" for layer in types)
    else:
        windowed = said.said("use_sliding_window", bool, False) and said.said("max_window_layers", int, 28) < layers
    if windowed and window < longest:
        raise SerializationError(f"{said.path}: attention has a sliding window of {window:,}, which gpt2c's llama has not")


def _rope(said):
    """(theta, the field rope_scaling): transformers 5 says both in rope_parameters, 4 in rope_theta and rope_scaling."""
    key = next((key for key in ("rope_parameters", "rope_scaling") if said.values.get(key)), None)
    rope = Document(said.path, said.said(key, dict)) if key else said
    theta = rope.said("rope_theta", float, said.said("rope_theta", float, THETA))
    if not key:
        return theta, ""
    rope.only("llama", partial_rotary_factor=1.0)
    form = rope.said("rope_type", str, rope.said("type", str, "default"))
    if form == "default":
        return theta, ""
    if form != "llama3":
        raise SerializationError(f"{said.path} scales RoPE as {quoted(form)}; gpt2c's llama knows default and llama3")
    *factors, original = (rope.said(name, float) for name in LLAMA3)
    return theta, "llama3:" + ",".join(map(str, [*factors, _whole(original)]))


def _whole(number):
    """A number that counts positions, as JSON has it."""
    return int(number) if number.is_integer() else number


def document(config):
    """What config.json says of the fields."""
    kind, theta = _model_type(config), {"rope_theta": config["rope_theta"]}
    form, _, text = config["rope_scaling"].partition(":")
    if form == "factors":
        raise UsageError("Hugging Face's form has no factors of RoPE, only llama3's four numbers: choose a name ending in .gguf")
    scaling = None
    if form:
        *factors, original = map(float, text.split(","))
        scaling = {"rope_type": form, **dict(zip(LLAMA3, [*factors, _whole(original)]))}
    said = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": config["vocab_size"],
        "hidden_size": config["channels"],
        "intermediate_size": config["hidden"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "num_key_value_heads": config["num_kv_heads"],
        "head_dim": config["head_dim"],
        "hidden_act": "silu",
        "rms_norm_eps": config["norm_eps"],
        "max_position_embeddings": config["max_seq_len"],
        "tie_word_embeddings": config["tied"],
        "rope_parameters": theta | (scaling or {"rope_type": "default"}),  # of transformers 5
        **theta,  # of transformers 4, as the next one
        "rope_scaling": scaling,
    }
    if kind == "llama":
        return said | {"attention_bias": False, "mlp_bias": False}
    return said | {"sliding_window": None} | ({} if kind == "mistral" else {"use_sliding_window": False})


def _model_type(config):
    """What Hugging Face calls a model of this config."""
    if config["qkv_bias"] and config["qk_norm"]:
        raise UsageError("Hugging Face has no llama with both biases and norms of queries and keys: choose another format")
    if config["qk_norm"] or config["qkv_bias"]:
        return "qwen3" if config["qk_norm"] else "qwen2"
    return "mistral" if config["channels"] % config["num_heads"] else "llama"  # which differ in this: llama's must divide


def tensors(config):
    """[(parameter, its shape, the Rows that it consists of)]."""
    V, C, F, L = (config[field] for field in ("vocab_size", "channels", "hidden", "num_layers"))
    H, K, D = (config[field] for field in ("num_heads", "num_kv_heads", "head_dim"))
    rows = {"q": H * D, "k": K * D, "v": K * D}
    layer = {
        "ln1w": [Rows("input_layernorm.weight", (C,))],
        "qkvw": [Rows(f"self_attn.{x}_proj.weight", (rows[x], C)) for x in "qkv"],
        "qkvb": [Rows(f"self_attn.{x}_proj.bias", (rows[x],)) for x in "qkv"] if config["qkv_bias"] else [],
        "qnormw": [Rows("self_attn.q_norm.weight", (D,))] if config["qk_norm"] else [],
        "knormw": [Rows("self_attn.k_norm.weight", (D,))] if config["qk_norm"] else [],
        "attprojw": [Rows("self_attn.o_proj.weight", (C, H * D))],
        "ln2w": [Rows("post_attention_layernorm.weight", (C,))],
        "gatew": [Rows("mlp.gate_proj.weight", (F, C))],
        "upw": [Rows("mlp.up_proj.weight", (F, C))],
        "downw": [Rows("mlp.down_proj.weight", (C, F))],
    }
    found = [("wte", (V, C), [Rows(TABLE, (V, C))])]
    for parameter, parts in layer.items():
        if parts:
            shape = (L, sum(part.shape[0] for part in parts), *parts[0].shape[1:])
            found.append((parameter, shape, [part._replace(name=f"layers.{l}.{part.name}") for l in range(L) for part in parts]))
    found.append(("lnfw", (C,), [Rows("norm.weight", (C,))]))
    if not config["tied"]:
        found.append(("lm_head", (V, C), [Rows(HEAD, (V, C))]))
    return found
