"""The Tiny Recursive Model: one transformer block, applied to its own result again and again.

    x = emb[tokens] (+ pos)
    for each step s:  x += alpha_s attention(DyT1(x));  x += beta_s SwiGLU(DyT2(x))
    logits = head DyTf(x)

With `adaptive`, each token decides after each step whether it halts (kernels/recursion.c); what it saw and will see does
not depend on tokens after it.
"""

import math
from dataclasses import dataclass

from gpt2c.engine import ops
from gpt2c.engine.arena import ParamSpec, constant, normal
from gpt2c.engine.ops.recursive import Halting, cope_attention, dyt, scaled_residual
from gpt2c.errors import UsageError
from gpt2c.models.family import Family
from gpt2c.support.fields import flag, require_at_least


@dataclass(frozen=True)
class Config:
    vocab_size: int = flag(257, "vocabulary size")
    channels: int = flag(128, "embedding width (hidden size)", "--embed-size")
    hidden: int = flag(256, "width of the feed-forward (SwiGLU) layer")
    num_heads: int = flag(8, "attention heads")
    max_seq_len: int = flag(80, "context length: the longest sequence, in tokens")
    depth: int = flag(
        3, "recursion depth: how many times the block is applied; with --adaptive, how many times at the start of training"
    )
    cope_max_pos: int = flag(64, "contextual position embeddings (CoPE): the largest position")
    pos_emb: str = flag("learned", "position embeddings in addition to the contextual ones (CoPE)", choices=("learned", "none"))
    adaptive: bool = flag(False, "adaptive computation time: each token learns how many times the block is applied to it")
    max_depth: int = flag(10, "with --adaptive: maximum recursion depth")
    halt_threshold: float = flag(0.95, "with --adaptive: a token halts when its halting probabilities add up to this")
    ponder_weight: float = flag(
        0.05, "with --adaptive: weight of the ponder loss, the cost of each further application of the block"
    )

    def __post_init__(self):
        require_at_least(
            self, vocab_size=1, channels=1, hidden=1, num_heads=1, max_seq_len=1, depth=1, cope_max_pos=1, max_depth=1
        )
        if self.channels % self.num_heads:
            raise UsageError(f"trm: channels ({self.channels}) must be a multiple of num_heads ({self.num_heads})")
        if self.pos_emb not in ("learned", "none"):
            raise UsageError(f"trm: pos_emb is {self.pos_emb!r}, expected learned or none")
        if not 0 < self.halt_threshold < 1:
            raise UsageError(f"trm: halt_threshold is {self.halt_threshold}, expected a number between 0 and 1")
        if not 0 <= self.ponder_weight < math.inf:
            raise UsageError(f"trm: ponder_weight is {self.ponder_weight}, expected at least 0")
        if self.adaptive and self.depth > self.max_depth:
            raise UsageError(f"trm: depth ({self.depth}) is above max_depth ({self.max_depth})")

    @property
    def num_steps(self):
        return self.max_depth if self.adaptive else self.depth


def params(cfg):
    V, C, H, steps = cfg.vocab_size, cfg.channels, cfg.hidden, cfg.num_steps
    table, wide, one, none, small = normal(C**-0.5), normal((2 / C) ** 0.5), constant(1), constant(0), constant(0.01)
    specs = [
        ParamSpec("emb", (V, C), table, True),
        ParamSpec("pos", (cfg.max_seq_len, C), table, True),
        ParamSpec("dyt1_a", (1,), one, False),
        ParamSpec("dyt1_g", (C,), one, False),
        ParamSpec("dyt1_b", (C,), none, False),
        ParamSpec("qkvw", (3 * C, C), wide, True),
        ParamSpec("attprojw", (C, C), wide, True),
        ParamSpec("cope", (cfg.num_heads, cfg.cope_max_pos + 1, C // cfg.num_heads), normal(0.02), True),
        ParamSpec("dyt2_a", (1,), one, False),
        ParamSpec("dyt2_g", (C,), one, False),
        ParamSpec("dyt2_b", (C,), none, False),
        ParamSpec("ffw1", (H, C), wide, True),
        ParamSpec("ffw2", (H, C), wide, True),
        ParamSpec("ffw3", (C, H), normal((2 / H) ** 0.5), True),
        ParamSpec("alpha", (steps,), small, False),
        ParamSpec("beta", (steps,), small, False),
        ParamSpec("dytf_a", (1,), one, False),
        ParamSpec("dytf_g", (C,), one, False),
        ParamSpec("dytf_b", (C,), none, False),
        ParamSpec("head", (V, C), wide, True),
        ParamSpec("halt_w", (C,), none, False),
        ParamSpec("halt_b", (1,), constant(halting_bias(cfg)), False),
    ]
    absent = ([] if cfg.pos_emb == "learned" else ["pos"]) + ([] if cfg.adaptive else ["halt_w", "halt_b"])
    return [spec for spec in specs if spec.name not in absent]


def halting_bias(cfg):
    """The bias with which every token halts at step `depth`, where the halting weights are still 0.

    A constant probability p reaches the threshold at step n if it is between threshold / n and threshold / (n - 1).
    """
    p = cfg.halt_threshold / (cfg.depth - 0.5) if cfg.depth > 1 else (1 + cfg.halt_threshold) / 2
    return math.log(p / (1 - p))


def forward(t, p, batch, cfg):
    x = ops.embedding(t, batch.tokens, p("emb"), p("pos") if cfg.pos_emb == "learned" else None, name="encoded")
    halting = Halting(t, p("halt_w"), p("halt_b"), x.shape, cfg.halt_threshold, cfg.num_steps) if cfg.adaptive else None
    for s in range(cfg.num_steps):
        depth = halting.depth if halting and s else None  # every token takes the first step
        x = t.block(lambda x, s=s, depth=depth: block(t, p, x, s, depth), x)
        if halting:
            halting.after_step(s + 1, x)
    terms = {}
    if halting:
        x = halting.mixed
        if batch.targets is not None:
            terms = halting.ponder(batch.targets, cfg.ponder_weight)
    x = dyt(t, x, p("dytf_a"), p("dytf_g"), p("dytf_b"), name="dytf")
    return ops.classifier(t, x, p("head"), batch.targets, cfg.vocab_size)._replace(terms=terms)


def block(t, p, x, s, depth):
    """Application s of the one block; tokens that have halted stay as they are."""
    h = dyt(t, x, p("dyt1_a"), p("dyt1_g"), p("dyt1_b"), name=f"{s}.dyt1")
    h = ops.linear(t, h, p("qkvw"), name=f"{s}.qkv")
    h = cope_attention(t, h, p("cope"), name=f"{s}")
    h = ops.linear(t, h, p("attprojw"), name=f"{s}.attproj")
    x = scaled_residual(t, x, h, p("alpha", s), depth, s + 1, name=f"{s}.residual2")
    h = dyt(t, x, p("dyt2_a"), p("dyt2_g"), p("dyt2_b"), name=f"{s}.dyt2")
    a, b = (ops.linear(t, h, p(w), name=f"{s}.{w[1:]}") for w in ("ffw1", "ffw2"))
    h = ops.swiglu(t, a, b, name=f"{s}.swiglu")
    h = ops.linear(t, h, p("ffw3"), name=f"{s}.ffproj")
    return scaled_residual(t, x, h, p("beta", s), depth, s + 1, name=f"{s}.residual3")


# How its document trains it, with Adam; the residual scales at a rate of their own, within bounds.
TRAINING = dict(
    batch_size=16,
    seq_len=80,
    epochs=100.0,
    optimizer="adam",
    learning_rate=5e-4,
    max_grad_value=1000.0,
    tensor_rates="alpha=1e-4, beta=1e-4",
    tensor_bounds="alpha=0.01:0.5, beta=0.01:0.5",
)

FAMILY = Family(
    name="trm",
    Config=Config,
    params=params,
    forward=forward,
    matrices=("emb", "head"),
    tiny=dict(vocab_size=31, depth=2, channels=16, hidden=32, num_heads=2, max_seq_len=16),
    training=TRAINING,
    tokenizer="word",
)
