"""The hybrid: layers of a GRU with normed gates, RWKV's time mixing inside its candidate, and a mixture of experts.

    x = emb[tokens]
    for each layer:  x = blend(x, h) + experts(blend) (+ 0.5 x above the first);  h = x, or the cell's own part of it
    logits = head rms(x)

With carry="layer" the hidden state is the output of the whole layer, so the experts are inside the recurrence; with
carry="cell" it is the cell's output alone, and the experts process all steps at once.
"""

from dataclasses import dataclass

import numpy as np

from gpt2c.engine import ops
from gpt2c.engine.arena import ParamSpec, constant, normal
from gpt2c.engine.ops.recurrent import EPS, Gauge, gru, mixture
from gpt2c.errors import UsageError
from gpt2c.models.family import Family
from gpt2c.support.fields import flag, require_at_least

SKIP = 0.5  # of its input that a layer above the first adds to its result


@dataclass(frozen=True)
class Config:
    vocab_size: int = flag(256, "vocabulary size")
    hidden: int = flag(32, "width of the hidden state and of the layers", "--hidden-size")
    num_layers: int = flag(1, "recurrent layers")
    embed: int = flag(16, "token embedding width", "--embed-size")
    num_heads: int = flag(4, "heads of the time mixing: groups of channels whose time decay starts at different values")
    num_experts: int = flag(4, "mixture of experts: experts per layer; the first is shared, always on")
    top_k: int = flag(1, "mixture of experts: experts that each token is routed to besides the shared one, at most all of them")
    fast_mode: bool = flag(False, "leave out the mixture of experts")
    use_rwkv: bool = flag(True, "use RWKV's time mixing in the recurrent cell")
    carry: str = flag(
        "layer",
        "hidden state of a layer, carried from time step to time step: the output of the whole layer, experts "
        "included, or of the recurrent cell alone",
        choices=("layer", "cell"),
    )

    def __post_init__(self):
        require_at_least(self, vocab_size=1, hidden=1, num_layers=1, embed=1, num_heads=1, num_experts=1, top_k=1)
        if self.num_heads > self.hidden:
            raise UsageError(f"hybrid: num_heads ({self.num_heads}) is above hidden ({self.hidden})")
        if self.carry not in ("layer", "cell"):
            raise UsageError(f"hybrid: carry is {self.carry!r}, expected layer or cell")


def uniform(low, high):
    return lambda rng, shape: rng.uniform(low, high, shape).astype(np.float32)


def params(cfg):
    V, H, L, E, N = cfg.vocab_size, cfg.hidden, cfg.num_layers, cfg.embed, cfg.num_experts
    one, none = constant(1), constant(0)

    def spread(fan_in, fan_out, scale=1.0):
        return normal(scale * (2 / (fan_in + fan_out)) ** 0.5)

    def decays(rng, shape):  # slower in each head than in the one before
        head = np.minimum(np.arange(H) // (H // cfg.num_heads), cfg.num_heads - 1)
        return (-0.3 - 0.1 * head - rng.uniform(0, 0.4, shape)).astype(np.float32)

    inner, gate, middle = spread(H, H), spread(H, H, 0.1), uniform(0.45, 0.55)
    specs = [
        ParamSpec("emb", (V, E), normal(E**-0.5), True),
        ParamSpec("in0_norm", (E,), one, False),
        *(ParamSpec(f"in0_{part}", (H, E), spread(E, H), True) for part in ("z", "r", "h", "proj")),
        ParamSpec("in_norm", (L - 1, H), one, False),
        *(ParamSpec(f"in_{part}", (L - 1, H, H), inner, True) for part in "zrh"),
        ParamSpec("hid_norm", (L, H), one, False),
        *(ParamSpec(name, (L, H, H), inner, True) for name in ("uz", "ur", "uh")),
        *(ParamSpec(name, (L, H), none, False) for name in ("bz", "br", "bh")),
        *(ParamSpec(name, (L, H, H), inner, True) for name in ("wk", "wv", "wo")),
        *(ParamSpec(name, (L, H, H), gate, True) for name in ("wdecay", "wfirst")),
        ParamSpec("time_decay", (L, H), decays, False),
        ParamSpec("time_first", (L, H), uniform(0.3, 0.5), False),
        *(ParamSpec(name, (L, H), middle, False) for name in ("mu_k", "mu_v", "mu_r")),
        ParamSpec("moe_norm", (L, H), one, False),
        *(ParamSpec(name, (L, N, 2 * H, H), spread(H, 2 * H), True) for name in ("expert_g", "expert_u")),
        ParamSpec("expert_d", (L, N, H, 2 * H), spread(H, 2 * H), True),
        ParamSpec("router", (L, N - 1, H), spread(H, N - 1), True),
        ParamSpec("out_norm", (H,), one, False),
        ParamSpec("head", (V, H), spread(H, V), True),
    ]
    absent = {"in0_proj"} if E == H else set()
    if L == 1:
        absent |= {"in_norm", "in_z", "in_r", "in_h"}
    if not cfg.use_rwkv:
        absent |= {"wk", "wv", "wo", "wdecay", "wfirst", "time_decay", "time_first", "mu_k", "mu_v", "mu_r"}
    if cfg.fast_mode:
        absent |= {"moe_norm", "expert_g", "expert_u", "expert_d", "router"}
    if N == 1:
        absent.add("router")
    return [spec for spec in specs if spec.name not in absent]


def idle_parameters(cfg):
    """Parameters of the experts that a token is not routed to."""
    idle = 0 if cfg.fast_mode else max(0, cfg.num_experts - 1 - cfg.top_k)
    return cfg.num_layers * idle * 6 * cfg.hidden**2


def state(cfg, B):
    names = ("h", "num", "den", "xprev") if cfg.use_rwkv else ("h",)
    return {name: (cfg.num_layers, B, cfg.hidden) for name in names}


def forward(t, p, batch, cfg):
    present = {spec.name for spec in params(cfg)}
    x = ops.embedding(t, batch.tokens, p("emb"), name="encoded")
    terms, balance = {}, None
    for l in range(cfg.num_layers):
        gauge = Gauge(t, cfg.num_experts - 1, name=f"{l}") if "router" in present else None
        x = t.block(lambda x, l=l, gauge=gauge: layer(t, p, x, l, cfg, present, gauge), x)
        if gauge:
            balance = gauge.add_to(balance)
            terms |= {f"usage_{l}_{j}": ops.Term(gauge.usage.rows(j - 1, j)) for j in range(1, cfg.num_experts)}
    if balance:
        terms["balance"] = ops.Term(balance, t.options["balance_loss"])
    x = ops.rmsnorm(t, x, p("out_norm"), eps=EPS, name="out_norm")
    return ops.classifier(t, x, p("head"), batch.targets, cfg.vocab_size)._replace(terms=terms)


def layer(t, p, x, l, cfg, present, gauge):
    def entry(part):  # layer 0 reads another width, so its tensors are its own
        return p(f"in0_{part}") if l == 0 else p(f"in_{part}", l - 1)

    def weights(part):
        return p(part, l) if part in present else None

    def cell(part):
        return None if part == "moe_norm" else weights(part)

    h = ops.rmsnorm(t, x, entry("norm"), eps=EPS, name=f"{l}.in_norm")
    inputs = [ops.linear(t, h, entry(part), p(f"b{part}", l), name=f"{l}.a{part}") for part in "zrh"]
    xr = ops.linear(t, x, entry("proj"), name=f"{l}.xr") if l == 0 and "in0_proj" in present else x
    skip = SKIP if l else 0.0
    if cfg.carry == "layer":
        return gru(t, inputs, xr, weights, cfg.top_k, gauge, layer=l, skip=skip, name=f"{l}")
    h = gru(t, inputs, None, cell, cfg.top_k, None, layer=l, name=f"{l}")
    out = blend = ops.residual(t, h, xr, name=f"{l}.blended")
    if norm := weights("moe_norm"):
        n = ops.rmsnorm(t, blend, norm, eps=EPS, name=f"{l}.moe_norm")
        out = ops.residual(t, blend, mixture(t, n, weights, cfg.top_k, gauge, name=f"{l}"), name=f"{l}.experts")
    return ops.residual(t, out, x, scale=skip, name=f"{l}.skipped") if skip else out


SAMPLE = (
    "the river runs past the old mill and the wheel turns all day. a boy sits on the bank: he jumps for a frog, and counts "
    "the leaves that drift to the sea.\n"
)
# As its document trains it: windows that each begin with a state of zeros, no validation, a sample at the end.
TRAINING = dict(
    batch_size=4,
    seq_len=180,
    epochs=500.0,
    order="random",
    learning_rate=1e-3,
    weight_decay=0.01,
    grad_clip=1.0,
    val_every=0,
    sample_every=-1,
    sample_len=100,
    temperature=0.3,
    log_every=25,
    training_text=SAMPLE,
    save_path="./checkpoint.bin",
)
FLAGS = ("--training-text", "--training-file", "--hidden-size", "--embed-size", "--num-experts", "--fast-mode", "--use-rwkv")
LINES = dict(
    epoch="Epoch {epoch:4d} | Loss: {loss:.6f} | ∇: {grad_norm:.4f} | Time: {seconds:.1f}s",
    saved="Done in {seconds:.1f}s | Best loss: {best:.6f}\n\nSaved binary checkpoint to {path} ({megabytes:.2f} MB)\n",
    sample="Generating sample...\n\nTemperature: {temperature}\nGenerated ({count} tokens):\n{rule}\n{text}\n{rule}",
)

FAMILY = Family(
    name="hybrid",
    Config=Config,
    params=params,
    forward=forward,
    matrices=("emb", "head"),
    state=state,
    idle_parameters=idle_parameters,
    options=dict(balance_loss=0.0),
    tiny=dict(vocab_size=31, num_layers=2, hidden=32, num_heads=2),
    training=TRAINING,
    phases=dict(hidden=128, embed=64, num_layers=2, num_experts=2),
    generation=dict(max_new_tokens=100, temperature=0.3),
    tokenizer="char",
    flags=FLAGS,
    lines=LINES,
)
