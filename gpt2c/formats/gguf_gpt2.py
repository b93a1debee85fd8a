"""GPT-2 in GGUF: its names there, and what the metadata say."""

from gpt2c.errors import SerializationError
from gpt2c.formats.gguf import Rows, invalid
from gpt2c.formats.llmc import gpt2_shapes

EPSILON = 1e-5  # of LayerNorm
TENSORS = {"wte": "token_embd.weight", "wpe": "position_embd.weight", "lnfw": "output_norm.weight", "lnfb": "output_norm.bias"}
LAYERS = {  # each with blk.N. before it
    "ln1w": "attn_norm.weight",
    "ln1b": "attn_norm.bias",
    "qkvw": "attn_qkv.weight",
    "qkvb": "attn_qkv.bias",
    "attprojw": "attn_output.weight",
    "attprojb": "attn_output.bias",
    "ln2w": "ffn_norm.weight",
    "ln2b": "ffn_norm.bias",
    "fcw": "ffn_up.weight",
    "fcb": "ffn_up.bias",
    "fcprojw": "ffn_down.weight",
    "fcprojb": "ffn_down.bias",
}


def config(content):
    """The fields of the family's Config, as the tensors and the metadata agree on them."""
    vocab_size, channels = content.shape(TENSORS["wte"], 2)
    positions, _ = content.shape(TENSORS["wpe"], 2)
    layers, heads = content.layers("gpt2.block_count"), content.said("gpt2.attention.head_count", int)
    sizes = {"embedding_length": channels, "context_length": positions, "feed_forward_length": 4 * channels}
    content.agrees({f"gpt2.{key}": size for key, size in sizes.items()})
    if not 1 <= heads <= channels or channels % heads:
        raise invalid(content.path, f"it has {channels:,} channels and {heads:,} heads, expected a multiple")
    epsilon = content.said("gpt2.attention.layer_norm_epsilon", float, EPSILON)
    if not abs(epsilon - EPSILON) < 1e-10:
        raise SerializationError(f"{content.path}: LayerNorm's epsilon is {epsilon:g}, and {EPSILON:g} in gpt2c's gpt2")
    return dict(
        max_seq_len=positions,
        vocab_size=vocab_size,
        num_layers=layers,
        num_heads=heads,
        channels=channels,
        padded_vocab_size=-(-vocab_size // 128) * 128,
    )


def metadata(config):
    return {
        "gpt2.block_count": config["num_layers"],
        "gpt2.context_length": config["max_seq_len"],
        "gpt2.embedding_length": config["channels"],
        "gpt2.feed_forward_length": 4 * config["channels"],
        "gpt2.attention.head_count": config["num_heads"],
        "gpt2.attention.layer_norm_epsilon": EPSILON,
        "gpt2.vocab_size": config["vocab_size"],
    }


def tensors(config):
    """[(parameter, its shape, the Rows that it begins with)]."""
    found = []
    for parameter, shape in gpt2_shapes(config).items():
        if parameter in LAYERS:
            parts = [Rows(f"blk.{layer}.{LAYERS[parameter]}", shape[1:]) for layer in range(shape[0])]
        else:
            rows = config["vocab_size"] if parameter == "wte" else shape[0]
            parts = [Rows(TENSORS[parameter], (rows, *shape[1:]))]
        found.append((parameter, shape, parts))
    return found
