"""What every kernel should compute: naive float64 NumPy, forward and backward of an op side by side.

Backward functions return gradients; the C kernels add them to what is there. Linear weights are (out, in).
B batch, T time, C channels, NH heads, hs = C / NH head size, V vocabulary, Vp its padded size, R rows.
`test_reference.py` proves the backward functions by finite differences and the whole GPT-2 against PyTorch.
"""

import functools
import math

import numpy as np


def in_float64(op):
    """Cast float32 arrays up before the op sees them, so that the oracle never rounds as its subject does."""

    def cast(a):
        return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a

    @functools.wraps(op)
    def wrapped(*args, **kwargs):
        return op(*map(cast, args), **{name: cast(a) for name, a in kwargs.items()})

    return wrapped


def sum_rows(x):
    """(..., C) -> (C)"""
    return x.reshape(-1, x.shape[-1]).sum(axis=0)


# ---- embedding: out[b, t] = wte[tokens[b, t]] + wpe[pos + t]


@in_float64
def embedding_forward(tokens, wte, wpe, pos=0):
    return wte[tokens] + wpe[pos : pos + tokens.shape[1]]  # (B, T, C)


@in_float64
def embedding_backward(dout, tokens, V, maxT, pos=0):
    C = dout.shape[-1]
    dwte, dwpe = np.zeros((V, C)), np.zeros((maxT, C))
    np.add.at(dwte, tokens, dout)  # a token that occurs twice receives both gradients
    dwpe[pos : pos + tokens.shape[1]] = dout.sum(axis=0)
    return dwte, dwpe


# ---- layernorm: n = (x - mean) * rstd, out = n * w + b, over the last axis with the biased variance


@in_float64
def layernorm_forward(x, w, b, eps=1e-5):
    mean = x.mean(axis=-1)
    rstd = 1 / np.sqrt(x.var(axis=-1) + eps)
    return (x - mean[..., None]) * rstd[..., None] * w + b, mean, rstd


@in_float64
def layernorm_backward(dout, x, w, mean, rstd):
    n = (x - mean[..., None]) * rstd[..., None]
    dn = dout * w
    dx = rstd[..., None] * (dn - dn.mean(axis=-1, keepdims=True) - n * (dn * n).mean(axis=-1, keepdims=True))
    return dx, sum_rows(dout * n), sum_rows(dout)


# ---- rmsnorm: n = x * rstd, out = n * w, over the last axis; w may be None


@in_float64
def rmsnorm_forward(x, w=None, eps=1e-5):
    rstd = 1 / np.sqrt((x**2).mean(axis=-1) + eps)
    return x * rstd[..., None] * (1 if w is None else w), rstd


@in_float64
def rmsnorm_backward(dout, x, w, rstd):
    n = x * rstd[..., None]
    dn = dout * (1 if w is None else w)
    return rstd[..., None] * (dn - n * (dn * n).mean(axis=-1, keepdims=True)), sum_rows(dout * n)


# ---- matmul: out = x wᵀ + b


@in_float64
def matmul_forward(x, w, b=None):
    out = x @ w.T  # (..., C) (OC, C) -> (..., OC)
    return out if b is None else out + b


@in_float64
def matmul_backward(dout, x, w):
    dw = dout.reshape(-1, dout.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return dout @ w, dw, sum_rows(dout)


# ---- attention: causal, qkv is (B, T, 3C) with thirds q | k | v and head h at offset h * hs of each third


def split_heads(x, NH):
    B, T, C = x.shape
    return x.reshape(B, T, NH, C // NH).transpose(0, 2, 1, 3)  # (B, NH, T, hs)


def merge_heads(x):
    B, NH, T, hs = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, NH * hs)


@in_float64
def attention_forward(qkv, NH):
    q, k, v = (split_heads(x, NH) for x in np.split(qkv, 3, axis=-1))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])  # (B, NH, T, T)
    seen = np.tri(qkv.shape[1], dtype=bool)  # position t sees j <= t
    scores = np.where(seen, scores, -np.inf)
    lse = np.logaddexp.reduce(scores, axis=-1)  # (B, NH, T)
    att = np.exp(scores - lse[..., None])
    return merge_heads(att @ v), np.where(seen, scores, 0), att, lse


@in_float64
def attention_backward(dout, qkv, att, NH):
    q, k, v = (split_heads(x, NH) for x in np.split(qkv, 3, axis=-1))
    dy = split_heads(dout, NH)
    datt = dy @ v.swapaxes(-1, -2)
    dscores = att * (datt - (att * datt).sum(axis=-1, keepdims=True)) / np.sqrt(q.shape[-1])
    dq, dk, dv = dscores @ k, dscores.swapaxes(-1, -2) @ q, att.swapaxes(-1, -2) @ dy
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)  # (B, T, 3C)


@in_float64
def attention_cached_forward(qkv, kcache, vcache, pos, NH):
    """Queries at pos..pos+T-1 over keys and values at 0..pos+T-1; caches are (B, S, C) -> out, caches."""
    q, k, v = np.split(qkv, 3, axis=-1)
    end = pos + q.shape[1]
    kcache, vcache = kcache.copy(), vcache.copy()
    kcache[:, pos:end], vcache[:, pos:end] = k, v
    out = np.zeros_like(q)
    for t in range(pos, end):
        query = split_heads(q[:, t - pos, None], NH)  # (B, NH, 1, hs)
        keys, values = split_heads(kcache[:, : t + 1], NH), split_heads(vcache[:, : t + 1], NH)
        scores = query @ keys.swapaxes(-1, -2) / np.sqrt(query.shape[-1])  # (B, NH, 1, t + 1)
        att = np.exp(scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True))
        out[:, t - pos, None] = merge_heads(att @ values)
    return out, kcache, vcache


# ---- gelu: x/2 (1 + tanh u) = x sigmoid(2u), u = √(2/π) (x + 0.044715 x³); far below zero 1 + tanh u cancels


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))  # overflows nowhere


@in_float64
def gelu_forward(x):
    return x * sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


@in_float64
def gelu_backward(dout, x):
    u2 = 2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    du2 = 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return dout * (sigmoid(u2) + x * sigmoid(u2) * sigmoid(-u2) * du2)


# ---- gelu, the exact form: x Φ(x)


def normal_cdf(x):
    """erfc loses nothing in the lower tail."""
    return np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)) / 2, otypes=[float])(x)


@in_float64
def gelu_erf_forward(x):
    return x * normal_cdf(x)


@in_float64
def gelu_erf_backward(dout, x):
    return dout * (normal_cdf(x) + x * np.exp(-np.minimum(x**2 / 2, 700)) / np.sqrt(2 * np.pi))


# ---- squared relu: max(x, 0)²


@in_float64
def squared_relu_forward(x):
    return np.maximum(x, 0) ** 2


@in_float64
def squared_relu_backward(dout, x):
    return dout * 2 * np.maximum(x, 0)


# ---- swiglu: silu(a) b, silu(a) = a sigmoid(a)


@in_float64
def swiglu_forward(a, b):
    return a * sigmoid(a) * b


@in_float64
def swiglu_backward(dout, a, b):
    return dout * b * sigmoid(a) * (1 + a * sigmoid(-a)), dout * a * sigmoid(a)


# ---- scan: out_t = a_t out_{t-1} + b_t from out_{-1} = h0; its last state goes on


@in_float64
def scan_forward(a, b, h0):
    out = np.empty_like(a)  # (B, T, I)
    h = h0  # (B, I)
    for t in range(a.shape[1]):
        out[:, t] = h = a[:, t] * h + b[:, t]
    return out, h


@in_float64
def scan_backward(dout, dlast, a, out, h0):
    """-> da, db, dh0; dlast is the gradient of the last state."""
    da, db = np.empty_like(a), np.empty_like(a)
    d = dlast
    for t in reversed(range(a.shape[1])):
        d = d + dout[:, t]
        da[:, t], db[:, t] = d * (out[:, t - 1] if t else h0), d
        d = a[:, t] * d
    return da, db, d


# ---- the minimal GRU's gates: x = c | gate, z = sigmoid(gate), g(c) = c + 1/2 or sigmoid(c), a = 1 - z, b = z g(c)


def mingru_candidate(c):
    return np.where(c >= 0, c + 0.5, sigmoid(c))


@in_float64
def mingru_gates_forward(x):
    c, gate = np.split(x, 2, axis=-1)
    return sigmoid(-gate), sigmoid(gate) * mingru_candidate(c)


@in_float64
def mingru_gates_backward(da, db, x):
    c, gate = np.split(x, 2, axis=-1)
    slope = np.where(c >= 0, 1, sigmoid(c) * sigmoid(-c))
    z = sigmoid(gate)
    return np.concatenate([db * z * slope, (db * mingru_candidate(c) - da) * z * sigmoid(-gate)], axis=-1)


@in_float64
def mingru_log_forward(x, h0):
    """Gates and scan in one: log out_t = A_t + log(h0 + sum_s exp(log b_s - A_s)), A_t the sum of log a_s."""
    c, gate = np.split(x, 2, axis=-1)
    log_a, log_z = -np.logaddexp(0, gate), -np.logaddexp(0, -gate)
    log_g = np.where(c >= 0, np.log(np.maximum(c, 0) + 0.5), -np.logaddexp(0, -c))
    A = np.cumsum(log_a, axis=1)
    terms = np.concatenate([np.log(np.maximum(h0, 1e-10))[:, None], log_z + log_g - A], axis=1)
    return np.exp(A + np.logaddexp.accumulate(terms, axis=1)[:, 1:])


# ---- dropout: the mask is a function of seed, counter, stream and index, in arithmetic modulo 2^64 and 2^32


def mix64(x):
    for _ in range(2):
        x = (x ^ x >> 32) * 0xD6E8FEB86659FD93 % 2**64
    return x ^ x >> 32


def dropout_mask(R, seed, counter, stream, p):
    """(R) of 0 and 1."""
    key = mix64(mix64((seed << 32) + counter) ^ mix64(stream + 0x9E3779B97F4A7C15))
    mask = []
    for group in range(-(-R // 1024)):
        low, high = (part := mix64((key + group) % 2**64)) % 2**32, part >> 32
        x = (np.arange(1024, dtype=np.uint64) * 0x9E3779B9 + low) % 2**32
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ high ^ x >> 13) * 0xC2B2AE35 % 2**32
        mask.append((x ^ x >> 16) >> 8 >= int(p * 2**24))
    return np.concatenate([np.zeros(0, bool), *mask])[:R].astype(float)


@in_float64
def dropout_residual_forward(a, b, mask, p):
    return a + mask * b / (1 - p)


@in_float64
def dropout_residual_backward(dout, mask, p):
    return dout, mask * dout / (1 - p)


# ---- residual: out = a + b; its gradient goes to both unchanged, so there is no backward


@in_float64
def residual_forward(a, b):
    return a + b


# ---- cross entropy of the softmax over the first V columns; the mean is over targets that are not -1


@in_float64
def crossentropy_forward(logits, targets, V):
    lse = np.logaddexp.reduce(logits[:, :V], axis=-1)  # (R)
    counted = targets != -1
    losses = np.where(counted, lse - logits[np.arange(len(targets)), targets], 0)
    return losses, lse, losses.sum() / max(counted.sum(), 1)


@in_float64
def crossentropy_backward(logits, targets, V, weights=None):
    """Of the mean loss, or of the mean of weights * losses."""
    counted = targets != -1
    dlogits = np.zeros_like(logits)
    dlogits[:, :V] = np.exp(logits[:, :V] - np.logaddexp.reduce(logits[:, :V], axis=-1, keepdims=True))
    dlogits[np.arange(len(targets)), targets] -= 1
    if weights is not None:
        dlogits *= weights[:, None]
    return np.where(counted[:, None], dlogits, 0) / max(counted.sum(), 1)


# ---- optimizer


@in_float64
def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, t, grad_scale=1.0):
    """Update number t (from 1) -> new p, m, v."""
    g = g * grad_scale
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    step = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return p - lr * (step + weight_decay * p), m, v


@in_float64
def sgd(p, g, m, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, first=False, grad_scale=1.0):
    """PyTorch's SGD -> new p, m; without momentum m is None."""
    d = g * grad_scale + weight_decay * p
    if m is None:
        return p - lr * d, None
    m = d if first else momentum * m + (1 - dampening) * d
    return p - lr * (d + momentum * m if nesterov else m), m


@in_float64
def global_norm(g):
    return np.sqrt((g**2).sum())


# ---- GPT-2: cfg has max_seq_len, vocab_size, padded_vocab_size, num_layers, num_heads, channels


def gpt2_shapes(cfg):
    L, C = cfg["num_layers"], cfg["channels"]
    return {
        "wte": (cfg["padded_vocab_size"], C), "wpe": (cfg["max_seq_len"], C),
        "ln1w": (L, C), "ln1b": (L, C), "qkvw": (L, 3 * C, C), "qkvb": (L, 3 * C),
        "attprojw": (L, C, C), "attprojb": (L, C), "ln2w": (L, C), "ln2b": (L, C),
        "fcw": (L, 4 * C, C), "fcb": (L, 4 * C), "fcprojw": (L, C, 4 * C), "fcprojb": (L, C),
        "lnfw": (C,), "lnfb": (C,),
    }  # fmt: skip


def gpt2_random_params(cfg, seed):
    """float32; gains and biases are far enough from 1 and 0 to matter; the pad rows of wte are 0."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in gpt2_shapes(cfg).items():
        noise = rng.standard_normal(shape)
        if name.endswith("b"):
            params[name] = 0.2 * noise
        elif name.startswith("ln"):
            params[name] = 1 + 0.2 * noise
        else:
            params[name] = noise / np.sqrt(shape[-1])
    params["wte"][cfg["vocab_size"] :] = 0
    return {name: p.astype(np.float32) for name, p in params.items()}


def gpt2_forward(params, cfg, tokens, targets):
    """-> loss, logits (B, T, Vp), cache with every activation under llm.c's name, one dict per layer."""
    p, layers = params, []
    encoded = x = embedding_forward(tokens, p["wte"], p["wpe"])
    for l in range(cfg["num_layers"]):
        a = {"x": x}
        a["ln1"], a["ln1_mean"], a["ln1_rstd"] = layernorm_forward(x, p["ln1w"][l], p["ln1b"][l])
        a["qkv"] = matmul_forward(a["ln1"], p["qkvw"][l], p["qkvb"][l])
        a["atty"], a["preatt"], a["att"], a["lse"] = attention_forward(a["qkv"], cfg["num_heads"])
        a["attproj"] = matmul_forward(a["atty"], p["attprojw"][l], p["attprojb"][l])
        a["residual2"] = residual_forward(x, a["attproj"])
        a["ln2"], a["ln2_mean"], a["ln2_rstd"] = layernorm_forward(a["residual2"], p["ln2w"][l], p["ln2b"][l])
        a["fch"] = matmul_forward(a["ln2"], p["fcw"][l], p["fcb"][l])
        a["fch_gelu"] = gelu_forward(a["fch"])
        a["fcproj"] = matmul_forward(a["fch_gelu"], p["fcprojw"][l], p["fcprojb"][l])
        a["residual3"] = x = residual_forward(a["residual2"], a["fcproj"])
        layers.append(a)
    lnf, lnf_mean, lnf_rstd = layernorm_forward(x, p["lnfw"], p["lnfb"])
    logits = matmul_forward(lnf, p["wte"])
    rows = logits.reshape(-1, cfg["padded_vocab_size"])
    losses, _, loss = crossentropy_forward(rows, targets.reshape(-1), cfg["vocab_size"])
    cache = {
        "params": params, "cfg": cfg, "tokens": tokens, "targets": targets,
        "encoded": encoded, "layers": layers, "x": x, "lnf": lnf, "lnf_mean": lnf_mean, "lnf_rstd": lnf_rstd,
        "logits": logits, "losses": losses.reshape(tokens.shape),
    }  # fmt: skip
    return loss, logits, cache


def gpt2_backward(cache):
    """-> gradients of the mean loss, named and shaped like the parameters."""
    p, cfg, a = cache["params"], cache["cfg"], cache
    g = {name: np.zeros(shape) for name, shape in gpt2_shapes(cfg).items()}
    rows = a["logits"].reshape(-1, cfg["padded_vocab_size"])
    dlogits = crossentropy_backward(rows, a["targets"].reshape(-1), cfg["vocab_size"])
    dlnf, g["wte"], _ = matmul_backward(dlogits.reshape(a["logits"].shape), a["lnf"], p["wte"])
    dx, g["lnfw"], g["lnfb"] = layernorm_backward(dlnf, a["x"], p["lnfw"], a["lnf_mean"], a["lnf_rstd"])
    for l, a in reversed(list(enumerate(cache["layers"]))):
        dgelu, g["fcprojw"][l], g["fcprojb"][l] = matmul_backward(dx, a["fch_gelu"], p["fcprojw"][l])
        dfch = gelu_backward(dgelu, a["fch"])
        dln2, g["fcw"][l], g["fcb"][l] = matmul_backward(dfch, a["ln2"], p["fcw"][l])
        d, g["ln2w"][l], g["ln2b"][l] = layernorm_backward(dln2, a["residual2"], p["ln2w"][l], a["ln2_mean"], a["ln2_rstd"])
        dx = dx + d
        datty, g["attprojw"][l], g["attprojb"][l] = matmul_backward(dx, a["atty"], p["attprojw"][l])
        dqkv = attention_backward(datty, a["qkv"], a["att"], cfg["num_heads"])
        dln1, g["qkvw"][l], g["qkvb"][l] = matmul_backward(dqkv, a["ln1"], p["qkvw"][l])
        d, g["ln1w"][l], g["ln1b"][l] = layernorm_backward(dln1, a["x"], p["ln1w"][l], a["ln1_mean"], a["ln1_rstd"])
        dx = dx + d
    dwte, g["wpe"] = embedding_backward(dx, cache["tokens"], cfg["padded_vocab_size"], cfg["max_seq_len"])
    g["wte"] += dwte  # the head and the embedding share it
    return g


# ---- chargpt: cfg has num_layers, num_heads and dropout; `noise` is (seed, counter), None where nothing is dropped


def chargpt_forward(params, cfg, tokens, targets, noise=None):
    """-> loss, logits (B, T, V)."""
    p, drop = params, cfg["dropout"]
    x = embedding_forward(tokens, p["wte"], p["wpe"])

    def add(x, h, stream):
        if noise is None:
            return x + h
        mask = dropout_mask(h.size, *noise, stream, drop).reshape(h.shape)
        return dropout_residual_forward(x, h, mask, drop)

    for l in range(cfg["num_layers"]):
        qkv = matmul_forward(rmsnorm_forward(x)[0], p["qkvw"][l])
        atty = attention_forward(qkv, cfg["num_heads"])[0]
        x = add(x, matmul_forward(atty, p["attprojw"][l]), 2 * l)
        fch = matmul_forward(rmsnorm_forward(x)[0], p["fcw"][l])
        x = add(x, matmul_forward(squared_relu_forward(fch), p["fcprojw"][l]), 2 * l + 1)
    logits = matmul_forward(x, p["lm_head"])
    loss = crossentropy_forward(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), logits.shape[-1])[2]
    return loss, logits
