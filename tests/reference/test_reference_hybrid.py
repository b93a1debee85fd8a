"""The hybrid's oracle itself: its gradients by central differences, with every combination of its parts."""

import itertools

import goldens
import numpy as np
import pytest
from test_reference import TOLERANCE, H, assert_close, numeric_gradient

from gpt2c import reference as ref

BASE = dict(vocab_size=7, hidden=6, num_layers=2, embed=4, num_experts=4, top_k=2, fast_mode=False, use_rwkv=True, carry="layer")
KINDS = [
    BASE,
    BASE | dict(carry="cell"),
    BASE | dict(use_rwkv=False, top_k=1),
    BASE | dict(fast_mode=True),
    BASE | dict(fast_mode=True, carry="cell", use_rwkv=False),
    BASE | dict(num_experts=1),
    BASE | dict(embed=6, num_layers=1, top_k=3),
]


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_moe(rng, top_k):
    n, dout = rng.standard_normal((2, 5, 3))
    weights = [rng.standard_normal(shape) for shape in ((4, 6, 3), (4, 6, 3), (4, 3, 6), (3, 3))]
    out, cache = ref.moe_forward(n, *weights, top_k)
    r = 2  # one row, written out
    p = np.exp(n[r] @ weights[3].T) / np.exp(n[r] @ weights[3].T).sum()
    best = sorted(range(3), key=lambda j: -p[j])[:top_k]
    experts = []
    for j in range(4):
        a, b = weights[0][j] @ n[r], weights[1][j] @ n[r]
        experts.append(weights[2][j] @ (a / (1 + np.exp(-a)) * b))
    expected = (experts[0] + sum(p[j] * experts[j + 1] for j in best)) / (1 + sum(p[j] for j in best))
    assert_close(out[r], expected, 1e-13)

    def f():
        out, cache = ref.moe_forward(n, *weights, top_k)
        return (out * dout).sum() + 0.3 * ref.balance_loss(cache["p"], cache["picked"])

    dn, grads, (da, db, _) = ref.moe_backward(dout, cache, *weights, 0.3 * ref.balance_slope(cache["picked"]))
    for actual, variable in zip((dn, *grads.values()), (n, *weights), strict=True):
        assert_close(actual, numeric_gradient(f, variable))

    gates, _, p, shares, chosen = ref.moe_kept(cache)  # and the same from what kernels keep, of a batch of one
    dgates = ref.by_slot(np.concatenate([da, db], axis=-1), chosen)
    found = ref.moe_backward_w(dout[None], dgates[:, None], gates[:, None], n[None], shares[None], chosen[None], 4)
    for actual, expected in zip(found, grads.values()):
        assert_close(actual, expected, 1e-13)
    balance, fraction = ref.balance_forward(p, chosen)
    assert balance == pytest.approx(ref.balance_loss(cache["p"], cache["picked"]), rel=1e-14)
    assert_close(fraction, cache["picked"].mean(axis=0), 1e-14)


def test_equal_experts_are_chosen_by_number():
    n, same = np.ones((1, 2)), np.zeros((4, 4, 2))
    _, cache = ref.moe_forward(n, same, same, np.zeros((4, 2, 4)), np.zeros((3, 2)), 2)
    assert cache["chosen"].tolist() == [[0, 1]]


def test_wkv(rng):
    values = rng.standard_normal((6, 9))
    values[5] = abs(values[5])  # den
    dwkv, dnum, dden = rng.standard_normal((3, 9))

    def f():
        return sum((g * out).sum() for g, out in zip((dwkv, dnum, dden), ref.wkv_forward(*values)))

    for actual, variable in zip(ref.wkv_backward(dwkv, dnum, dden, *values), values, strict=True):
        assert_close(actual, numeric_gradient(f, variable))


def make(cfg, seed=3, B=2, T=4):
    rng = np.random.default_rng(seed)
    params = {name: p.astype(float) for name, p in ref.hybrid_random_params(cfg, seed).items()}
    tokens, targets = rng.integers(cfg["vocab_size"], size=(2, B, T))
    targets[0, 1] = -1
    state = {name: rng.standard_normal(s.shape) for name, s in ref.zero_state(cfg, B).items()}
    if "den" in state:
        state["den"] = abs(state["den"])
    return params, tokens, targets, state


@pytest.mark.parametrize("cfg", KINDS, ids=range(len(KINDS)))
def test_every_gradient_of_the_hybrid(cfg):
    """Of every parameter and of the state that came in, with something flowing back into the state that goes on."""
    params, tokens, targets, state = make(cfg)
    rng = np.random.default_rng(5)
    dstate = {name: rng.standard_normal(s.shape) for name, s in state.items()}

    def f():
        loss, _, cache = ref.hybrid_forward(params, cfg, tokens, targets, state, balance=0.1)
        return loss + sum((dstate[name] * s).sum() for name, s in cache["state"].items())

    cache = ref.hybrid_forward(params, cfg, tokens, targets, state, balance=0.1)[2]
    grads, dfirst = ref.hybrid_backward(cache, dstate)
    for name, variable in itertools.chain(params.items(), state.items()):
        gradient = (grads | dfirst)[name]
        noise = rng.standard_normal(variable.shape)
        direction = gradient / max(np.linalg.norm(gradient), 1e-30) + noise / np.linalg.norm(noise)
        kept = variable.copy()
        variable += H * direction
        up = f()
        variable[...] = kept - H * direction
        slope = (up - f()) / (2 * H)
        variable[...] = kept
        assert slope == pytest.approx((gradient * direction).sum(), rel=TOLERANCE), name
        assert gradient.any(), name


def test_clamped_keys_get_no_gradient():
    params, tokens, targets, state = make(BASE)
    params["wk"] *= 100
    _, _, cache = ref.hybrid_forward(params, BASE, tokens, targets, state)
    assert (abs(cache["layers"][1]["gru"]["steps"][0]["k"]) == ref.CLAMP).mean() > 0.5
    grads, _ = ref.hybrid_backward(cache)

    def f():
        return ref.hybrid_forward(params, BASE, tokens, targets, state)[0]

    assert_close(grads["wk"], numeric_gradient(f, params["wk"]))


@pytest.mark.parametrize("cfg", KINDS, ids=range(len(KINDS)))
def test_chunks_with_carried_state_are_the_whole(cfg):
    params, tokens, targets, state = make(cfg, T=7)
    whole = ref.hybrid_forward(params, cfg, tokens, targets, state)
    parts = []
    for first, last in (0, 3), (3, 4), (4, 7):
        _, logits, cache = ref.hybrid_forward(params, cfg, tokens[:, first:last], targets[:, first:last], state)
        state = cache["state"]
        parts.append(logits)
    assert_close(np.concatenate(parts, axis=1), whole[1], 1e-13)
    for name, s in state.items():
        assert_close(s, whole[2]["state"][name], 1e-13)


@pytest.mark.parametrize("name", goldens.names("hybrid_"))
def test_the_hybrid_agrees_with_pytorch(name):
    """float32 storage rounds each golden number by 2^-24 = 6e-8 of itself."""
    golden = goldens.golden(name)
    params, cfg = golden["params"], golden["cfg"]
    assert list(params) == list(ref.hybrid_shapes(cfg))
    loss, logits, cache = ref.hybrid_forward(params, cfg, golden["tokens"], golden["targets"])
    assert loss == pytest.approx(golden["loss"].item(), rel=1e-12)
    assert_close(logits, golden["logits"])
    grads, _ = ref.hybrid_backward(cache)
    for tensor, gradient in golden["grads"].items():
        assert_close(grads[tensor], gradient)
