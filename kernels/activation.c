// Activations: elementwise, so blocks of a row of R elements are divided among the threads.
//
// GELU's tanh form is computed through the logistic function: (1 + tanh u) / 2 = 1 / (1 + exp(-2u)). Nothing cancels,
// so the error stays small relative to the result even where tanh u is near -1. What error there is comes from the
// argument: exp turns a rounding of 2u into |2u| times as much.
#include <math.h>

#include "gpt2c.h"
#include "parallel.h"
#include "simd.h"

enum { BLOCK = 64 * VL };
#define FOR_BLOCKS(R, work)                           \
    PARALLEL_FOR((work) * (R))                        \
    for (int64_t first = 0; first < (R); first += BLOCK) \
        for (int64_t i = first; i < (R) && i < first + BLOCK; i += VL)

#define GELU_SCALE 1.5957691216057308f  // 2 sqrt(2 / pi)
#define GELU_CUBIC 0.044715f

// s = 1 / (1 + exp(-2u))
static inline vf gelu_gate(vf x) {
    vf minus_2u = x * -GELU_SCALE * (x * x * GELU_CUBIC + 1.0f);
    return 1.0f / (vf_exp(minus_2u) + 1.0f);
}

void K(gelu_forward)(float* out, const float* x, int64_t R) {
    FOR_BLOCKS(R, 8) {
        vf xi = vf_load_n(x + i, R - i);
        vf_store_n(out + i, xi * gelu_gate(xi), R - i);
    }
}

void K(gelu_backward)(float* dx, const float* dout, const float* x, int64_t R, int64_t add) {
    FOR_BLOCKS(R, 8) {
        vf xi = vf_load_n(x + i, R - i);
        vf s = gelu_gate(xi);
        vf du2 = (xi * xi * (3 * GELU_CUBIC) + 1.0f) * GELU_SCALE;
        vf slope = s * (xi * (1.0f - s) * du2 + 1.0f);
        vf old = add ? vf_load_n(dx + i, R - i) : (vf){0};
        vf_store_n(dx + i, old + vf_load_n(dout + i, R - i) * slope, R - i);
    }
}

void K(gelu_forward_scalar)(float* out, const float* x, int64_t R) {
    for (int64_t i = 0; i < R; i++)
        out[i] = x[i] / (1.0f + expf(-GELU_SCALE * x[i] * (1.0f + GELU_CUBIC * x[i] * x[i])));
}
