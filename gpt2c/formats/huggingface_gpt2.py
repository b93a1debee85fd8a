"""GPT-2 in a folder of Hugging Face: its names there, and what config.json says. Matrices are stored (in, out)."""

from gpt2c.formats.gguf_gpt2 import EPSILON
from gpt2c.formats.huggingface_folder import Rows, invalid
from gpt2c.formats.llmc import gpt2_shapes

PREFIX = "transformer."  # of names; the first files of GPT-2 are without it
TABLE = "wte.weight"
TENSORS = {"wte": TABLE, "wpe": "wpe.weight", "lnfw": "ln_f.weight", "lnfb": "ln_f.bias"}
LAYERS = {  # each with h.N. before it
    "ln1w": "ln_1.weight",
    "ln1b": "ln_1.bias",
    "qkvw": "attn.c_attn.weight",
    "qkvb": "attn.c_attn.bias",
    "attprojw": "attn.c_proj.weight",
    "attprojb": "attn.c_proj.bias",
    "ln2w": "ln_2.weight",
    "ln2b": "ln_2.bias",
    "fcw": "mlp.c_fc.weight",
    "fcb": "mlp.c_fc.bias",
    "fcprojw": "mlp.c_proj.weight",
    "fcprojb": "mlp.c_proj.bias",
}
BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks, in old files
ONLY = dict(  # what gpt2c's gpt2 has no other of
    activation_function="gelu_new",
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    reorder_and_upcast_attn=False,
    add_cross_attention=False,
    layer_norm_epsilon=EPSILON,
    tie_word_embeddings=True,
)


def config(folder):
    """The fields of the family's Config, as the tensors and config.json agree on them."""
    said = folder.config
    said.only("gpt2", **ONLY)
    vocab_size, channels = folder.shape(TABLE, 2)
    positions, _ = folder.shape("wpe.weight", 2)
    layers, heads = folder.layers("n_layer"), said.said("n_head", int)
    said.agrees(vocab_size=vocab_size, n_embd=channels, n_positions=positions, n_inner=4 * channels)
    if not 1 <= heads <= channels or channels % heads:
        raise invalid(said.path, f"it has {channels:,} channels and {heads:,} heads, expected a multiple")
    return dict(
        max_seq_len=positions,
        vocab_size=vocab_size,
        num_layers=layers,
        num_heads=heads,
        channels=channels,
        padded_vocab_size=-(-vocab_size // 128) * 128,
    )


def document(config):
    """What config.json says of the fields."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config["vocab_size"],
        "n_positions": config["max_seq_len"],
        "n_ctx": config["max_seq_len"],  # which llama.cpp's converter asks for
        "n_embd": config["channels"],
        "n_layer": config["num_layers"],
        "n_head": config["num_heads"],
        "n_inner": None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        **ONLY,
    }


def tensors(config):
    """[(parameter, its shape, the Rows that it begins with)]."""
    found = []
    for parameter, shape in gpt2_shapes(config).items():
        if parameter in LAYERS:
            matrix = len(shape) == 3
            rows = [Rows(f"h.{layer}.{LAYERS[parameter]}", shape[1:], matrix) for layer in range(shape[0])]
        else:
            count = config["vocab_size"] if parameter == "wte" else shape[0]
            rows = [Rows(TENSORS[parameter], (count, *shape[1:]))]
        found.append((parameter, shape, rows))
    return found
