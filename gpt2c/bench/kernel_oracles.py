"""What each kernel should have stored: gpt2c.reference, called with a kernel's arguments by their names in its door.

Most of the reference's functions have the name of their kernel and take what it takes. Those that take more at once, or
give it in another order, have a function of that name here.
"""

import inspect
import sys

import numpy as np

from gpt2c import reference as ref

UPDATES = 10  # adamw's is the tenth
LAYER = ("hid_norm", "uz", "ur", "uh", *ref.TIME_MIXING, *ref.EXPERTS)
STATE = ("h", "num", "den", "xprev")


def expected(kernel, arguments):
    """Its outputs in float64, in the door's order; of `arguments` (name -> array, size or scalar) those that the oracle knows."""
    oracle = getattr(sys.modules[__name__], kernel, None) or getattr(ref, kernel)
    parameters = inspect.signature(oracle).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        outputs = oracle(**arguments)
    else:
        outputs = oracle(**{p.name: arguments[p.name] for p in parameters if p.name in arguments})
    return outputs if isinstance(outputs, tuple | list) else (outputs,)


def flat(*arrays):
    """(B, T, heads, D) -> (B, T, heads D), as the reference has them"""
    return (array.reshape(*array.shape[:2], -1) for array in arrays)


few_rows_forward = ref.matmul_forward


def few_rows_pair_forward(x, wa, wb):
    return ref.matmul_forward(x, wa), ref.matmul_forward(x, wb)


def repack(blocks):
    """Of float32, which stay as they are."""
    return blocks


def attention_forward(qkv, H, K):
    out, _, _, lse = ref.attention_forward(*flat(qkv), H, K)
    return out, lse


def attention_materialised_forward(qkv, H, K):
    return ref.attention_forward(*flat(qkv), H, K)[:3]


def attention_backward(dout, qkv, H, K):
    dout, qkv = flat(dout, qkv)
    return ref.attention_backward(dout, qkv, ref.attention_forward(qkv, H, K)[2], H, K)


attention_materialised_backward = attention_backward


def attention_cached_forward(qkv, kcache, vcache, pos, slot, H, K):
    return ref.attention_cached_forward(*flat(qkv, kcache, vcache), pos, slot, H, K)


def attention_decode_forward(qkv, kcache, vcache, pos, slot, H, K):
    return ref.attention_decode_forward(qkv.reshape(len(qkv), -1), *flat(kcache, vcache), pos, slot, H, K)


def cope_forward(qkv, table, H):
    out, cache = ref.cope_forward(qkv, table, H)
    return out, cache["lse"], cache["preatt"], cache["att"]


def cope_backward(dout, qkv, table, H):
    return ref.cope_backward(dout, ref.cope_forward(qkv, table, H)[1])


def cope_cached_forward(qkv, kcache, vcache, pos, table, H):
    """As if the whole text came at once; what the earlier positions asked for is of no importance."""
    T, (pos,), (kcache, vcache) = qkv.shape[1], pos, flat(kcache, vcache)
    q, k, v = np.split(qkv, 3, axis=-1)
    kcache, vcache = (np.concatenate([cache[:, :pos], new], axis=1) for cache, new in ((kcache, k), (vcache, v)))
    before = np.zeros_like(kcache[:, :pos])
    whole = np.concatenate([np.concatenate([before, q], axis=1), kcache, vcache], axis=-1)
    return ref.cope_forward(whole, table, H)[0][:, -T:], kcache, vcache


def gelu_forward_scalar(x):
    return ref.gelu_forward(x)


def halting_forward(x, w, b, threshold):
    """The first of two steps."""
    _, prob, weight, depth, total = ref.halting_forward([x, x], w, b, threshold)
    return prob[0], weight[0], total, depth, weight[0][:, None] * x


def halting_backward(dmixed, dtotal, x, w, prob, weight, depth, step):
    return ref.halting_step_backward(dmixed, dtotal, x, w, prob, weight, depth, step)


def ponder_backward(targets, count, weight):
    return ref.ponder_backward(targets, weight) * len(targets) / count  # the mean is over more rows than these


def crossentropy_backward(logits, targets, count, V):
    return ref.crossentropy_backward(logits, targets, V) * len(targets) / count


def dropout_residual_forward(a, b, noise, stream, p):
    return ref.dropout_residual_forward(a, b, ref.dropout_mask(len(a), *noise.tolist(), stream, p), p)


def dropout_residual_backward(dout, noise, stream, p):
    return ref.dropout_residual_backward(dout, ref.dropout_mask(len(dout), *noise.tolist(), stream, p), p)


def adamw(params, grads, m, v, lr, beta1, beta2, eps, decay):
    return ref.adamw(params, grads, m, v, lr, beta1, beta2, eps, decay, UPDATES)


def sgd(params, grads, m, lr, momentum, dampening, decay):
    return ref.sgd(params, grads, m, lr, momentum, dampening, decay)


def global_norm(x):
    return ref.global_norm(np.array([ref.global_norm(part) for part in np.array_split(x, 64)]))  # the whole in float64: 1 GB


def mixture(n, expert_g, expert_u, expert_d, router, S):
    return ref.moe_forward(n.reshape(-1, n.shape[-1]), expert_g, expert_u, expert_d, router, S - 1)


def moe_forward(n, expert_g, expert_u, expert_d, router, S):
    out, cache = mixture(n, expert_g, expert_u, expert_d, router, S)
    return out, *ref.moe_kept(cache)


def moe_backward(dout, n, expert_g, expert_u, expert_d, router, S):
    _, cache = mixture(n, expert_g, expert_u, expert_d, router, S)
    dn, _, (da, db, dlogits) = ref.moe_backward(dout.reshape(len(cache["n"]), -1), cache, expert_g, expert_u, expert_d, router)
    return dn, ref.by_slot(np.concatenate([da, db], axis=-1), ref.moe_kept(cache)[-1]), dlogits


def layer(arguments):
    """The recurrent layer's forward -> out, last state, cache"""
    inputs = [arguments[name] for name in ("az", "ar", "ah", "xr")]
    state, weights = {name: arguments[f"{name}0"] for name in STATE}, {name: arguments[name] for name in LAYER}
    return ref.gru_forward(*inputs, state, weights, arguments["S"] - 1, arguments["skip"])


def gru_forward(**arguments):
    out, last, cache = layer(arguments)
    return out, *ref.gru_kept(cache, last), *(last[name] for name in STATE)


def gru_backward(**arguments):
    _, _, cache = layer(arguments)
    later = {name: arguments[f"d{name}1"] for name in STATE}
    *deltas, dxr, before, grads = ref.gru_backward(arguments["dout"].astype(float), later, cache)
    vectors = ("hid_norm", "time_decay", "time_first", "mu_k", "mu_v", "mu_r", "moe_norm")
    return (
        dxr, np.stack(deltas), *ref.gru_deltas(cache), *(before[name] for name in STATE), *(grads[name] for name in vectors)
    )  # fmt: skip
