"""chargpt, forward."""

from gpt2c.reference.activation import squared_relu_forward
from gpt2c.reference.attention import attention_forward
from gpt2c.reference.dropout import dropout_mask, dropout_residual_forward
from gpt2c.reference.embedding import embedding_forward
from gpt2c.reference.loss import crossentropy_forward
from gpt2c.reference.matmul import matmul_forward
from gpt2c.reference.norm import rmsnorm_forward

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
