"""The oracles of what only the llama family has: shared heads, rotary positions, norms of heads."""

import numpy as np
import pytest
from test_reference import assert_close, floating_point_errors_raise, numeric_gradient, rng  # noqa: F401

from gpt2c import reference as ref


@pytest.mark.parametrize("B, T, H, K, hs", [(1, 1, 2, 1, 1), (2, 4, 4, 2, 3), (1, 5, 3, 1, 2)])
def test_shared_heads_are_attention_with_copies_of_them(rng, B, T, H, K, hs):  # noqa: F811
    qkv, dout = rng.standard_normal((B, T, (H + 2 * K) * hs)), rng.standard_normal((B, T, H * hs))
    q, *shared = np.split(qkv, [H * hs, (H + K) * hs], axis=-1)
    copies = [x.reshape(B, T, K, hs)[:, :, np.arange(H) * K // H].reshape(B, T, -1) for x in shared]
    out, preatt, att, lse = ref.attention_forward(qkv, H, K)
    for found, expected in zip((out, preatt, att, lse), ref.attention_forward(np.concatenate([q, *copies], axis=-1), H)):
        assert_close(found, expected, 1e-14)

    def f():
        return (ref.attention_forward(qkv, H, K)[0] * dout).sum()

    assert_close(ref.attention_backward(dout, qkv, att, H, K), numeric_gradient(f, qkv))


def test_cached_attention_over_shared_heads_is_full_attention(rng):  # noqa: F811
    B, T, S, H, K, hs = 2, 9, 12, 6, 2, 3
    qkv = rng.standard_normal((B, T, (H + 2 * K) * hs))
    kcache, vcache = np.full((2, B, S, K * hs), np.nan)
    chunks = []
    for pos, end in [(0, 4), (4, 7), (7, 8), (8, 9)]:
        out, kcache, vcache = ref.attention_cached_forward(qkv[:, pos:end], kcache, vcache, [pos, pos], [1, 0], H, K)
        chunks.append(out)
    assert_close(np.concatenate(chunks, axis=1), ref.attention_forward(qkv, H, K)[0], 1e-14)


@pytest.mark.parametrize("T, heads, N, half, pos", [(1, 1, 1, 1, 0), (3, 5, 3, 4, 2), (4, 2, 2, 3, 7)])
def test_rope(rng, T, heads, N, half, pos):  # noqa: F811
    x, dout = rng.standard_normal((2, 2, T, heads, 2 * half))
    angles = np.arange(pos + T)[:, None] * rng.random(half)
    rotations = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    turned = ref.rope(x, rotations, pos, N)
    numbers = x[..., :half] + 1j * x[..., half:]  # each pair one complex number
    numbers[:, :, :N] *= np.exp(1j * angles[pos:, None])
    assert_close(turned, np.concatenate([numbers.real, numbers.imag], axis=-1), 1e-14)
    assert_close(ref.rope(turned, rotations, pos, N, back=1), x, 1e-14)

    def f():
        return (ref.rope(x, rotations, pos, N) * dout).sum()

    assert_close(ref.rope(dout, rotations, pos, N, back=1), numeric_gradient(f, x))


def test_products_of_turned_vectors_depend_on_their_distance_alone(rng):  # noqa: F811
    angles = np.arange(9)[:, None] * rng.random(4)
    rotations = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    q, k = (np.repeat(rng.standard_normal((1, 1, 1, 8)), 9, axis=1) for _ in range(2))
    q, k = (ref.rope(x, rotations, 0, 1)[0, :, 0] for x in (q, k))
    scores = q @ k.T
    for distance in range(9):
        diagonal = np.diagonal(scores, -distance)
        assert_close(diagonal, np.full_like(diagonal, diagonal[0]), 1e-12)


@pytest.mark.parametrize("R, heads, N, H, hs", [(1, 1, 1, 1, 1), (3, 5, 4, 3, 6), (2, 3, 2, 0, 2), (2, 2, 2, 2, 3)])
def test_head_norm(rng, R, heads, N, H, hs):  # noqa: F811
    x, dout, (qw, kw) = *rng.standard_normal((2, R, heads, hs)), rng.standard_normal((2, hs))
    out, rstd = ref.head_norm_forward(x, qw, kw, H, N)
    for h in range(heads):
        expected = ref.rmsnorm_forward(x[:, h], qw if h < H else kw)[0] if h < N else x[:, h]
        assert_close(out[:, h], expected, 1e-14)

    def f():
        return (ref.head_norm_forward(x, qw, kw, H, N)[0] * dout).sum()

    for actual, variable in zip(ref.head_norm_backward(dout, x, qw, kw, rstd, H, N), (x, qw, kw), strict=True):
        assert_close(actual, numeric_gradient(f, variable))
