"""The hybrid's operations: the recurrent layer, and the mixture of experts outside of a recurrence.

Like those beside it; the formulas are in kernels/gpt2c.h. A layer's weights come as a function of their names that gives
None for those the model does not have.
"""

from typing import NamedTuple

from gpt2c._core import Buffer
from gpt2c.engine.tape import Tape, Tensor

EPS = 1e-6
# The planes that kernels/gru.c keeps, in its order, by the names they have in `acts`.
ACTS = ("hn", "rh", "z", "r", "c", "blend")
MIXED = ("shift_k", "shift_v", "q", "k", "v", "decay", "first", "num", "den", "gated", "c2")
DELTAS = ("dz", "dr", "dc")
MIXED_DELTAS = ("dk", "dv", "ddecay", "dfirst", "dc2")
MATRICES, VECTORS = ("wk", "wv", "wo", "wdecay", "wfirst"), ("time_decay", "time_first", "mu_k", "mu_v", "mu_r")
EXPERTS = ("expert_g", "expert_u", "expert_d", "router")


class Planes(NamedTuple):
    """One buffer of (planes, B, T, H) and its planes by name, (B, T, H) each."""

    whole: Buffer
    plane: dict[str, Buffer]


def planes(t, names, B, T, H, *, name) -> Planes:
    whole = t.buffer((len(names), B, T, H), name)
    plane = {part: whole.rows(i * B, (i + 1) * B, T, H) for i, part in enumerate(names)}
    if t.keep:
        prefix = name.rpartition(".")[0]
        t.kept |= {f"{prefix}.{part}": buffer for part, buffer in plane.items()}
    return Planes(whole, plane)


class Gauge:
    """How evenly a layer's M routed experts are used: the share of rows that chose each, and the balance loss."""

    def __init__(self, t, M, *, name):
        self.t, self.usage, self.balance = t, t.buffer((M,), f"{name}.usage"), t.buffer((1,), f"{name}.balance")

    def add_to(self, balance):
        """The balance loss of this layer and of those before it."""
        if balance is None:
            return self.balance
        total = self.t.buffer((1,), "balance")
        self.t.s.residual_forward(total, balance, self.balance)
        return total


class Mixture:
    """A layer's experts and what their forward keeps for their backward. Each row is routed to expert 0 and to `top_k` others."""

    def __init__(self, t: Tape, weights, B, T, H, top_k, gauge, *, name):
        self.t, self.name, self.gauge = t, name, gauge
        self.weights = [weights(part) for part in EXPERTS]
        expert_g, *_, router = self.weights
        self.N = expert_g.shape[0]
        M = self.N - 1
        S = self.S = 1 + min(top_k, M)
        self.gates, self.y = t.buffer((S, B, T, 4 * H), f"{name}.gates"), t.buffer((S, B, T, H), f"{name}.y")
        self.probs = t.buffer((B, T, M), f"{name}.probs") if router else None
        self.shares, self.chosen = t.buffer((B, T, S), f"{name}.shares"), t.buffer((B, T, S), f"{name}.chosen", "i32")

    # Arguments of the kernels, by name.

    @property
    def data(self):
        return {part: w.data for part, w in zip(EXPERTS, self.weights) if w}

    @property
    def kept(self):
        return {"gates": self.gates, "y": self.y, "probs": self.probs, "weights": self.shares, "chosen": self.chosen}

    @property
    def balancing(self):
        """What the backward adds to the probabilities' gradients: the usage, times the weight of the balance loss."""
        weight = self.t.scale * self.t.options["balance_loss"] if self.gauge else 0
        return {"fraction": self.gauge.usage, "balance": weight, "first_new": self.t.first} if weight else {}

    def measure(self):
        if self.gauge:
            self.t.s.balance_forward(self.gauge.balance, self.gauge.usage, self.probs, self.chosen, self.t.first)

    def deltas(self):
        """Room for what the backward leaves for the weights' gradients: of gates and logits."""
        t, M = self.t, self.N - 1
        shape = self.chosen.shape[:2]
        return (
            t.buffer(self.gates.shape, f"d{self.name}.gates"),
            t.buffer((*shape, M), f"d{self.name}.logits") if self.probs else None,
        )

    def backward_w(self, dout, dgates, dlogits, n):
        expert_g, expert_u, expert_d, router = self.weights
        (dg, add), (du, _), (dd, _) = expert_g.sink(), expert_u.sink(), expert_d.sink()
        self.t.s.moe_backward_w(dg, du, dd, dout, dgates, self.gates, n, self.shares, self.chosen, add)
        if router:
            dw, add = router.sink()
            self.t.s.matmul_backward_w(dw, None, dlogits, n, add)


def mixture(t, n: Tensor, weights, top_k, gauge, *, name):
    """A mixture of experts on (B, T, H), all rows at once."""
    B, T, H = n.shape
    moe = Mixture(t, weights, B, T, H, top_k, gauge, name=name)
    out = t.new(n.shape, f"{name}.moe")
    t.s.moe_forward(out=out.data, n=n.data, **moe.kept, **moe.data)
    moe.measure()

    def backward():
        dgates, dlogits = moe.deltas()
        n.gradient.is_in(t.buffer(n.shape, f"d{n.name}"))  # nothing else reads n
        t.s.moe_backward(n.grad, dgates, dlogits, out.grad, **moe.kept, **moe.data, **moe.balancing)
        moe.backward_w(out.grad, dgates, dlogits, n.data)

    t.on_backward(backward)
    return out


def _add_weight_gradients(t, own, deltas, kept):
    """The gradients of the layer's matrices: for each, the gradient of its output times its input."""
    products = [("uz", "dz", "hn"), ("ur", "dr", "hn"), ("uh", "dc", "rh")]
    if "wk" in own:
        products += zip(MATRICES, ("dk", "dv", "dc2", "ddecay", "dfirst"), ("shift_k", "shift_v", "gated", "c", "c"))
    for part, of_result, of_input in products:
        dw, add = own[part].sink()
        t.s.matmul_backward_w(dw, None, deltas[of_result], kept[of_input], add)


def gru(t, inputs, xr, weights, top_k, gauge, *, layer, skip=0.0, name):
    """The recurrent layer: inputs az, ar, ah (B, T, H) and, where they are given, xr and the experts -> (B, T, H).

    Each of the inputs is used here alone. The layer starts from the incoming hidden state and leaves its state at the end.
    """
    az, ar, ah = inputs
    B, T, H = az.shape
    own = {part: w for part in ("hid_norm", "uz", "ur", "uh", *MATRICES, *VECTORS, "moe_norm") if (w := weights(part))}
    mixing = "wk" in own
    moe = Mixture(t, weights, B, T, H, top_k, gauge, name=name) if "moe_norm" in own else None

    states = ("h", "num", "den", "xprev") if mixing else ("h",)
    first = {part: t.incoming(part, layer) for part in states}
    last = {part: t.buffer((B, H), f"{name}.{part}1") for part in states}
    out = t.new((B, T, H), f"{name}.out")
    acts = planes(t, ACTS, B, T, H, name=f"{name}.acts")
    mixed = planes(t, MIXED, B, T, H, name=f"{name}.mixed") if mixing else Planes(None, {})
    n = t.buffer((B, T, H), f"{name}.n") if moe else None
    kept = {"out": out.data, "acts": acts.whole, "mixed": mixed.whole} | (moe.kept if moe else {})
    given = {f"{part}0": x for part, x in first.items()} | {part: w.data for part, w in own.items()}
    given |= moe.data if moe else {}
    entering = {"az": az.data, "ar": ar.data, "ah": ah.data, "xr": xr and xr.data}
    leaving = {f"{part}1": x for part, x in last.items()}
    t.s.gru_forward(n=n, **entering, **leaving, **kept, **given, eps=EPS, skip=skip)
    if moe:
        moe.measure()

    def backward():
        deltas = planes(t, DELTAS, B, T, H, name=f"d{name}.deltas")
        mixed_deltas = planes(t, MIXED_DELTAS, B, T, H, name=f"d{name}.mixed_deltas") if mixing else Planes(None, {})
        dtotal = t.buffer((B, T, H), f"d{name}.total") if moe else None
        dgates, dlogits = moe.deltas() if moe else (None, None)
        dxr, add = xr.sink() if xr else (None, 0)
        outputs = dict(deltas=deltas.whole, mixed_deltas=mixed_deltas.whole, dtotal=dtotal, dgates=dgates, dlogits=dlogits)
        outputs |= {f"d{part}0": t.buffer((B, H), f"d{x.name}") for part, x in first.items()}  # go nowhere
        outputs |= {f"d{part}": own[part].grad for part in ("hid_norm", *VECTORS, "moe_norm") if part in own}
        arriving = {"dout": out.grad} | kept | given | (moe.balancing if moe else {})
        t.s.gru_backward(dxr=dxr, **outputs, **arriving, eps=EPS, skip=skip, add=add)
        for x, part in zip(inputs, DELTAS):
            x.gradient.is_in(deltas.plane[part])
        _add_weight_gradients(t, own, deltas.plane | mixed_deltas.plane, acts.plane | mixed.plane)
        if moe:
            moe.backward_w(dtotal, dgates, dlogits, n)

    t.on_backward(backward)
    for part, x in last.items():
        t.outgoing(part, layer, x)
    return out
