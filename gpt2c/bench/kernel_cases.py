"""What of the kernels is measured: each at the shapes of a GPT-2 or beside them, and how much work it is."""

import math

from gpt2c.bench.kernel_setups import Case, moved
from gpt2c.engine.flops import FLOPS, flops

GPT2_124M = {"B": 4, "lengths": (64, 1024), "C": 768, "H": 12, "V": 50257, "P": 50304, "parameters": 124_475_904}
READ_ONLY = ("matmul_one_row", "global_norm")  # what they write is next to nothing


def gpt2_cases(B, lengths, C, H, V, P, parameters):
    """Every kernel: those of a training step at B x each length, those of decoding a token and of an update, and the rest."""
    products = [  # label, inputs, outputs, arrays that are absent
        ("qkv", C, 3 * C, ()),
        ("attproj", C, C, ()),
        ("fc", C, 4 * C, ()),
        ("fcproj", 4 * C, C, ()),
        ("classifier", C, P, ("b", "db")),
    ]
    for T in lengths:
        yield from products_at(products, B * T, f"T{T}")
        yield from step_at(B, T, C, H, V, P)
    for product, inputs, outputs, absent in products:
        L = math.ceil(parameters / (inputs * outputs))
        yield Case("few_rows_forward", product, {"R": 1, "C": inputs, "N": outputs}, absent, L)
    S = lengths[-1]
    L = math.ceil(parameters / (2 * S * C))
    yield Case("attention_decode_forward", f"S{S}", {"B": 1, "N": 1, "S": S, **cached(H, H, C // H)}, turns=L)
    for T in lengths:  # a piece of a prompt
        yield Case("attention_cached_forward", f"T{T}", {"B": 1, "N": 1, "T": T, "S": S, **cached(H, H, C // H)})
    yield from whole_model(parameters)
    yield from of_other_families(B, *lengths, C, H)


def products_at(products, R, label):
    for product, inputs, outputs, absent in products:
        for kernel in "matmul_forward", "matmul_backward_x", "matmul_backward_w":
            yield Case(kernel, f"{product}-{label}", {"R": R, "C": inputs, "N": outputs}, absent)


def both(op, label, absent=(), in_place=(), **sizes):
    for way in "forward", "backward":
        yield Case(f"{op}_{way}", label, sizes, absent, in_place=in_place if way == "backward" else ())


def heads(H, K, D):
    """Sizes of attention, with K heads of keys and values."""
    return {"H": H, "K": K, "D": D, "G": H + 2 * K}


def cached(H, K, D):
    """The same of attention over a KV cache in float32."""
    return {**heads(H, K, D), "Y": 4 * D}


def step_at(B, T, C, H, V, P):
    R, label = B * T, f"T{T}"
    for K, shared in (H, ""), (H // 3, "-shared"):
        yield from both("attention", label + shared, B=B, T=T, **heads(H, K, C // H))
    turned = {"D": C // H, "G": 3 * H, "N": 2 * H}
    yield Case("rope", label, {"B": B, "T": T, "S": T, "E": C // H // 2, **turned})
    yield from both("head_norm", label, R=R, H=H, **turned)
    yield from both("layernorm", label, R=R, C=C)
    yield from both("rmsnorm", label, R=R, C=C)
    for activation in "gelu", "gelu_erf", "squared_relu", "swiglu":
        yield from both(activation, label, R=R * 4 * C)
    yield from both("mingru_gates", label, R=R, I=C)
    yield from both("scan", label, B=B, T=T, I=C)
    yield from both("dropout_residual", label, R=R * C)
    yield from both("residual", label, R=R * C)
    # in place, as in training: the gradient of the gradient of ... costs the same each time
    yield from both("crossentropy", label, absent=("weights",), in_place=(("dlogits", "logits"),), R=R, P=P, V=V)
    yield from both("embedding", label, B=B, T=T, C=C, V=V, S=T)
    yield Case("count_targets", label, {"R": R})
    yield Case("mean_loss", label, {"R": R})


def whole_model(R):
    yield Case("adamw", "parameters", {"R": R})
    yield Case("sgd", "parameters", {"R": R, "momentum": 0.9})
    yield Case("global_norm", "gradients", {"R": R})
    yield Case("few_rows_pair_forward", "fc", {"R": 8, "C": 768, "N": 3072})
    yield Case("repack", "rows", {"N": 4096, "C": 4096, "Y": 4 * 4096})
    yield Case("clamp", "gradients", {"R": R})
    yield Case("add_scaled", "gradients", {"R": R})
    yield Case("copy", "parameters", {"R": R})
    yield Case("zero", "gradients", {"R": R})


def of_other_families(B, T, longest, C, H):
    """Where the hybrid and the TRM are smaller than GPT-2, so are they here."""
    R, label = B * T, f"T{T}"
    yield Case("gelu_forward_scalar", label, {"R": R * 4 * C})
    yield from both("attention_materialised", label, B=B, T=T, **heads(H, H, C // H))
    yield Case("mingru_log_forward", label, {"B": B, "T": T, "I": C})
    yield Case("last_position_forward", f"T{longest}", {"B": B, "T": longest, "C": C})
    W, absent = C // 6, ("preatt", "att")
    small = {"C": W, "H": 2, "D": W // 2, "M": 17}
    yield from both("cope", label, absent, B=B, T=T, **small)
    yield Case("cope_cached_forward", f"S{4 * T}", {"B": 1, "N": 1, "T": 1, "S": 4 * T, "Y": 2 * W, **small})
    for kernel in "gather", "scatter":  # states of slots
        yield Case(kernel, label, {"B": B, "N": 2 * B, "C": C})
    R *= 4
    yield from both("dyt", label, R=R, C=W)
    yield from both("scaled_residual", label, R=R, C=W)
    yield from both("halting", label, R=R, C=W)
    yield from both("ponder", label, R=R)
    experts = {"B": B, "T": T, "H": W, "N": 4, "M": 3, "S": 2}
    yield from both("moe", label, ("fraction",), **experts)
    yield Case("moe_backward_w", label, experts)
    yield Case("balance_forward", label, {"B": B, "T": T, "M": 3, "S": 2})
    yield from both("gru", label, ("fraction",), **experts)


def amount(case, program):
    """(floating-point operations, bytes to and from memory) of a case."""
    count = OPERATIONS.get(case.kernel)
    return max(case.turns, 1) * count(**case.sizes) if count else flops(program), moved(case)


def bound_by_memory(case):
    """Whether its speed is counted in bytes rather than in operations."""
    return case.turns > 0 or case.kernel not in (*FLOPS, *ARITHMETIC)


# Operations that gpt2c.flops does not count: each +, -, x, /, exp and sqrt of the formula in kernels/gpt2c.h is one.
OPERATIONS = {
    "attention_cached_forward": lambda B, T, S, H, D, **_: 4 * B * T * S * H * D,
    "attention_decode_forward": lambda B, S, H, D, **_: 4 * B * S * H * D,
    "layernorm_forward": lambda R, C: 8 * R * C,
    "layernorm_backward": lambda R, C: 14 * R * C,
    "rmsnorm_forward": lambda R, C: 4 * R * C,
    "rmsnorm_backward": lambda R, C: 10 * R * C,
    "head_norm_forward": lambda R, N, D, **_: 4 * R * N * D,
    "head_norm_backward": lambda R, N, D, **_: 10 * R * N * D,
    "rope": lambda B, T, N, D, **_: 3 * B * T * N * D,
    "gelu_forward": lambda R: 8 * R,
    "gelu_backward": lambda R: 16 * R,
    "gelu_forward_scalar": lambda R: 8 * R,
    "gelu_erf_forward": lambda R: 30 * R,
    "gelu_erf_backward": lambda R: 34 * R,
    "squared_relu_forward": lambda R: 2 * R,
    "squared_relu_backward": lambda R: 4 * R,
    "swiglu_forward": lambda R: 5 * R,
    "swiglu_backward": lambda R: 12 * R,
    "mingru_gates_forward": lambda R, I: 10 * R * I,
    "mingru_gates_backward": lambda R, I: 16 * R * I,
    "mingru_log_forward": lambda B, T, I: 30 * B * T * I,
    "scan_forward": lambda B, T, I: 2 * B * T * I,
    "scan_backward": lambda B, T, I: 3 * B * T * I,
    "dropout_residual_forward": lambda R: 2 * R,
    "dropout_residual_backward": lambda R: 3 * R,
    "residual_forward": lambda R: R,
    "residual_backward": lambda R: 2 * R,
    "crossentropy_forward": lambda R, V, **_: 3 * R * V,
    "crossentropy_backward": lambda R, V, **_: 3 * R * V,
    "count_targets": lambda R: R,
    "mean_loss": lambda R: R,
    "embedding_forward": lambda B, T, C, **_: B * T * C,
    "embedding_backward": lambda B, T, C, **_: 2 * B * T * C,
    "last_position_forward": lambda **_: 0,
    "repack": lambda **_: 0,
    "gather": lambda **_: 0,
    "scatter": lambda **_: 0,
    "copy": lambda R: 0,
    "zero": lambda R: 0,
    "adamw": lambda R: 17 * R,
    "sgd": lambda R, **_: 9 * R,
    "global_norm": lambda R: 2 * R,
    "clamp": lambda R: 2 * R,
    "add_scaled": lambda R: 2 * R,
    "attention_materialised_forward": lambda B, T, H, D, **_: 2 * B * T * (T + 1) * H * D,
    "attention_materialised_backward": lambda B, T, H, D, **_: 4 * B * T * (T + 1) * H * D,
    "cope_forward": lambda B, T, C, H, M, **_: B * T * (2 * (T + 1) * C + 8 * (T + 1) * H + 2 * M * C),
    "cope_backward": lambda B, T, C, H, M, **_: B * T * (5 * (T + 1) * C + 16 * (T + 1) * H + 6 * M * C),
    "cope_cached_forward": lambda B, T, S, C, H, M, **_: B * T * (4 * S * C + 16 * S * H + 2 * M * C),
    "dyt_forward": lambda R, C: 8 * R * C,
    "dyt_backward": lambda R, C: 17 * R * C,
    "scaled_residual_forward": lambda R, C: 2 * R * C,
    "scaled_residual_backward": lambda R, C: 5 * R * C,
    "halting_forward": lambda R, C: 4 * R * C,
    "halting_backward": lambda R, C: 9 * R * C,
    "ponder_forward": lambda R: 3 * R,
    "ponder_backward": lambda R: R,
    "moe_forward": lambda B, T, H, S, M, **_: B * T * (S * 12 * H * H + 2 * M * H),
    "moe_backward": lambda B, T, H, S, M, **_: B * T * (S * 12 * H * H + 2 * M * H),
    "moe_backward_w": lambda B, T, H, S, **_: B * T * S * 12 * H * H,
    "balance_forward": lambda B, T, M, S: B * T * M * S,
    "gru_forward": lambda B, T, H, S, M, **_: B * T * (16 * H * H + S * 12 * H * H + 2 * M * H),
    "gru_backward": lambda B, T, H, S, M, **_: B * T * (16 * H * H + S * 12 * H * H + 2 * M * H),
}
ARITHMETIC = (
    "attention_materialised_forward", "attention_materialised_backward", "cope_forward", "cope_backward", "moe_forward",
    "moe_backward", "moe_backward_w", "gru_forward", "gru_backward",
)  # fmt: skip
