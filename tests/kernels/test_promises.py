"""What single kernels promise besides being right where test_kernels.py looks: scales, special values, exactness, bf16."""

import cases  # noqa: F401  registers them
import numpy as np
import pytest
from cases.activation import gelu_bound, gelu_erf_bound, swiglu_bound
from cases.case import assert_within, gamma, made, normal, single, unset
from guarded import STREAM, bits, call, run

import gpt2c
from gpt2c import _core
from gpt2c import reference as ref
from gpt2c.formats.blocks import bf16_bits

SLOTS = np.arange(3, dtype=np.int32)


@pytest.mark.parametrize("R, C, N", [(33, 1, 35), (40, 70, 33)])
def test_products_are_exact_at_every_scale(isa, rng, R, C, N):
    """Each product within the rounding of its own terms, whatever lies beside it: no number loses bits to a larger one."""

    def wide(*shape):
        return (normal(rng, *shape) * np.exp2(rng.integers(-40, 40, shape))).astype(np.float32)

    x, w, dout = wide(R, C), wide(N, C), wide(R, N)
    found = [
        run("matmul_forward", unset(R, N), x, w, None)[0],
        call("matmul_backward_x", (unset(R, C), dout, w, 0, 0))[0],
        call("matmul_backward_w", (unset(N, C), None, dout, x, 0))[0],
    ]
    exact = [ref.matmul_forward(x, w, 0), *ref.matmul_backward(dout, x, w)[:2]]
    size = [ref.matmul_forward(abs(x), abs(w), 0), *ref.matmul_backward(abs(dout), abs(x), abs(w))[:2]]
    assert_within(found, [(e, gamma(k + 2) * s) for e, s, k in zip(exact, size, (C, N, R))])


def test_products_of_single_numbers_are_exact(isa, rng):
    """Those whose first eight bits say least of them: if a product is a sum of products of parts, here parts are large."""
    x, w = (single(1 + rng.integers(0, 2**16, (600, 1)) / 2.0**23) for _ in range(2))
    exact = ref.matmul_forward(x, w, 0)
    assert_within(run("matmul_forward", unset(600, 600), x, w, None), [(exact, gamma(3) * exact)])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_row_of_a_product_and_no_other(isa, rng, precision, bad):
    gpt2c.set_matmul_precision(precision)
    x, w = normal(rng, 37, 45), normal(rng, 50, 45)
    whole = run("matmul_forward", unset(37, 50), x, w, None)[0]
    x[35, 44] = bad
    spoilt = run("matmul_forward", unset(37, 50), x, w, None)[0]
    assert not np.isfinite(spoilt[35]).any()
    assert bits(np.delete(spoilt, 35, 0)) == bits(np.delete(whole, 35, 0))


@pytest.mark.parametrize("name", ["gelu_forward", "gelu_forward_scalar"])
def test_gelu_over_all_floats(isa, name):
    x = np.arange(0, 2**32, 2003).astype(np.uint32).view(np.float32)  # of either sign, subnormal, huge, NaN
    x, out = x[abs(x) < np.inf], unset(np.sum(abs(x) < np.inf))
    getattr(STREAM, name)(out, x)
    exact = ref.gelu_forward(x)
    assert_within([out], [(exact, gelu_bound(x, exact))])


def test_gelu_erf_and_swiglu_over_all_floats(isa):
    x = np.arange(0, 2**32, 20011).astype(np.uint32).view(np.float32)
    x = x[abs(x) < np.inf]
    exact = ref.gelu_erf_forward(x)
    assert_within(run("gelu_erf_forward", unset(len(x)), x), [(exact, gelu_erf_bound(x, exact))])
    exact = ref.swiglu_forward(x, np.ones(len(x)))
    assert_within(run("swiglu_forward", unset(len(x)), x, np.ones_like(x)), [(exact, swiglu_bound(x, exact))])


@pytest.mark.parametrize("name", ["gelu_erf_forward", "squared_relu_forward"])
def test_activations_of_special_values(isa, name):
    x = single([0.0, np.nan, -np.nan, np.inf, -3e38, 1e-30, -1e-45])
    small = 0.0 if name == "squared_relu_forward" else 5e-31
    expected = [0.0, np.nan, np.nan, np.inf, 0.0, small, 0.0]
    np.testing.assert_allclose(run(name, unset(7), x)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["gelu_forward", "gelu_forward_scalar"])
def test_gelu_of_special_values(isa, name):
    x = single([0.0, -0.0, np.nan, -np.nan, np.inf, 3e38, -3e38, 1e-45, -1e-45])
    out = unset(9)
    getattr(STREAM, name)(out, x)
    np.testing.assert_array_equal(out, single([0.0, -0.0, np.nan, np.nan, np.inf, 3e38, 0.0, 0.0, 0.0]))
    assert list(np.signbit(out[:2])) == [False, True]


def test_tanh_over_all_floats(isa):
    """Through dyt_forward with a = w = 1 and b = 0: within 4 units in the last place."""
    x = np.arange(0, 2**32, 2003).astype(np.uint32).view(np.float32)
    x = x[(abs(x) < np.inf) & (abs(x) > 2.0**-126)][None]
    out, one = unset(*x.shape), np.ones(x.shape[1], np.float32)
    STREAM.dyt_forward(out, x, one[:1], one, 0 * one)
    exact = np.tanh(x.astype(float))
    assert (abs(out - exact) <= 4 * np.spacing(abs(single(exact)))).all()


def test_contextual_positions_of_nan_and_infinite_scores_read_nothing_wild(isa):
    qkv, table = np.full((1, 40, 24), np.nan, np.float32), np.ones((2, 5, 4), np.float32)
    for value in np.nan, np.inf, 3e38:
        qkv[...] = value
        outputs = run("cope_forward", unset(1, 40, 8), unset(1, 2, 40), None, None, qkv, table)
        run("cope_backward", np.zeros_like(qkv), 0 * table, outputs[0], qkv, *outputs, table)


def test_contextual_decoding_in_any_steps_is_the_full_forward(isa):
    sizes = B, T, H, D, _ = 2, 33, 3, 13, 9
    (*_, qkv, table), [(out, bound), *_] = made("cope_forward", sizes)
    for ends in range(1, T + 1), (7, 8, 30, T), (T,):
        caches, parts, pos = [unset(B, T + 2, H, D).view(np.uint8) for _ in "kv"], [], 0
        for end in ends:
            new, at = qkv[:, pos:end].copy(), np.full(B, pos, np.int32)
            part, *caches = run("cope_cached_forward", unset(B, end - pos, H * D), *caches, new, at, SLOTS[:B], table)
            parts.append(part)
            pos = end
        assert_within([np.concatenate(parts, axis=1)], [(out, bound)])


@pytest.mark.parametrize("T, I", [(63, 1), (500, 200), (4000, 5), (66000, 9), (66000, 17)])
def test_the_three_forms_of_the_mingru_agree(isa, rng, T, I):
    """Few recurrences over a long sequence are cut into stretches, many are not; and the form in logarithms."""
    x, h0 = 2 * normal(rng, 1, T, 2 * I), abs(normal(rng, 1, I))
    a, b = run("mingru_gates_forward", unset(1, T, I), unset(1, T, I), x)
    found = run("scan_forward", unset(1, T, I), unset(1, I), a, b, h0)[0]
    many = [np.repeat(array, 4, axis=0) for array in (a, b, h0)]
    direct = call("scan_forward", (unset(4, T, I), unset(4, I), *many))[0]
    logs = call("mingru_log_forward", (unset(1, T, I), x, h0))[0]
    np.testing.assert_allclose(found, logs, rtol=1e-5)
    np.testing.assert_allclose(direct, np.repeat(logs, 4, axis=0), rtol=1e-5)


def test_dropout_keeps_the_right_share_independently(isa):
    """Of 2^20 elements; a share of p varies by sqrt(p (1 - p) / n), five of which are 0.0015 for p = 0.1."""
    n, p = 1 << 20, 0.1
    zero, one = np.zeros(n, np.float32), np.ones(n, np.float32)

    def dropped(stream, *noise):
        out = unset(n)
        STREAM.dropout_residual_forward(out, zero, one, np.array(noise, np.int32), stream, p)
        return out == 0

    masks = [dropped(0, 1, 1), dropped(1, 1, 1), dropped(0, 2, 1), dropped(0, 1, 2), dropped(0, -1, 1)]
    for mask in masks:
        assert mask.mean() == pytest.approx(p, abs=0.0015)
        for lag in (1, 2, 16, 64, 1024, 4096):
            assert (mask[lag:] & mask[:-lag]).mean() == pytest.approx(p * p, abs=0.0005)
    for i, one_mask in enumerate(masks):
        for other in masks[:i]:
            assert (one_mask & other).mean() == pytest.approx(p * p, abs=0.0005)


@pytest.mark.parametrize("threshold, depth", [(0.5, 1), (1.0, 2), (1.25, 3)])
def test_a_token_halts_once_the_sum_is_as_much_as_the_threshold(isa, rng, threshold, depth):
    """Each step's probability is 1/2, so that the sums are exact."""
    x, zero = normal(rng, 3, 5), np.zeros(5, np.float32)
    total, found, mixed = (unset(*shape) for shape in ((3,), (3,), (3, 5)))
    for step in 1, 2, 3, 4:
        prob, _, total, found, mixed = run(
            "halting_forward", unset(3), unset(3), total, found, mixed, x, zero, zero[:1], step, 4, threshold
        )
        np.testing.assert_array_equal(prob, 0.5)
    np.testing.assert_array_equal(found, ref.halting_forward([x] * 4, zero, 0.0, threshold)[3])
    np.testing.assert_array_equal(found, depth)


@pytest.mark.parametrize("R", [1, 16383, 16385, 8 * 16384 + 5])
def test_global_norm_of_whole_numbers_is_exact(isa, rng, R):
    """Every partial sum is exact, in whatever order: no element is left out."""
    x = rng.integers(1, 9, R).astype(np.float32)
    assert run("global_norm", unset(1), x)[0] == single(ref.global_norm(x))


def test_clamp_keeps_what_is_not_a_number(isa):
    x = single([np.nan, np.inf, -np.inf, 1, -1, 0.25] * 7)
    np.testing.assert_array_equal(run("clamp", x, 0.5)[0], single([np.nan, 0.5, -0.5, 0.5, -0.5, 0.25] * 7))


def test_sgd_without_momentum_needs_no_moments(isa, rng):
    p, g = normal(rng, 33), normal(rng, 33)
    expected = ref.sgd(p, g, None, 0.1, weight_decay=0.3)[0], gamma(5) * (abs(p) + abs(g))
    assert_within(call("sgd", (p, None, g, 0.1, 0.0, 0.0, 0.3)), [expected])


@pytest.mark.parametrize("R, P, V, scale", [(1, 1, 1, 1), (5, 8, 3, 1), (4, 31, 17, 1), (6, 33, 29, 1e4)])
def test_crossentropy_backward_may_store_over_the_logits(isa, R, P, V, scale):
    (_, logits, *others), _ = made("crossentropy_backward", (R, P, V, scale, 1))
    apart = run("crossentropy_backward", unset(R, P), logits, *others)
    assert bits(apart) == bits(run("crossentropy_backward", logits, logits, *others))


def test_residual_takes_a_multiple_of_what_is_added(isa, rng):
    a, b, scale = normal(rng, 37), normal(rng, 37), 0.25  # a power of 2: one rounding
    np.testing.assert_array_equal(run("residual_forward", unset(37), a, b, scale)[0], a + scale * b)
    da, db = run("residual_backward", a, b, a, 1, 1, scale)
    np.testing.assert_array_equal((da, db), (a + a, b + scale * a))


@pytest.mark.parametrize("V", [1, 19, 33])
def test_crossentropy_where_one_logit_is_far_above_the_others(isa, V):
    """In each column in turn, the last included: exp of it alone would leave float32's range."""
    logits, targets = single(1e4 * np.eye(V, V + 2)), np.arange(V, dtype=np.int32)
    logits[:, V:] = np.inf
    losses, lse = run("crossentropy_forward", unset(V), unset(V), logits, targets, V)
    np.testing.assert_array_equal((losses, lse), (0 * lse, 0 * lse + 1e4))


def test_residual_of_a_tensor_with_itself_sends_it_both_gradients(isa, rng):
    d, dout = normal(rng, 37), normal(rng, 37)
    np.testing.assert_array_equal(run("residual_backward", d, d, dout)[0], d + dout + dout)


def test_decoding_in_any_steps_is_the_full_forward(isa):
    sizes = B, T, H, D, _, K = 2, 33, 6, 13, 1, 3
    (*_, qkv, _), [(out, bound), _] = made("attention_forward", sizes)
    decoded = []
    for ends in range(1, T + 1), (7, 8, 30, T), (T,):
        caches, parts, pos = [unset(B, T + 2, K, D).view(np.uint8) for _ in "kv"], [], 0
        for end in ends:
            new, at = qkv[:, pos:end].copy(), np.full(B, pos, np.int32)
            part, *caches = run("attention_cached_forward", unset(B, end - pos, H, D), *caches, new, at, SLOTS[:B])
            parts.append(part)
            pos = end
        decoded.append(np.concatenate(parts, axis=1))
    assert_within(decoded, 3 * [(out, bound)])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("sizes", [(2, 33, 6, 13, 3), (1, 259, 6, 65, 2), (3, 40, 4, 16, 1)], ids=str)
def test_shared_keys_and_values_are_as_if_each_head_had_a_copy(isa, threads, rng, sizes, precision):
    """To the bit: their gradients are those of the copies, added up from the first to the last."""
    gpt2c.set_matmul_precision(precision)
    B, T, H, D, K = sizes
    q, kv, dout = normal(rng, B, T, H, D), normal(rng, B, T, 2, K, D), normal(rng, B, T, H, D)
    shared = np.concatenate([q, kv.reshape(B, T, 2 * K, D)], axis=2)
    copies = np.concatenate([q, kv.repeat(H // K, axis=3).reshape(B, T, 2 * H, D)], axis=2)
    out, lse = run("attention_forward", unset(B, T, H, D), unset(B, H, T), shared, K)
    assert bits([out, lse]) == bits(run("attention_forward", unset(B, T, H, D), unset(B, H, T), copies, H))
    (found,), (each,) = (
        call("attention_backward", (unset(*x.shape), dout, x, out, lse, n, 0)) for x, n in ((shared, K), (copies, H))
    )
    parts = each[:, :, H:].reshape(B, T, 2, K, H // K, D)
    added = sum((parts[:, :, :, :, i] for i in range(1, H // K)), start=parts[:, :, :, :, 0])
    np.testing.assert_array_equal(found, np.concatenate([each[:, :, :H], added.reshape(B, T, 2 * K, D)], axis=2))


BF16_PRODUCTS = [(5, 1, 1), (7, 17, 13), (33, 769, 34), (30, 31, 771), (70, 129, 200), (331, 40, 929)]


def bf16_products(x, w, b, dout, old_dx, old_dw):
    """-> out, dx, dw with the bias and what was there before"""
    return [
        run("matmul_forward", unset(len(x), len(w)), x, w, b)[0],
        run("matmul_backward_x", old_dx.copy(), dout, w)[0],
        run("matmul_backward_w", old_dw.copy(), None, dout, x)[0],
    ]


def rounded(x):
    """The nearest bf16 numbers"""
    return (bf16_bits(single(x)).astype(np.uint32) << 16).view(np.float32).astype(float)


def attention_of_rounded(q, k, v, dout, rounded):
    """-> out, dq, dk, dv of heads (..., T, D) where operands of matrix products go through `rounded`"""
    T, D = q.shape[-2:]
    q, k, v, dy = (rounded(x) for x in (q / np.sqrt(D), k, v, dout))
    s = np.where(np.tri(T) > 0, q @ k.swapaxes(-1, -2), -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    out = rounded(e) @ v / e.sum(-1, keepdims=True)
    p = e / e.sum(-1, keepdims=True)
    ds = rounded(p * (dy @ v.swapaxes(-1, -2) - (dout * out).sum(-1, keepdims=True)))
    return out, ds @ k / np.sqrt(D), ds.swapaxes(-1, -2) @ q, rounded(p).swapaxes(-1, -2) @ dy


def attention(qkv, dout, H):
    """-> out, dqkv"""
    heads, y = ((*array.shape[:2], n * H, -1) for array, n in ((qkv, 3), (dout, 1)))
    x, dy = qkv.reshape(heads), dout.reshape(y)
    out, lse = run("attention_forward", unset(*dy.shape), unset(len(qkv), H, qkv.shape[1]), x, H)
    return out.reshape(dout.shape), run("attention_backward", np.zeros_like(x), dy, x, out, lse, H)[0].reshape(qkv.shape)


@pytest.mark.parametrize("T, D", [(1, 9), (33, 16), (70, 31), (257, 65)])
def test_bf16_attention_is_that_of_rounded_operands(T, D, isa, threads, rng):
    """Where there is AMX. Sums that are off by a bit may round the other way: errors are compared to what rounding does."""
    qkv, dout = normal(rng, 2, T, 3 * 3 * D), normal(rng, 2, T, 3 * D)
    unrounded = bits(attention(qkv, dout, 3))
    gpt2c.set_matmul_precision("bf16")
    if isa != "amx":
        assert bits(attention(qkv, dout, 3)) == unrounded
        return
    heads = [ref.split_heads(x, 3) for x in (*np.split(qkv.astype(float), 3, -1), dout.astype(float))]
    with_rounding, without = (attention_of_rounded(*heads, how) for how in (rounded, lambda x: x))
    out, dqkv = attention(qkv, dout, 3)
    for found, expected, plain in zip((out, *np.split(dqkv, 3, -1)), with_rounding, without):
        error, effect = (np.sqrt(np.mean((ref.merge_heads(expected) - other) ** 2)) for other in (found, ref.merge_heads(plain)))
        assert error <= 0.03 * effect + 1e-7


def test_threads_change_no_bit_of_bf16_attention(isa, rng):
    gpt2c.set_matmul_precision("bf16")
    args = normal(rng, 2, 70, 9 * 31), normal(rng, 2, 70, 3 * 31), 3

    def found(threads):
        _core.use_threads(threads)
        return bits(attention(*args))

    assert [found(2), found(3), found(7)] == 3 * [found(1)]


@pytest.mark.parametrize("R, C, N", BF16_PRODUCTS)
def test_bf16_products_are_those_of_rounded_operands(R, C, N, isa, threads, rng):
    """Only the operands are rounded; the sums are as exact as with float32."""
    gpt2c.set_matmul_precision("bf16")
    full = normal(rng, R, C), normal(rng, N, C), normal(rng, R, N)
    x, w, dout = ((bf16_bits(a).astype(np.uint32) << 16).view(np.float32) for a in full)
    b, *old = normal(rng, N), normal(rng, R, C), normal(rng, N, C)
    size = [ref.matmul_forward(abs(x), abs(w), abs(b)), *ref.matmul_backward(abs(dout), abs(x), abs(w))[:2]]
    exact = [ref.matmul_forward(x, w, b), *ref.matmul_backward(dout, x, w)[:2]]
    for i in 0, 1:
        exact[i + 1], size[i + 1] = exact[i + 1] + old[i], size[i + 1] + abs(old[i])
    for given in full, (x, w, dout):
        found = bf16_products(given[0], given[1], b, given[2], *old)
        assert_within(found, [(e, gamma(k + 2) * s) for e, s, k in zip(exact, size, (C, N, R))])


@pytest.mark.parametrize("R, C, N", BF16_PRODUCTS[2:])
def test_threads_change_no_bit_of_bf16_products(R, C, N, isa, rng):
    gpt2c.set_matmul_precision("bf16")
    args = [normal(rng, *shape) for shape in ((R, C), (N, C), (N,), (R, N), (R, C), (N, C))]

    def found(threads):
        _core.use_threads(threads)
        return bits(bf16_products(*args))

    assert [found(2), found(3), found(7)] == 3 * [found(1)]


def test_peak_counts_what_it_does(isa):
    """12 sums per lane go from 0, 0.1, 0.2, ... by s x + y; a sink is the sum over all of them."""
    R, steps, lanes = 5, 7, {"avx2": 8, "avx512": 16, "avx512bf16": 16, "amx": 16}.get(isa, 4)
    sums = 0.1 * np.arange(12)
    for _ in range(steps):
        sums = sums * 1.0001 + 0.0001
    total = lanes * sums.sum()
    expected = [(np.full(R, total), gamma(2 * steps + 20) * total), (2 * 12 * lanes * R * steps, 0)]
    assert_within(run("peak", unset(R), unset(1), steps), expected)
