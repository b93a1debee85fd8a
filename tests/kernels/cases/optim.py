"""Cases of kernels/optim.c."""

import numpy as np

from cases.case import LENGTHS, case, gamma, normal, single, unset
from gpt2c import reference as ref


@case(*LENGTHS, large=(8 * 16384 + 5,))
def adamw(rng, R):
    params, m, grads, v = normal(rng, R), normal(rng, R), normal(rng, R), normal(rng, R) ** 2
    lr, beta1, beta2, eps, decay, scale = (float(single(x)) for x in (0.1, 0.9, 0.95, 1e-3, 0.3, 0.7))
    bias1, bias2 = 1 - beta1**3, 1 - beta2**3
    new, new_m, new_v = ref.adamw(params, grads, m, v, lr, beta1, beta2, eps, decay, t=3, grad_scale=scale)
    size_m = beta1 * abs(m) + (1 - beta1) * scale * abs(grads)
    size_step = lr * size_m / bias1 / (np.sqrt(new_v / bias2) + eps)
    bound = gamma(16) * size_step + gamma(4) * (lr * decay + 1) * abs(params)
    args = params, m, v, grads, lr, beta1, beta2, eps, decay, bias1, bias2, scale
    return args, [(new, bound), (new_m, gamma(4) * size_m), (new_v, gamma(5) * new_v)]


@case(*LENGTHS, (33, 0.0, 0.9), (33, 1.0, 0.0), (33, 0.0, 0.9, 1), (97, 0.3, 0.9, 0, 1), large=(8 * 16384 + 5,))
def sgd(rng, R, dampening=0.3, momentum=0.9, nesterov=0, first=0):
    params, m, grads = normal(rng, R), normal(rng, R), normal(rng, R)
    lr, momentum, dampening, decay, scale = (float(single(x)) for x in (0.1, momentum, dampening, 0.3, 0.7))
    exact = ref.sgd(params, grads, m, lr, momentum, dampening, decay, nesterov, first, scale)
    size_d = scale * abs(grads) + decay * abs(params)
    size_m = size_d if first else momentum * abs(m) + (1 - dampening) * size_d
    size_p = abs(params) + lr * (size_d + momentum * size_m if nesterov else size_m)
    args = params, m, grads, lr, momentum, dampening, decay, scale, nesterov, first
    return args, [(exact[0], gamma(8) * size_p), (exact[1], gamma(5) * size_m)]


@case(*LENGTHS, large=(8 * 16384 + 5,))
def add_scaled(rng, R):
    y, x, a = normal(rng, R), normal(rng, R), float(single(0.3))
    return (y, x, a), [(ref.add_scaled(y, x, a), gamma(2) * (abs(y) + a * abs(x)))]


@case(*LENGTHS, large=(8 * 16384 + 5,))
def clamp(rng, R):
    x = normal(rng, R)
    return (x, 0.5), [(ref.clamp(x, 0.5), 0)]


@case(*LENGTHS, large=(8 * 16384 + 5,))
def global_norm(rng, R):
    """Up to 2^14 squares are summed in float32."""
    x = normal(rng, R)
    norm = ref.global_norm(x)
    return (unset(1), x), [(norm, gamma(min(R, 1 << 14) + 2) * norm)]
