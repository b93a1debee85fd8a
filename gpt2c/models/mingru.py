"""A minimal GRU language model: one gate per layer, a recurrence linear in its hidden state, unlimited context.

z = sigmoid(gate),  h_t = (1 - z_t) h_{t-1} + z_t g(candidate_t),  g(x) = x + 1/2 for x >= 0, sigmoid(x) below
"""

from dataclasses import dataclass

from gpt2c.engine import ops
from gpt2c.engine.arena import ParamSpec, constant, normal, uniform
from gpt2c.errors import UsageError
from gpt2c.models.family import Family
from gpt2c.support.fields import flag, require_at_least


@dataclass(frozen=True)
class Config:
    vocab_size: int = flag(256, "vocabulary size")
    dim: int = flag(1024, "embedding width (hidden size)", "--model-dim")
    depth: int = flag(3, "layers", "--model-depth")
    expansion: float = flag(
        1.5, "expansion factor: width of the recurrent state, as a multiple of the embedding width", "--model-exp-factor"
    )
    ff_mult: float = flag(3.0, "width of the feed-forward layers, as a multiple of the embedding width", "--model-ff-mult")

    def __post_init__(self):
        require_at_least(self, vocab_size=1, dim=1, depth=1)
        for name, value in (("dim * expansion", self.inner), ("dim * ff_mult", self.hidden)):
            if value < 1:
                raise UsageError(f"mingru: {name} is {value}, expected at least 1")

    @property
    def inner(self):
        return int(self.dim * self.expansion)

    @property
    def hidden(self):
        return int(self.dim * self.ff_mult)


def params(cfg):
    L, V, D, I, F = cfg.depth, cfg.vocab_size, cfg.dim, cfg.inner, cfg.hidden
    gain, wide, narrow, inner = constant(1), uniform(F**-0.5), uniform(D**-0.5), uniform(I**-0.5)
    return [
        ParamSpec("emb", (V, D), normal(1), True),
        ParamSpec("norm1", (L, D), gain, False),
        ParamSpec("inw", (L, 2 * I, D), narrow, True),
        ParamSpec("outw", (L, D, I), inner, True),
        ParamSpec("norm2", (L, D), gain, False),
        ParamSpec("ff1w", (L, F, D), narrow, True),
        ParamSpec("ff1b", (L, F), narrow, False),
        ParamSpec("ff2w", (L, D, F), wide, True),
        ParamSpec("ff2b", (L, D), wide, False),
        ParamSpec("normf", (D,), gain, False),
        ParamSpec("head", (V, D), narrow, True),
    ]


def state(cfg, B):
    return {"h": (cfg.depth, B, cfg.inner)}


def forward(t, p, batch, cfg):
    x = ops.embedding(t, batch.tokens, p("emb"), name="encoded")
    for l in range(cfg.depth):
        x = t.block(lambda x, l=l: block(t, p, x, l), x)
    x = ops.rmsnorm(t, x, p("normf"), name="normf")
    return ops.classifier(t, x, p("head"), batch.targets, cfg.vocab_size)


def block(t, p, x, l):
    h = ops.rmsnorm(t, x, p("norm1", l), name=f"{l}.norm1")
    h = ops.linear(t, h, p("inw", l), name=f"{l}.in")
    h, last = ops.mingru(t, h, t.incoming("h", l), name=f"{l}.h")
    t.outgoing("h", l, last)
    h = ops.linear(t, h, p("outw", l), name=f"{l}.out")
    x = ops.residual(t, x, h, name=f"{l}.residual1")
    h = ops.rmsnorm(t, x, p("norm2", l), name=f"{l}.norm2")
    h = ops.linear(t, h, p("ff1w", l), p("ff1b", l), name=f"{l}.ff1")
    h = ops.gelu_erf(t, h, name=f"{l}.ff1_gelu")
    h = ops.linear(t, h, p("ff2w", l), p("ff2b", l), name=f"{l}.ff2")
    return ops.residual(t, x, h, name=f"{l}.residual2")


TRAINING = dict(
    batch_size=32,
    seq_len=64,
    epochs=10.0,
    update_chunks=4,
    backprop_chunks=8,
    optimizer="adam",
    eps=1e-5,
    learning_rate=1e-3,
    lr_unit="epoch-end",
    final_lr_frac=0.1,
    max_epochs=1000.0,
    val_every=250,
    val_steps=20,
    save_every=1,
    log_every=1,
    sample_every=0,
    sample_len=200,
    temperature=0.8,
)
FILES = dict(best="model_best.bin", epoch="model_epoch_{epoch}.bin", last="model_final.bin", tokenizer="vocab.txt")

FAMILY = Family(
    name="mingru",
    Config=Config,
    params=params,
    forward=forward,
    matrices=("emb", "inw", "outw", "ff1w", "ff2w", "head"),
    state=state,
    tiny=dict(vocab_size=31, depth=2, dim=16),
    training=TRAINING,
    phases=dict(dim=128, depth=2),
    tokenizer="byte",
    files=FILES,
)
