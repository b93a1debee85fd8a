"""Llama and its relatives (SmolLM2, Qwen2, Qwen3): rotary positions, shared heads of keys and values, SwiGLU, RMS norms.

    for each layer:  x += Wo attention(rope(Wqkv n(x)));  x += Wdown (silu(Wgate n(x)) * (Wup n(x)))
    logits = W n(x)                                      n(x) = x / sqrt(mean(x²) + norm_eps) * gains

Pairs of a head that turn together are its halves, as in Hugging Face's files: element j with element j + head_dim / 2.
"""

import functools
import math
from dataclasses import dataclass

from gpt2c.engine import ops
from gpt2c.engine.arena import ParamSpec, constant, normal
from gpt2c.errors import UsageError
from gpt2c.models.family import Family
from gpt2c.support.fields import flag, require_at_least


@dataclass(frozen=True)
class Config:
    vocab_size: int = flag(49152, "vocabulary size")
    channels: int = flag(128, "embedding width (hidden size)")
    hidden: int = flag(0, "width of the feed-forward (SwiGLU) layers (0: 8/3 of the channels, rounded up to a multiple of 32)")
    num_layers: int = flag(4, "transformer layers (blocks)")
    num_heads: int = flag(4, "attention heads (of queries) per layer")
    num_kv_heads: int = flag(
        0, "grouped-query attention: heads of keys and values per layer, each shared by several heads of queries (0: num_heads)"
    )
    head_dim: int = flag(0, "width of a head (0: channels / num_heads)")
    max_seq_len: int = flag(128, "context length: the longest sequence, in tokens")
    rope_theta: float = flag(10000.0, "rotary positions (RoPE): the base of the frequencies")
    rope_scaling: str = flag(
        "",
        "how frequencies are scaled for longer contexts: llama3:FACTOR,LOW,HIGH,ORIGINAL, or factors: and a number for each "
        "pair of a head, by which its frequency is divided",
        metavar="llama3:...|factors:...",
        default_text="",
    )
    norm_eps: float = flag(1e-5, "epsilon of the RMS norms")
    tied: bool = flag(True, "tie the output head to the token embedding")
    qkv_bias: bool = flag(False, "biases of queries, keys and values, as Qwen2 has them")
    qk_norm: bool = flag(False, "RMS norms of each head's queries and keys, as Qwen3 has them")

    def __post_init__(self):
        require_at_least(self, vocab_size=1, channels=1, hidden=0, num_layers=1, num_heads=1, max_seq_len=1)
        require_at_least(self, num_kv_heads=0, head_dim=0, norm_eps=0)
        if not self.head_dim and self.channels % self.num_heads:
            raise UsageError(f"llama: channels ({self.channels}) must be a multiple of num_heads ({self.num_heads})")
        derived = {
            "hidden": -(-8 * self.channels // (3 * 32)) * 32,
            "num_kv_heads": self.num_heads,
            "head_dim": self.channels // self.num_heads,
        }
        for name, value in derived.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if self.num_heads % self.num_kv_heads:
            raise UsageError(f"llama: num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if not self.head_dim or self.head_dim % 2:
            raise UsageError(f"llama: head_dim is {self.head_dim}, expected an even number, because numbers turn in pairs")
        for name in ("rope_theta", "norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"llama: {name} is {getattr(self, name)}, expected a finite number above 0")
        scaling(self)

    @property
    def all_heads(self):
        return self.num_heads + 2 * self.num_kv_heads


def scaling(cfg):
    """(the form of rope_scaling, its numbers)"""
    form, _, text = cfg.rope_scaling.partition(":")
    try:
        numbers = [float(word) for word in text.split(",")] if form else []
    except ValueError:
        numbers = [math.nan]
    lengths, pairs = {"": 0, "llama3": 4, "factors": cfg.head_dim // 2}, cfg.head_dim // 2
    fits = len(numbers) == lengths.get(form) and all(0 < number < math.inf for number in numbers)
    if not fits or form == "llama3" and numbers[1] >= numbers[2]:
        raise UsageError(
            f"llama: rope_scaling is {cfg.rope_scaling[:80]!r}, expected llama3:FACTOR,LOW,HIGH,ORIGINAL with LOW below HIGH, or "
            f"factors: and {pairs} numbers, one for each pair of a head, all above 0"
        )
    return form, numbers


@functools.lru_cache(maxsize=64)
def frequencies(cfg) -> tuple[float, ...]:
    """By how much each pair of a head turns from one position to the next."""
    plain = [cfg.rope_theta ** (-2 * j / cfg.head_dim) for j in range(cfg.head_dim // 2)]
    form, numbers = scaling(cfg)
    if form == "llama3":
        return tuple(llama3_scaled(frequency, *numbers) for frequency in plain)
    return tuple(frequency / factor for frequency, factor in zip(plain, numbers or [1.0] * len(plain)))


def llama3_scaled(frequency, factor, low, high, original):
    """A frequency of Llama 3.1 and later: one whose wave is long beside the `original` context is slower by `factor`, one whose
    wave is short stays, and between them it goes over from the one to the other."""
    waves = original * frequency / (2 * math.pi)  # in the original context
    part = min(max((waves - low) / (high - low), 0.0), 1.0)
    return frequency * ((1 - part) / factor + part)


# name -> what is not its default
SIZES: dict[str, dict] = {
    "smollm2-135m": dict(
        vocab_size=49152, channels=576, hidden=1536, num_layers=30, num_heads=9, num_kv_heads=3, max_seq_len=8192,
        rope_theta=100000.0),
    "smollm2-360m": dict(
        vocab_size=49152, channels=960, hidden=2560, num_layers=32, num_heads=15, num_kv_heads=5, max_seq_len=8192,
        rope_theta=100000.0),
    "qwen2.5-0.5b": dict(
        vocab_size=151936, channels=896, hidden=4864, num_layers=24, num_heads=14, num_kv_heads=2, max_seq_len=32768,
        rope_theta=1000000.0, norm_eps=1e-6, qkv_bias=True),
    "qwen3-0.6b": dict(
        vocab_size=151936, channels=1024, hidden=3072, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128,
        max_seq_len=40960, rope_theta=1000000.0, norm_eps=1e-6, qk_norm=True),
    "llama3.2-1b": dict(
        vocab_size=128256, channels=2048, hidden=8192, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64,
        max_seq_len=131072, rope_theta=500000.0, rope_scaling="llama3:32.0,1.0,4.0,8192"),
}  # fmt: skip


def size(text):
    """The config fields that the name of a size stands for; None if it is not one."""
    return SIZES.get(text.removeprefix("llama:"))


def params(cfg):
    """Projections into the residual stream, 2L of them, are initialised smaller."""
    L, C, F, V, D = cfg.num_layers, cfg.channels, cfg.hidden, cfg.vocab_size, cfg.head_dim
    weight, residual, zero, one = normal(0.02), normal(0.02 / (2 * L) ** 0.5), constant(0), constant(1)
    tensors = [
        ("wte", (V, C), weight, True),
        ("ln1w", (L, C), one, True),
        ("qkvw", (L, cfg.all_heads * D, C), weight, True),
        ("qkvb", (L, cfg.all_heads * D), zero, cfg.qkv_bias),
        ("qnormw", (L, D), one, cfg.qk_norm),
        ("knormw", (L, D), one, cfg.qk_norm),
        ("attprojw", (L, C, cfg.num_heads * D), residual, True),
        ("ln2w", (L, C), one, True),
        ("gatew", (L, F, C), weight, True),
        ("upw", (L, F, C), weight, True),
        ("downw", (L, C, F), residual, True),
        ("lnfw", (C,), one, True),
        ("lm_head", (V, C), weight, not cfg.tied),
    ]
    return [ParamSpec(name, shape, init, init not in (zero, one)) for name, shape, init, there in tensors if there]


def forward(t, p, batch, cfg):
    x = ops.embedding(t, batch.tokens, p("wte"), name="encoded")
    for l in range(cfg.num_layers):
        x = t.block(lambda x, l=l: block(t, p, x, l, cfg), x)
    x = ops.rmsnorm(t, x, p("lnfw"), eps=cfg.norm_eps, name="lnf")
    return ops.classifier(t, x, p("wte" if cfg.tied else "lm_head"), batch.targets, cfg.vocab_size)


def block(t, p, x, l, cfg):
    H, K, eps = cfg.num_heads, cfg.num_kv_heads, cfg.norm_eps
    h = ops.rmsnorm(t, x, p("ln1w", l), eps=eps, name=f"{l}.ln1")
    h = ops.linear(t, h, p("qkvw", l), p("qkvb", l) if cfg.qkv_bias else None, name=f"{l}.qkv")
    if cfg.qk_norm:
        h = ops.head_norm(t, h, p("qnormw", l), p("knormw", l), H, K, eps=eps, name=f"{l}.qkvnorm")
    h = ops.rope(t, h, H + K, frequencies(cfg))
    h = ops.attention(t, h, H, K, name=f"{l}")
    h = ops.linear(t, h, p("attprojw", l), name=f"{l}.attproj")
    x = ops.residual(t, x, h, name=f"{l}.residual2")
    h = ops.rmsnorm(t, x, p("ln2w", l), eps=eps, name=f"{l}.ln2")
    gate, up = ops.linear_pair(t, h, p("gatew", l), p("upw", l), names=(f"{l}.gate", f"{l}.up"))
    h = ops.swiglu(t, gate, up, name=f"{l}.swiglu")
    h = ops.linear(t, h, p("downw", l), name=f"{l}.down")
    return ops.residual(t, x, h, name=f"{l}.residual3")


TRAINING = dict(
    batch_size=8,
    seq_len=128,
    max_steps=1500,
    learning_rate=4e-3,
    lr_schedule="cosine",
    warmup_steps=50,
    final_lr_frac=0.1,
    weight_decay=0.1,
    beta2=0.99,
    grad_clip=1.0,
    val_every=200,
    sample_every=500,
    sample_len=120,
    temperature=0.7,
    log_every=20,
)

FAMILY = Family(
    name="llama",
    Config=Config,
    params=params,
    forward=forward,
    matrices=("wte", "qkvw", "attprojw", "gatew", "upw", "downw", "lm_head"),
    size=size,
    tiny=dict(vocab_size=31, num_layers=2, channels=16, num_heads=4, num_kv_heads=2, hidden=24, max_seq_len=16, qk_norm=True),
    training=TRAINING,
    phases=dict(num_layers=3, num_heads=4, channels=128, max_seq_len=80),
)
