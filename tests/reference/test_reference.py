"""The oracle itself: every backward by central differences, the whole GPT-2 against PyTorch's numbers.

A central difference with h = 1e-5 truncates about h² = 1e-10 of the value and rounds about 1e-16 / h = 1e-11
of it, so agreement to 1e-6 of the norm leaves room for badly scaled entries and none for a wrong term.
"""

import goldens
import numpy as np
import pytest

from gpt2c import reference as ref

H = 1e-5
TOLERANCE = 1e-6


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture(autouse=True)
def floating_point_errors_raise():
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        yield


def assert_close(actual, expected, tolerance=TOLERANCE):
    """The error is measured against the norm of the whole tensor."""
    assert np.shape(actual) == np.shape(expected)
    assert np.linalg.norm(np.subtract(actual, expected)) <= tolerance * np.linalg.norm(expected)


def numeric_gradient(f, x):
    """Gradient of the number f() with respect to the array x, which f reads."""
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        kept = x[i]
        x[i] = kept + H
        up = f()
        x[i] = kept - H
        gradient[i] = (up - f()) / (2 * H)
        x[i] = kept
    return gradient


# ---- one op at a time


@pytest.mark.parametrize("B, T, pos", [(1, 1, 0), (3, 5, 0), (2, 3, 4)])
def test_embedding(rng, B, T, pos):
    V, maxT, C = 5, 7, 3  # B * T above V: some token repeats
    tokens = rng.integers(V, size=(B, T))
    wte, wpe = rng.standard_normal((V, C)), rng.standard_normal((maxT, C))
    dout = rng.standard_normal((B, T, C))

    def f():
        return (ref.embedding_forward(tokens, wte, wpe, pos) * dout).sum()

    dwte, dwpe = ref.embedding_backward(dout, tokens, V, maxT, pos)
    assert_close(dwte, numeric_gradient(f, wte))
    assert_close(dwpe, numeric_gradient(f, wpe))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3, 7)])
def test_layernorm(rng, shape):
    x, dout = 3 + 2 * rng.standard_normal(shape), rng.standard_normal(shape)
    w, b = rng.standard_normal((2, shape[-1]))
    out, mean, rstd = ref.layernorm_forward(x, w, b)
    assert out.shape == shape and mean.shape == rstd.shape == shape[:-1]

    def f():
        return (ref.layernorm_forward(x, w, b)[0] * dout).sum()

    for actual, variable in zip(ref.layernorm_backward(dout, x, w, mean, rstd), (x, w, b), strict=True):
        assert_close(actual, numeric_gradient(f, variable))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3, 7)])
def test_rmsnorm(rng, shape):
    x, dout, w = 3 + 2 * rng.standard_normal(shape), rng.standard_normal(shape), rng.standard_normal(shape[-1])
    eps = 0.3  # a channel by itself hardly changes without it
    out, rstd = ref.rmsnorm_forward(x, w, eps)
    assert out.shape == shape and rstd.shape == shape[:-1]

    def f():
        return (ref.rmsnorm_forward(x, w, eps)[0] * dout).sum()

    for actual, variable in zip(ref.rmsnorm_backward(dout, x, w, rstd), (x, w), strict=True):
        assert_close(actual, numeric_gradient(f, variable))
    ones = np.ones(shape[-1])
    np.testing.assert_array_equal(ref.rmsnorm_forward(x)[0], ref.rmsnorm_forward(x, ones)[0])
    np.testing.assert_array_equal(ref.rmsnorm_backward(dout, x, None, rstd)[0], ref.rmsnorm_backward(dout, x, ones, rstd)[0])


@pytest.mark.parametrize("R, C, OC", [(1, 1, 1), (7, 3, 5), (2, 11, 1)])
def test_matmul(rng, R, C, OC):
    x, w, b = rng.standard_normal((R, C)), rng.standard_normal((OC, C)), rng.standard_normal(OC)
    dout = rng.standard_normal((R, OC))

    def f():
        return (ref.matmul_forward(x, w, b) * dout).sum()

    for actual, variable in zip(ref.matmul_backward(dout, x, w), (x, w, b), strict=True):
        assert_close(actual, numeric_gradient(f, variable))
    assert_close(ref.matmul_forward(x, w) + b, ref.matmul_forward(x, w, b))


@pytest.mark.parametrize("B, T, NH, hs", [(1, 1, 1, 1), (2, 1, 3, 2), (2, 5, 3, 3), (1, 7, 1, 5)])
def test_attention(rng, B, T, NH, hs):
    C = NH * hs
    qkv, dout = rng.standard_normal((B, T, 3 * C)), rng.standard_normal((B, T, C))
    out, preatt, att, lse = ref.attention_forward(qkv, NH)

    b, t, h = B - 1, T - 1, NH - 1  # the last row of the last head, written out
    q, k, v = (qkv[b, :, i * C + h * hs : i * C + (h + 1) * hs] for i in range(3))
    weights = np.exp(k @ q[t] / np.sqrt(hs))
    assert_close(preatt[b, h, t], k @ q[t] / np.sqrt(hs))
    assert_close(att[b, h, t], weights / weights.sum())
    assert_close(lse[b, h, t], np.log(weights.sum()))
    assert_close(out[b, t, h * hs :], weights @ v / weights.sum())
    future = np.triu_indices(T, 1)
    assert not preatt[:, :, *future].any() and not att[:, :, *future].any()

    def f():
        return (ref.attention_forward(qkv, NH)[0] * dout).sum()

    assert_close(ref.attention_backward(dout, qkv, att, NH), numeric_gradient(f, qkv))


def test_cached_attention_is_full_attention(rng):
    S, NH, C = 12, 3, 15
    qkv = rng.standard_normal((2, 9, 3 * C))
    kcache, vcache = np.full((2, 3, S, C), np.nan)  # what is read before it is written shows
    exact = ref.attention_forward(qkv, NH)[0]
    first, kcache, vcache = ref.attention_cached_forward(qkv[1:, :2], kcache, vcache, [0], [0], NH)
    assert_close(first, exact[1:, :2], 1e-14)
    for pos, T in [(0, 4), (4, 2), (6, 1)]:  # the second text is two positions ahead of the first
        at, new = [pos, pos + 2], np.stack([qkv[0, pos : pos + T], qkv[1, pos + 2 : pos + 2 + T]])
        out, kcache, vcache = ref.attention_cached_forward(new, kcache, vcache, at, [2, 0], NH)
        assert_close(out, np.stack([exact[0, pos : pos + T], exact[1, pos + 2 : pos + 2 + T]]), 1e-14)
    for slot, row, length in (2, 0, 7), (0, 1, 9):
        np.testing.assert_array_equal(kcache[slot, :length], qkv[row, :length, C : 2 * C])
        np.testing.assert_array_equal(vcache[slot, :length], qkv[row, :length, 2 * C :])
        assert np.isnan(kcache[slot, length:]).all() and np.isnan(vcache[slot, length:]).all()
    assert np.isnan(kcache[1]).all()
    step = ref.attention_decode_forward(qkv[:, 7], kcache, vcache, [7, 7], [2, 0], NH)[0]
    assert_close(step, exact[:, 7], 1e-14)


def test_gelu(rng):
    x, dout = np.append(4 * rng.standard_normal(40), 0.0), rng.standard_normal(41)
    assert_close(ref.gelu_forward(x), x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
    assert_close(ref.gelu_backward(dout, x), numeric_gradient(lambda: (ref.gelu_forward(x) * dout).sum(), x))


def test_gelu_erf(rng):
    x, dout = np.append(4 * rng.standard_normal(40), 0.0), rng.standard_normal(41)
    np.testing.assert_allclose(ref.gelu_erf_forward(x), ref.gelu_forward(x), atol=1e-3)  # which approximates it
    assert ref.gelu_erf_forward(np.ones(1)) == pytest.approx(0.8413447460685429, rel=1e-15)
    assert_close(ref.gelu_erf_backward(dout, x), numeric_gradient(lambda: (ref.gelu_erf_forward(x) * dout).sum(), x))


def test_squared_relu(rng):
    x, dout = np.append(4 * rng.standard_normal(40), 0.0), rng.standard_normal(41)
    np.testing.assert_array_equal(ref.squared_relu_forward(np.array([-2.0, 0.0, 3.0])), [0, 0, 9])
    assert_close(ref.squared_relu_backward(dout, x), numeric_gradient(lambda: (ref.squared_relu_forward(x) * dout).sum(), x))


def test_swiglu(rng):
    a, b, dout = 4 * rng.standard_normal(40), rng.standard_normal(40), rng.standard_normal(40)
    assert_close(ref.swiglu_forward(a, b), a / (1 + np.exp(-a)) * b)
    for actual, variable in zip(ref.swiglu_backward(dout, a, b), (a, b), strict=True):
        assert_close(actual, numeric_gradient(lambda: (ref.swiglu_forward(a, b) * dout).sum(), variable))


@pytest.mark.parametrize("B, T, I", [(1, 1, 1), (2, 5, 3)])
def test_scan(rng, B, T, I):
    a, b, dout = rng.standard_normal((3, B, T, I))
    h0, dlast = rng.standard_normal((2, B, I))
    out, last = ref.scan_forward(a, b, h0)
    np.testing.assert_array_equal(out[:, -1], last)
    assert_close(out[:, 0], a[:, 0] * h0 + b[:, 0])

    def f():
        out, last = ref.scan_forward(a, b, h0)
        return (out * dout).sum() + (last * dlast).sum()

    for actual, variable in zip(ref.scan_backward(dout, dlast, a, out, h0), (a, b, h0), strict=True):
        assert_close(actual, numeric_gradient(f, variable))


def test_mingru_gates(rng):
    x, da, db = 3 * rng.standard_normal((4, 10)), *rng.standard_normal((2, 4, 5))
    a, b = ref.mingru_gates_forward(x)
    assert ((a > 0) & (a < 1) & (b > 0)).all() and (x[:, :5] < 0).any() and (x[:, :5] > 0).any()

    def f():
        a, b = ref.mingru_gates_forward(x)
        return (a * da).sum() + (b * db).sum()

    assert_close(ref.mingru_gates_backward(da, db, x), numeric_gradient(f, x))


def test_mingru_in_logarithms_is_the_recurrence(rng):
    x, h0 = 2 * rng.standard_normal((2, 300, 6)), abs(rng.standard_normal((2, 3)))
    assert_close(ref.mingru_log_forward(x, h0), ref.scan_forward(*ref.mingru_gates_forward(x), h0)[0], 1e-12)


def test_dropout_residual(rng):
    a, b, dout = rng.standard_normal((3, 50))
    mask = ref.dropout_mask(50, 7, 3, 2, 0.3)
    assert 0 < mask.sum() < 50

    def f():
        return (ref.dropout_residual_forward(a, b, mask, 0.3) * dout).sum()

    for actual, variable in zip(ref.dropout_residual_backward(dout, mask, 0.3), (a, b), strict=True):
        assert_close(actual, numeric_gradient(f, variable))


def test_gelu_tails():
    x = np.array([-1000.0, -50.0, 50.0, 1000.0])
    np.testing.assert_array_equal(ref.gelu_forward(x), [0, 0, 50, 1000])
    np.testing.assert_array_equal(ref.gelu_backward(np.ones(4), x), [0, 0, 1, 1])


@pytest.mark.parametrize("R, V, Vp", [(1, 1, 1), (1, 3, 8), (7, 11, 11), (6, 5, 16)])
def test_crossentropy(rng, R, V, Vp):
    logits, targets = rng.standard_normal((R, Vp)), rng.integers(V, size=R)
    targets[1::3] = -1
    losses, lse, loss = ref.crossentropy_forward(logits, targets, V)

    probabilities = np.exp(logits[:, :V]) / np.exp(logits[:, :V]).sum(axis=1, keepdims=True)
    counted = [-np.log(probabilities[r, y]) for r, y in enumerate(targets) if y != -1]
    assert loss == pytest.approx(np.mean(counted), rel=1e-12, abs=1e-15)
    np.testing.assert_allclose(losses[targets != -1], counted, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(lse, np.log(np.exp(logits[:, :V]).sum(axis=1)), rtol=1e-12)
    assert not losses[targets == -1].any()

    dlogits = ref.crossentropy_backward(logits, targets, V)
    assert_close(dlogits, numeric_gradient(lambda: ref.crossentropy_forward(logits, targets, V)[2], logits))
    assert not dlogits[:, V:].any() and not dlogits[targets == -1].any()

    weights = rng.standard_normal(R)
    assert_close(
        ref.crossentropy_backward(logits, targets, V, weights),
        numeric_gradient(
            lambda: weights @ ref.crossentropy_forward(logits, targets, V)[0] / max(1, (targets != -1).sum()), logits
        ),
    )


def test_crossentropy_never_reads_padded_columns(rng):
    logits, targets = rng.standard_normal((4, 7)), np.array([0, 4, -1, 2])
    poisoned = logits.copy()
    poisoned[:, 5:] = np.nan
    for op in (lambda x: ref.crossentropy_forward(x, targets, 5)[2], lambda x: ref.crossentropy_backward(x, targets, 5)):
        np.testing.assert_array_equal(op(poisoned), op(logits))


def test_crossentropy_without_counted_targets(rng):
    logits, targets = rng.standard_normal((3, 5)), np.full(3, -1)
    losses, _, loss = ref.crossentropy_forward(logits, targets, 5)
    assert loss == 0.0 and not losses.any() and not ref.crossentropy_backward(logits, targets, 5).any()


def test_adamw(rng):
    """At t = 1 from zero moments the corrected step is g / |g|; the golden curve checks the later steps."""
    p, g, zero = rng.standard_normal(7), rng.standard_normal(7), np.zeros(7)
    new_p, m, v = ref.adamw(p, g, zero, zero, 0.1, 0.9, 0.99, 1e-15, 0.3, t=1)
    assert_close(new_p, p - 0.1 * (np.sign(g) + 0.3 * p), 1e-12)
    assert_close(m, 0.1 * g)
    assert_close(v, 0.01 * g**2)
    scaled = ref.adamw(p, g, m, v, 0.1, 0.9, 0.99, 1e-8, 0.3, t=2, grad_scale=0.5)
    np.testing.assert_array_equal(scaled, ref.adamw(p, g / 2, m, v, 0.1, 0.9, 0.99, 1e-8, 0.3, t=2))


def test_global_norm():
    assert ref.global_norm(np.array([[3.0, 0.0], [0.0, -4.0]])) == 5.0


def test_float32_arguments_are_not_computed_in_float32(rng):
    x, w = rng.standard_normal((3, 5)).astype(np.float32), rng.standard_normal((2, 5)).astype(np.float32)
    exact = ref.matmul_forward(x.astype(np.float64), w.astype(np.float64))
    assert ref.matmul_forward(x, w=w).dtype == np.float64
    np.testing.assert_array_equal(ref.matmul_forward(x, w=w), exact)


# ---- the whole GPT-2

CFG = {
    "max_seq_len": 7, "vocab_size": 11, "padded_vocab_size": 13,
    "num_layers": 2, "num_heads": 3, "channels": 15,
}  # fmt: skip


@pytest.fixture(scope="module")
def gpt2():
    rng = np.random.default_rng(2)
    params = {name: p.astype(np.float64) for name, p in ref.gpt2_random_params(CFG, seed=3).items()}
    tokens, targets = rng.integers(CFG["vocab_size"], size=(2, 2, 5))
    targets[0, 1] = targets[1, 4] = -1
    loss, _, cache = ref.gpt2_forward(params, CFG, tokens, targets)
    return params, tokens, targets, loss, cache, ref.gpt2_backward(cache)


@pytest.mark.parametrize("name", ref.gpt2_shapes(CFG))
def test_gpt2_directional_derivative(rng, gpt2, name):
    """Along the gradient plus a random direction: the sum is never small, and no entry is left out."""
    params, tokens, targets, _, _, grads = gpt2
    gradient, noise = grads[name], rng.standard_normal(grads[name].shape)
    direction = gradient / np.linalg.norm(gradient) + noise / np.linalg.norm(noise)

    def f(h):
        return ref.gpt2_forward({**params, name: params[name] + h * direction}, CFG, tokens, targets)[0]

    assert (f(H) - f(-H)) / (2 * H) == pytest.approx((gradient * direction).sum(), rel=TOLERANCE)


def test_gpt2_gradients_are_alive_where_they_should_be(gpt2):
    params, tokens, _, _, _, grads = gpt2
    assert list(grads) == list(params) and all(grads[name].shape == params[name].shape for name in params)
    V, T = CFG["vocab_size"], tokens.shape[1]
    assert not params["wte"][V:].any()
    assert not grads["wte"][V:].any() and not grads["wpe"][T:].any()
    assert grads["wte"][:V].any(axis=1).all() and grads["wpe"][:T].any(axis=1).all()
    for name in ("ln1w", "qkvw", "attprojb", "fcprojw"):
        assert grads[name].any(axis=tuple(range(1, grads[name].ndim))).all()  # in every layer


def test_gpt2_is_causal(gpt2):
    params, tokens, targets, _, cache, _ = gpt2
    changed = tokens.copy()
    changed[:, 3] = (changed[:, 3] + 1) % CFG["vocab_size"]
    _, logits, _ = ref.gpt2_forward(params, CFG, changed, targets)
    np.testing.assert_array_equal(logits[:, :3], cache["logits"][:, :3])
    assert (logits[:, 3:] != cache["logits"][:, 3:]).any(axis=(0, 2)).all()


def test_gpt2_mean_is_over_counted_targets(gpt2):
    _, _, targets, loss, cache, _ = gpt2
    assert not cache["losses"][targets == -1].any()
    assert loss == pytest.approx(cache["losses"][targets != -1].mean(), rel=1e-14)


@pytest.mark.parametrize("name", ["gpt2_curve", "gpt2_one_token", "gpt2_ignored"])
def test_gpt2_agrees_with_pytorch(name):
    """float32 storage rounds each golden number by 2⁻²⁴ = 6e-8 of itself."""
    golden = goldens.golden(name)
    params, cfg = golden["params"], golden["cfg"]
    loss, logits, cache = ref.gpt2_forward(params, cfg, golden["tokens"], golden["targets"])
    assert loss == pytest.approx(golden["loss"].item(), rel=1e-12)
    assert_close(logits, golden["logits"])
    grads = ref.gpt2_backward(cache)
    assert list(grads) == list(golden["grads"])
    for tensor, gradient in golden["grads"].items():
        assert_close(grads[tensor], gradient)


def assert_trains_as(golden, forward, backward):
    """The losses of AdamW's updates on the golden's batch are those of its curve."""
    params = golden["params"]
    moments = {name: (np.zeros(p.shape), np.zeros(p.shape)) for name, p in params.items()}
    for step, expected in enumerate(golden["curve"]):
        loss, _, cache = forward(params, golden["cfg"], golden["tokens"], golden["targets"])
        assert loss == pytest.approx(expected, rel=TOLERANCE)
        for name, gradient in backward(cache).items():
            params[name], *moments[name] = ref.adamw(
                params[name], gradient, *moments[name], 1e-3, 0.9, 0.999, 1e-8, weight_decay=0.01, t=step + 1
            )


def test_gpt2_training_curve_agrees_with_pytorch():
    assert_trains_as(goldens.golden("gpt2_curve"), ref.gpt2_forward, ref.gpt2_backward)
