"""The whole GPT-2, forward and backward."""

import numpy as np

from gpt2c.reference.activation import gelu_backward, gelu_forward
from gpt2c.reference.attention import attention_backward, attention_forward
from gpt2c.reference.elementwise import residual_forward
from gpt2c.reference.embedding import embedding_backward, embedding_forward
from gpt2c.reference.loss import crossentropy_backward, crossentropy_forward
from gpt2c.reference.matmul import matmul_backward, matmul_forward
from gpt2c.reference.norm import layernorm_backward, layernorm_forward

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
