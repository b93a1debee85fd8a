"""Tables of tokens and positions."""

from gpt2c._core import Buffer
from gpt2c.engine.tape import Tape, Tensor


def embedding(t: Tape, tokens: Buffer, wte: Tensor, wpe: Tensor | None = None, *, name: str) -> Tensor:
    """Token plus, with a table for it, position embedding: (B, T) -> (B, T, C)."""
    out = t.new((*tokens.shape, wte.shape[1]), name)
    t.s.embedding_forward(out.data, tokens, wte.data, wpe and wpe.data, t.position)
    if not wte.frozen:
        t.on_backward(lambda: t.s.embedding_backward(wte.grad, wpe and wpe.grad, out.grad, tokens, t.position))
    return out
