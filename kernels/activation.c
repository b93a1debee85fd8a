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
#define ROOT_INVERSE_2PI 0.3989422804014327f  // 1 / sqrt(2 pi)

// s = 1 / (1 + exp(-2u))
static inline vf gelu_gate(vf x) {
    vf minus_2u = x * -GELU_SCALE * (x * x * GELU_CUBIC + 1.0f);
    return 1.0f / (vf_exp(minus_2u) + 1.0f);
}

void FN(gelu_forward)(float* out, const float* x, int64_t R) {
    FOR_BLOCKS(R, 8) {
        vf xi = vf_load_n(x + i, R - i);
        vf_store_n(out + i, xi * gelu_gate(xi), R - i);
    }
}

void FN(gelu_backward)(float* dx, const float* dout, const float* x, int64_t R, int64_t add) {
    FOR_BLOCKS(R, 8) {
        vf xi = vf_load_n(x + i, R - i);
        vf s = gelu_gate(xi);
        vf du2 = (xi * xi * (3 * GELU_CUBIC) + 1.0f) * GELU_SCALE;
        vf slope = s * (xi * (1.0f - s) * du2 + 1.0f);
        vf old = add ? vf_load_n(dx + i, R - i) : (vf){0};
        vf_store_n(dx + i, old + vf_load_n(dout + i, R - i) * slope, R - i);
    }
}

// The exact form: x Phi(x), Phi the normal distribution. Phi(-|x|) = exp(-x^2 / 2) tail(|x|), where the tail falls
// slowly: 1 / (|x| + 4) times a polynomial in y = (|x| - 4) / (|x| + 4), fitted to a relative error of 8.6e-9 up to
// |x| = 14.5, beyond which exp(-x^2 / 2) is 0.
typedef struct {
    vf phi;  // exp(-x^2 / 2)
    vf cdf;  // Phi(x)
} Normal;

static inline Normal normal(vf x) {
    vf size = vf_min(vf_splat(14.5f), vf_max(x, -x)), part = 1.0f / (size + 4.0f), y = 1.0f - 8.0f * part;
    vf p = y * -1.319728326e-04f + 1.793522970e-04f;
    p = p * y + 1.569923363e-03f;
    p = p * y - 3.512552707e-03f;
    p = p * y - 7.525270805e-03f;
    p = p * y + 6.040383130e-02f;
    p = p * y - 1.865234375e-01f;
    p = p * y + 3.871369064e-01f;
    p = p * y - 6.078965664e-01f;
    p = p * y + 7.552851439e-01f;
    vf phi = vf_exp(size * size * -0.5f), tail = phi * (p * part);
    return (Normal){phi, vf_select(x < 0.0f, tail, 1.0f - tail)};
}

void FN(gelu_erf_forward)(float* out, const float* x, int64_t R) {
    FOR_BLOCKS(R, 12) {
        vf xi = vf_load_n(x + i, R - i);
        vf_store_n(out + i, xi * normal(xi).cdf, R - i);
    }
}

void FN(gelu_erf_backward)(float* dx, const float* dout, const float* x, int64_t R, int64_t add) {
    FOR_BLOCKS(R, 14) {
        vf xi = vf_load_n(x + i, R - i);
        Normal n = normal(xi);
        vf old = add ? vf_load_n(dx + i, R - i) : (vf){0};
        vf_store_n(dx + i, old + vf_load_n(dout + i, R - i) * (n.cdf + xi * n.phi * ROOT_INVERSE_2PI), R - i);
    }
}

void FN(squared_relu_forward)(float* out, const float* x, int64_t R) {
    FOR_BLOCKS(R, 2) {
        vf m = vf_max(vf_splat(0), vf_load_n(x + i, R - i));
        vf_store_n(out + i, m * m, R - i);
    }
}

void FN(squared_relu_backward)(float* dx, const float* dout, const float* x, int64_t R, int64_t add) {
    FOR_BLOCKS(R, 4) {
        vf m = vf_max(vf_splat(0), vf_load_n(x + i, R - i));
        vf old = add ? vf_load_n(dx + i, R - i) : (vf){0};
        vf_store_n(dx + i, old + vf_load_n(dout + i, R - i) * (m * 2.0f), R - i);
    }
}

void FN(swiglu_forward)(float* out, const float* a, const float* b, int64_t R) {
    FOR_BLOCKS(R, 8) {
        vf ai = vf_load_n(a + i, R - i);
        vf_store_n(out + i, ai * vf_logistic(ai) * vf_load_n(b + i, R - i), R - i);
    }
}

void FN(swiglu_backward)(float* da, float* db, const float* dout, const float* a, const float* b, int64_t R,
                         int64_t add_a, int64_t add_b) {
    FOR_BLOCKS(R, 12) {
        vf ai = vf_load_n(a + i, R - i), g = vf_load_n(dout + i, R - i);
        vf s = vf_logistic(ai), slope = s * (ai * (1.0f - s) + 1.0f);
        vf old_a = add_a ? vf_load_n(da + i, R - i) : (vf){0}, old_b = add_b ? vf_load_n(db + i, R - i) : (vf){0};
        vf_store_n(da + i, old_a + g * vf_load_n(b + i, R - i) * slope, R - i);
        vf_store_n(db + i, old_b + g * (ai * s), R - i);
    }
}

void FN(gelu_forward_scalar)(float* out, const float* x, int64_t R) {
    for (int64_t i = 0; i < R; i++)
        out[i] = x[i] / (1.0f + expf(-GELU_SCALE * x[i] * (1.0f + GELU_CUBIC * x[i] * x[i])));
}
