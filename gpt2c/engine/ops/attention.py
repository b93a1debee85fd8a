"""Causal self-attention: tiled, materialised, or against a KV cache."""

from gpt2c.engine.tape import Tape, Tensor


def attention(t: Tape, qkv: Tensor, num_heads: int, *, name: str) -> Tensor:
    """Causal self-attention over num_heads heads: (B, T, 3C) -> (B, T, C).

    Tiled while training. Materialised where everything is kept: `preatt` and `att` are then there to look at. Where
    the tape has caches: against the keys and values cached so far.
    """
    (B, T), C = qkv.shape[:2], qkv.shape[2] // 3
    out = t.new((B, T, C), f"{name}.atty")
    if t.caches is not None:
        k, v = (t.caches(f"{name}.{part}", (B, t.context, C)) for part in ("keys", "values"))
        t.s.attention_cached_forward(out.data, k, v, qkv.data, t.position, num_heads)
        return out
    if t.keep:
        preatt, att = (t.buffer((B, num_heads, T, T), f"{name}.{part}") for part in ("preatt", "att"))
        t.s.attention_materialised_forward(out.data, preatt, att, qkv.data)
    else:
        lse = t.buffer((B, num_heads, T), f"{name}.lse")
        t.s.attention_forward(out.data, lse, qkv.data)

    def backward():
        dqkv, add = qkv.sink()
        if t.keep:
            t.s.attention_materialised_backward(dqkv, out.grad, qkv.data, att, add)
        else:
            t.s.attention_backward(dqkv, out.grad, qkv.data, out.data, lse, add)

    t.on_backward(backward)
    return out
