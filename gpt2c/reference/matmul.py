"""The oracle of kernels/matmul.c."""

from gpt2c.reference.float64 import in_float64, sum_rows

# ---- matmul: out = x wᵀ + b


@in_float64
def matmul_forward(x, w, b=None):
    out = x @ w.T  # (..., C) (OC, C) -> (..., OC)
    return out if b is None else out + b


@in_float64
def matmul_backward_x(dout, w):
    return dout @ w


@in_float64
def matmul_backward_w(dout, x):
    return dout.reshape(-1, dout.shape[-1]).T @ x.reshape(-1, x.shape[-1]), sum_rows(dout)


def matmul_backward(dout, x, w):
    return matmul_backward_x(dout, w), *matmul_backward_w(dout, x)
