"""Useful floating-point operations (FLOPs) of a kernel call, for speeds and shares of peak."""

# Floating-point operations by sizes; a multiply-add is two. Causal attention counts half of the square. Kernels that
# are bound by memory rather than arithmetic count as none.
FLOPS = {
    "matmul_forward": lambda R, N, C, P: 2 * R * N * C,
    "few_rows_forward": lambda R, N, C, P: 2 * R * N * C,
    "few_rows_pair_forward": lambda R, N, C: 4 * R * N * C,
    "matmul_backward_x": lambda R, N, C, P: 2 * R * N * C,
    "matmul_backward_w": lambda R, N, C: 2 * R * N * C,
    "attention_forward": lambda B, T, H, D, **_: 2 * B * T * (T + 1) * H * D,
    "attention_backward": lambda B, T, H, D, **_: 5 * B * T * (T + 1) * H * D,
}


def flops(program):
    """Useful floating-point operations of a recorded program."""
    return sum(FLOPS[kernel](**sizes) for kernel, sizes in program.calls if kernel in FLOPS)
