"""A case for every kernel, in a file for each file of kernels/: what test_kernels.py holds to the float64 oracle."""

from cases import (  # noqa: F401  each registers its cases
    activation,
    attention,
    attention_materialised,
    cope,
    dropout,
    dyt,
    elementwise,
    embedding,
    few_rows,
    gru,
    loss,
    matmul,
    moe,
    norm,
    optim,
    recursion,
    repack,
    rope,
    scan,
)
