"""The differentiable operations: one function each, forward and backward in one scope, one module per kind.

Each takes the tape first, calls its forward kernel, and records a closure with its backward kernel. Formulas and shapes
are in kernels/gpt2c.h under the kernels' names. The first backward kernel to reach a tensor stores its gradient and the
others add, so a tensor used twice gets both.
"""

from gpt2c.engine.ops.activation import gelu, gelu_erf, squared_relu, swiglu
from gpt2c.engine.ops.attention import attention, head_norm, rope
from gpt2c.engine.ops.elementwise import residual
from gpt2c.engine.ops.embedding import embedding
from gpt2c.engine.ops.loss import Output, Term, classifier
from gpt2c.engine.ops.matmul import linear, linear_pair
from gpt2c.engine.ops.norm import layernorm, rmsnorm
from gpt2c.engine.ops.scan import mingru

__all__ = [
    "Output",
    "Term",
    "attention",
    "classifier",
    "embedding",
    "gelu",
    "gelu_erf",
    "head_norm",
    "layernorm",
    "linear",
    "linear_pair",
    "mingru",
    "residual",
    "rmsnorm",
    "rope",
    "squared_relu",
    "swiglu",
]
