"""GPT-2, with llm.c's tensor names and order: the parameter block is the body of an llm.c checkpoint."""

import re
from dataclasses import dataclass

from gpt2c.engine import ops
from gpt2c.engine.arena import ParamSpec, constant, normal
from gpt2c.errors import UsageError
from gpt2c.models.family import Family
from gpt2c.support.fields import flag, require_at_least


@dataclass(frozen=True)
class Config:
    max_seq_len: int = flag(1024, "context length: the longest sequence, in tokens")
    vocab_size: int = flag(50257, "vocabulary size")
    num_layers: int = flag(12, "transformer layers (blocks)")
    num_heads: int = flag(12, "attention heads per layer")
    channels: int = flag(768, "embedding width (hidden size)")
    padded_vocab_size: int = flag(0, "rows of the token embedding (0: the vocabulary size rounded up to a multiple of 128)")

    def __post_init__(self):
        if not self.padded_vocab_size:
            object.__setattr__(self, "padded_vocab_size", -(-self.vocab_size // 128) * 128)
        require_at_least(self, max_seq_len=1, vocab_size=1, num_layers=1, num_heads=1, channels=1)
        if self.channels % self.num_heads:
            raise UsageError(f"gpt2: channels ({self.channels}) must be a multiple of num_heads ({self.num_heads})")
        if self.padded_vocab_size < self.vocab_size:
            raise UsageError(f"gpt2: padded_vocab_size ({self.padded_vocab_size}) is below vocab_size ({self.vocab_size})")


# llm.c's descriptors d6, d12, ...: layers -> (channels, heads)
DEPTHS = {
    6: (384, 6),
    12: (768, 12),
    24: (1024, 16),
    36: (1280, 20),
    48: (1600, 25),
    60: (1920, 30),
    72: (2880, 30),
    84: (3456, 36),
}


def size(text):
    """The config fields that a descriptor such as d12 or gpt2:d12 stands for; None if it is not one."""
    match = re.fullmatch(r"(?:gpt2:)?d(\d+)", text)
    if not match:
        return None
    depth = int(match[1])
    if depth not in DEPTHS:
        raise UsageError(f"no GPT-2 of depth {depth}; the depths are {', '.join(f'd{d}' for d in DEPTHS)}")
    channels, heads = DEPTHS[depth]
    return {"num_layers": depth, "channels": channels, "num_heads": heads}


def params(cfg):
    """llm.c's tensors; projections into the residual stream, 2L of them, are initialised smaller."""
    L, C = cfg.num_layers, cfg.channels
    weight, residual, zero, one = normal(0.02), normal(0.02 / (2 * L) ** 0.5), constant(0), constant(1)

    def token_table(rng, shape):  # rows that only pad the vocabulary stay 0
        table = weight(rng, shape)
        table[cfg.vocab_size :] = 0
        return table

    tensors = [
        ("wte", (cfg.padded_vocab_size, C), token_table),
        ("wpe", (cfg.max_seq_len, C), weight),
        ("ln1w", (L, C), one),
        ("ln1b", (L, C), zero),
        ("qkvw", (L, 3 * C, C), weight),
        ("qkvb", (L, 3 * C), zero),
        ("attprojw", (L, C, C), residual),
        ("attprojb", (L, C), zero),
        ("ln2w", (L, C), one),
        ("ln2b", (L, C), zero),
        ("fcw", (L, 4 * C, C), weight),
        ("fcb", (L, 4 * C), zero),
        ("fcprojw", (L, C, 4 * C), residual),
        ("fcprojb", (L, C), zero),
        ("lnfw", (C,), one),
        ("lnfb", (C,), zero),
    ]
    return [ParamSpec(name, shape, init, init not in (zero, one)) for name, shape, init in tensors]


def forward(t, p, batch, cfg):
    x = ops.embedding(t, batch.tokens, p("wte"), p("wpe"), name="encoded")
    for l in range(cfg.num_layers):
        x = t.block(lambda x, l=l: block(t, p, x, l, cfg), x)
    x = ops.layernorm(t, x, p("lnfw"), p("lnfb"), name="lnf")
    return ops.classifier(t, x, p("wte"), batch.targets, cfg.vocab_size)


def block(t, p, x, l, cfg):
    h = ops.layernorm(t, x, p("ln1w", l), p("ln1b", l), name=f"{l}.ln1")
    h = ops.linear(t, h, p("qkvw", l), p("qkvb", l), name=f"{l}.qkv")
    h = ops.attention(t, h, cfg.num_heads, name=f"{l}")
    h = ops.linear(t, h, p("attprojw", l), p("attprojb", l), name=f"{l}.attproj")
    x = ops.residual(t, x, h, name=f"{l}.residual2")
    h = ops.layernorm(t, x, p("ln2w", l), p("ln2b", l), name=f"{l}.ln2")
    h = ops.linear(t, h, p("fcw", l), p("fcb", l), name=f"{l}.fch")
    h = ops.gelu(t, h, name=f"{l}.fch_gelu")
    h = ops.linear(t, h, p("fcprojw", l), p("fcprojb", l), name=f"{l}.fcproj")
    return ops.residual(t, x, h, name=f"{l}.residual3")


FAMILY = Family(
    name="gpt2",
    Config=Config,
    params=params,
    forward=forward,
    matrices=("wte", "qkvw", "attprojw", "fcw", "fcprojw"),
    size=size,
    tiny=dict(vocab_size=31, num_layers=2, channels=16, num_heads=2, max_seq_len=16),
    phases=dict(num_layers=3, num_heads=4, channels=128, max_seq_len=80),
)
