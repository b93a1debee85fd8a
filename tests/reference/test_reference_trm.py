"""The oracle of the Tiny Recursive Model: every backward by central differences, the whole against PyTorch's numbers.

Reading a table between its rows has kinks, and so has halting: the differences stay away from both.
"""

import goldens
import numpy as np
import pytest
from test_reference import TOLERANCE, H, assert_close, assert_trains_as, floating_point_errors_raise, numeric_gradient, rng  # noqa: F401

from gpt2c import reference as ref


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3, 7)])
def test_dyt(rng, shape):  # noqa: F811
    x, dout, a = rng.standard_normal(shape), rng.standard_normal(shape), np.array([0.8])
    w, b = rng.standard_normal((2, shape[-1]))

    def f():
        return (ref.dyt_forward(x, a, w, b) * dout).sum()

    dx, da, dw, db = ref.dyt_backward(dout, x, a, w)
    for actual, variable in zip((dx, np.array([da]), dw, db), (x, a, w, b), strict=True):
        assert_close(actual, numeric_gradient(f, variable))


@pytest.mark.parametrize("B, T, NH, hs, M", [(1, 1, 1, 1, 1), (2, 1, 3, 2, 2), (2, 6, 3, 3, 3), (1, 7, 1, 5, 9)])
def test_cope(rng, B, T, NH, hs, M):  # noqa: F811
    C = NH * hs
    qkv, dout, table = rng.standard_normal((B, T, 3 * C)), rng.standard_normal((B, T, C)), rng.standard_normal((NH, M, hs))
    out, cache = ref.cope_forward(qkv, table, NH)
    kinks = np.arange(1, M)[:, None]
    assert abs(cache["total"][cache["gate"] > 0] - kinks).min(initial=1) > 100 * H

    b, i, h = B - 1, T - 1, NH - 1  # the last row of the last head, written out
    q, k, v = (qkv[b, :, n * C + h * hs : n * C + (h + 1) * hs] for n in range(3))
    scores = []
    for j in range(T):
        p = min(sum(1 / (1 + np.exp(-q[i] @ k[n])) for n in range(j, i + 1)), M - 1)
        read = np.interp(p, np.arange(M), table[h] @ q[i])
        scores.append(q[i] @ k[j] / np.sqrt(hs) + read)
    weights = np.exp(scores)
    assert_close(cache["preatt"][b, h, i], scores)
    assert_close(cache["att"][b, h, i], weights / weights.sum())
    assert_close(cache["lse"][b, h, i], np.log(weights.sum()))
    assert_close(out[b, i, h * hs :], weights @ v / weights.sum())
    future = np.triu_indices(T, 1)
    assert not cache["preatt"][:, :, *future].any() and not cache["att"][:, :, *future].any()

    def f():
        return (ref.cope_forward(qkv, table, NH)[0] * dout).sum()

    dqkv, dtable = ref.cope_backward(dout, cache)
    assert_close(dqkv, numeric_gradient(f, qkv))
    assert_close(dtable, numeric_gradient(f, table))


def test_cope_with_a_table_of_zeros_is_plain_attention(rng):  # noqa: F811
    qkv = rng.standard_normal((2, 5, 18))
    assert_close(ref.cope_forward(qkv, np.zeros((2, 4, 3)), 2)[0], ref.attention_forward(qkv, 2)[0], 1e-14)


@pytest.mark.parametrize("depth", [None, np.array([2, 1, 5, 2, 3])])
def test_scaled_residual(rng, depth):  # noqa: F811
    x, y, dout, scale = *rng.standard_normal((3, 5, 4)), np.array([0.3])

    def f():
        return (ref.scaled_residual_forward(x, y, scale, depth, 3) * dout).sum()

    dx, dy, dscale = ref.scaled_residual_backward(dout, y, scale, depth, 3)
    for actual, variable in zip((dx, dy, np.array([dscale])), (x, y, scale), strict=True):
        assert_close(actual, numeric_gradient(f, variable))
    halted = np.zeros(5, bool) if depth is None else depth < 3
    np.testing.assert_array_equal(ref.scaled_residual_forward(x, y, scale, depth, 3)[halted], x[halted])


@pytest.mark.parametrize("N, R", [(1, 3), (4, 9)])
def test_halting(rng, N, R):  # noqa: F811
    """With the ponder loss, over all rows but one."""
    xs, w, b = rng.standard_normal((N, R, 5)), rng.standard_normal(5), np.array([-0.5])
    dmixed, targets = rng.standard_normal((R, 5)), np.arange(R) - 1
    mixed, prob, weight, depth, total = ref.halting_forward(list(xs), w, b, 0.9)
    assert set(depth) == set(range(1, N + 1))
    np.testing.assert_allclose(weight.sum(0), 1)
    for r in range(R):
        assert (weight[depth[r] :, r] == 0).all() and (prob[: depth[r] - 1, r].sum() < 0.9)
    running_sums = np.cumsum(prob, axis=0)
    assert abs(running_sums - 0.9).min() > 100 * H

    def f():
        mixed, _, _, depth, total = ref.halting_forward(list(xs), w, b, 0.9)
        return (mixed * dmixed).sum() + 0.3 * ref.ponder_forward(depth, total, targets)[0]

    dtotal = ref.ponder_backward(targets, 0.3)
    dxs, dw, db = ref.halting_backward(dmixed, dtotal, list(xs), w, prob, weight, depth)
    assert_close(np.stack(dxs), numeric_gradient(f, xs))
    if N == 1:
        assert not np.any(dw) and not np.any(db)  # the only step cannot be halted at
    else:
        assert_close(dw, numeric_gradient(f, w))
        assert_close(np.array([db]), numeric_gradient(f, b))


GOLDENS = ["trm_one_step", "trm_curve", "trm_adaptive", "trm_adaptive_none"]


@pytest.mark.parametrize("name", GOLDENS)
def test_trm_agrees_with_pytorch(name):
    """float32 storage rounds each golden number by 2⁻²⁴ = 6e-8 of itself."""
    golden = goldens.golden(name)
    assert {n: p.shape for n, p in golden["params"].items()} == ref.trm_shapes(golden["cfg"])
    loss, logits, cache = ref.trm_forward(golden["params"], golden["cfg"], golden["tokens"], golden["targets"])
    assert loss == pytest.approx(golden["loss"].item(), rel=1e-12)
    assert cache["metrics"] == pytest.approx(golden["metrics"], rel=1e-12)
    assert_close(logits, golden["logits"])
    grads = ref.trm_backward(cache)
    assert set(grads) == set(golden["grads"])
    for tensor, gradient in golden["grads"].items():
        assert_close(grads[tensor], gradient)


@pytest.mark.parametrize("name", ["trm_curve", "trm_adaptive"])
def test_trm_training_curve_agrees_with_pytorch(name):
    assert_trains_as(goldens.golden(name), ref.trm_forward, ref.trm_backward)


def test_trm_is_causal():
    """With adaptive depth too: no token's number of steps depends on what comes after it."""
    golden = goldens.golden("trm_adaptive")
    args = golden["params"], golden["cfg"]
    changed = golden["tokens"].copy()
    changed[:, 7] = (changed[:, 7] + 1) % golden["cfg"]["vocab_size"]
    before, after = (ref.trm_forward(*args, tokens, golden["targets"])[1] for tokens in (golden["tokens"], changed))
    np.testing.assert_allclose(after[:, :7], before[:, :7], rtol=1e-12)
    assert (abs(after[:, 7:] - before[:, 7:]) > 1e-6).any(axis=(0, 2)).all()
