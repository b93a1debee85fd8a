"""A small character-level GPT: RMS normalisation without gains, squared ReLU, no biases, dropout, an untied head."""

from dataclasses import dataclass

from gpt2c.engine import ops
from gpt2c.engine.arena import ParamSpec, normal
from gpt2c.errors import UsageError
from gpt2c.models.family import Family
from gpt2c.support.fields import flag, require_at_least


@dataclass(frozen=True)
class Config:
    max_seq_len: int = flag(64, "context length: the longest sequence, in tokens")
    vocab_size: int = flag(67, "vocabulary size")
    num_layers: int = flag(6, "transformer layers (blocks)")
    num_heads: int = flag(8, "attention heads per layer")
    channels: int = flag(128, "embedding width (hidden size)")
    dropout: float = flag(0.1, "dropout probability of the outputs of attention and feed-forward layers, in training")

    def __post_init__(self):
        require_at_least(self, max_seq_len=1, vocab_size=1, num_layers=1, num_heads=1, channels=1)
        if self.channels % self.num_heads:
            raise UsageError(f"chargpt: channels ({self.channels}) must be a multiple of num_heads ({self.num_heads})")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"chargpt: dropout is {self.dropout}, expected at least 0 and less than 1")


# name -> (layers, channels, heads)
PRESETS = {"tiny": (2, 64, 4), "current": (6, 128, 8), "medium": (6, 256, 8), "large": (12, 512, 16)}


def size(text):
    """The config fields that the name of a preset stands for; None if it is not one."""
    name = text.removeprefix("chargpt:")
    if name not in PRESETS:
        return None
    return dict(zip(("num_layers", "channels", "num_heads"), PRESETS[name]))


def params(cfg):
    """Projections into the residual stream, 2L of them, are initialised smaller."""
    L, C, V = cfg.num_layers, cfg.channels, cfg.vocab_size
    weight, position, residual = normal(0.02), normal(0.01), normal(0.02 / (2 * L) ** 0.5)
    tensors = [
        ("wte", (V, C), weight),
        ("wpe", (cfg.max_seq_len, C), position),
        ("qkvw", (L, 3 * C, C), weight),
        ("attprojw", (L, C, C), residual),
        ("fcw", (L, 4 * C, C), weight),
        ("fcprojw", (L, C, 4 * C), residual),
        ("lm_head", (V, C), weight),
    ]
    return [ParamSpec(name, shape, init, True) for name, shape, init in tensors]


def forward(t, p, batch, cfg):
    x = ops.embedding(t, batch.tokens, p("wte"), p("wpe"), name="encoded")
    for l in range(cfg.num_layers):
        x = t.block(lambda x, l=l: block(t, p, x, l, cfg), x)
    return ops.classifier(t, x, p("lm_head"), batch.targets, cfg.vocab_size)


def block(t, p, x, l, cfg):
    h = ops.rmsnorm(t, x, name=f"{l}.norm1")
    h = ops.linear(t, h, p("qkvw", l), name=f"{l}.qkv")
    h = ops.attention(t, h, cfg.num_heads, name=f"{l}")
    h = ops.linear(t, h, p("attprojw", l), name=f"{l}.attproj")
    x = ops.residual(t, x, h, dropout=cfg.dropout, stream=2 * l, name=f"{l}.residual2")
    h = ops.rmsnorm(t, x, name=f"{l}.norm2")
    h = ops.linear(t, h, p("fcw", l), name=f"{l}.fch")
    h = ops.squared_relu(t, h, name=f"{l}.fch_relu2")
    h = ops.linear(t, h, p("fcprojw", l), name=f"{l}.fcproj")
    return ops.residual(t, x, h, dropout=cfg.dropout, stream=2 * l + 1, name=f"{l}.residual3")


TRAINING = dict(
    batch_size=32,
    seq_len=64,
    max_steps=1000,
    learning_rate=2e-3,
    lr_schedule="randygpt",
    warmup_steps=100,
    final_lr_frac=0.1,
    weight_decay=0.01,
    grad_clip=1.0,
    val_every=100,
    resumable_best=True,
    log_every=100,
    sample_every=1000,
    sample_len=100,
    temperature=0.8,
    sample_top_p=0.9,
    save_path="checkpoint.bin",
)

FAMILY = Family(
    name="chargpt",
    Config=Config,
    params=params,
    forward=forward,
    matrices=("wte", "qkvw", "attprojw", "fcw", "fcprojw", "lm_head"),
    size=size,
    tiny=dict(vocab_size=31, num_layers=2, channels=16, num_heads=2, max_seq_len=16, dropout=0.0),
    training=TRAINING,
    phases=dict(num_layers=3, num_heads=4, channels=128, max_seq_len=80, dropout=0.0),
    tokenizer="char",
    specials=("<|bos|>", "<|eos|>"),
    data="train.txt",
)
