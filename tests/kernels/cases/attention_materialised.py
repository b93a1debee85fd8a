"""Cases of kernels/attention_materialised.c; sizes as in attention.py."""

from cases.attention import HEADS, attention_inputs, backward_of, in_heads
from cases.case import case, gamma, unset


@case(*HEADS, large=(2, 129, 8, 33, 1, 4))
def attention_materialised_forward(rng, B, T, H, D, scale=1, K=0):
    qkv, (out, scores, att, _), size, size_out, off = attention_inputs(rng, B, T, H, D, scale, K)
    qkv, out, size_out = in_heads(D, qkv, out, size_out)
    args = unset(*out.shape), unset(*att.shape), unset(*att.shape), qkv, K or H
    share = 2 * off + gamma(2 * T + 8)
    return args, [(out, share * size_out), (scores, gamma(D + 3) * size), (att, share * att)]


@case(*HEADS, large=(2, 129, 8, 33, 1, 4))
def attention_materialised_backward(rng, B, T, H, D, scale=1, K=0):
    return backward_of(rng, lambda out, lse, att: (att,), B, T, H, D, scale, K)
