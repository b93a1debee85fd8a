"""What every kernel, and every family of models, should compute: naive float64 NumPy, forward and backward of an op side by side.

A file for each file of kernels/, whose functions have their kernels' names, and one for each family. Backward functions
return gradients; the C kernels add them to what is there. Linear weights are (out, in). B batch, T time, C channels, H heads
(or the width of a recurrent layer), hs = C / H the size of a head, V vocabulary, Vp its padded size, M rows of a table of
positions, E the width of an embedding, N experts, M = N - 1 routed ones, R rows.
tests/reference/ proves the backward functions by finite differences and the whole models against PyTorch.
"""

# ruff: noqa: F401  these names are what the package is for
from gpt2c.reference.activation import (
    gelu_backward,
    gelu_erf_backward,
    gelu_erf_forward,
    gelu_forward,
    normal_cdf,
    squared_relu_backward,
    squared_relu_forward,
    swiglu_backward,
    swiglu_forward,
)
from gpt2c.reference.attention import (
    attention_backward,
    attention_cached_forward,
    attention_decode_forward,
    attention_forward,
    heads_of,
    merge_gradients,
    merge_heads,
    parts_of,
    split_heads,
)
from gpt2c.reference.cache import cached
from gpt2c.reference.chargpt import chargpt_forward
from gpt2c.reference.cope import cope_backward, cope_forward
from gpt2c.reference.dropout import dropout_mask, dropout_residual_backward, dropout_residual_forward
from gpt2c.reference.dyt import dyt_backward, dyt_forward
from gpt2c.reference.elementwise import copy, gather, last_position_forward, residual_backward, residual_forward, scatter, zero
from gpt2c.reference.embedding import embedding_backward, embedding_forward
from gpt2c.reference.float64 import sigmoid, sum_rows
from gpt2c.reference.gpt2 import gpt2_backward, gpt2_forward, gpt2_random_params, gpt2_shapes
from gpt2c.reference.gru import (
    CLAMP,
    EXPERTS,
    TIME_MIXING,
    gru_backward,
    gru_deltas,
    gru_forward,
    gru_kept,
    wkv_backward,
    wkv_forward,
)
from gpt2c.reference.hybrid import hybrid_backward, hybrid_forward, hybrid_random_params, hybrid_shapes, layer_weights, zero_state
from gpt2c.reference.loss import count_targets, crossentropy_backward, crossentropy_forward, mean_loss
from gpt2c.reference.matmul import matmul_backward, matmul_backward_w, matmul_backward_x, matmul_forward
from gpt2c.reference.moe import (
    balance_forward,
    balance_loss,
    balance_slope,
    by_expert,
    by_slot,
    moe_backward,
    moe_backward_w,
    moe_factors,
    moe_forward,
    moe_kept,
    softmax,
)
from gpt2c.reference.norm import (
    head_gains,
    head_norm_backward,
    head_norm_forward,
    layernorm_backward,
    layernorm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
)
from gpt2c.reference.optim import adamw, add_scaled, clamp, global_norm, sgd
from gpt2c.reference.recursion import (
    halting_backward,
    halting_forward,
    halting_step_backward,
    ponder_backward,
    ponder_forward,
    scaled_residual_backward,
    scaled_residual_forward,
)
from gpt2c.reference.rope import rope
from gpt2c.reference.scan import mingru_gates_backward, mingru_gates_forward, mingru_log_forward, scan_backward, scan_forward
from gpt2c.reference.stored import repack, scale_and_least, stored_numbers, unpacked
from gpt2c.reference.trm import trm_backward, trm_forward, trm_random_params, trm_shapes
