"""Tables of tokens and positions."""


def embedding(t, tokens, wte, wpe=None, *, name):
    """Token plus, with a table for it, position embedding: (B, T) -> (B, T, C)."""
    out = t.new((*tokens.shape, wte.shape[1]), name)
    t.s.embedding_forward(out.data, tokens, wte.data, wpe and wpe.data, t.position)
    t.on_backward(lambda: t.s.embedding_backward(wte.grad, wpe and wpe.grad, out.grad, tokens, t.position))
    return out
