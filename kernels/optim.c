// The optimizer over flat blocks: every parameter of a model is one range of floats.
//
// The range is cut into blocks of a fixed size, so borders, vector tails and the order of sums do not depend on the
// number of threads.
#include <math.h>

#include "gpt2c.h"
#include "parallel.h"
#include "simd.h"

enum { BLOCK = 1 << 14 };

void FN(adamw)(float* params, float* m, float* v, const float* grads, int64_t R,
               float lr, float beta1, float beta2, float eps, float decay, float bias1, float bias2, float scale) {
    const float step = lr / bias1, root = 1.0f / sqrtf(bias2), shrink = lr * decay;
    PARALLEL_FOR(8 * R)
    for (int64_t first = 0; first < R; first += BLOCK) {
        int64_t n = R - first < BLOCK ? R - first : BLOCK;
        float *restrict p = params + first, *restrict mi = m + first, *restrict vi = v + first;
        const float* restrict g = grads + first;
        for (int64_t i = 0; i < n; i++) {
            float gi = g[i] * scale;
            mi[i] = beta1 * mi[i] + (1.0f - beta1) * gi;
            vi[i] = beta2 * vi[i] + (1.0f - beta2) * gi * gi;
            p[i] -= step * mi[i] / (sqrtf(vi[i]) * root + eps) + shrink * p[i];
        }
    }
}

void FN(sgd)(float* params, float* m, const float* grads, int64_t R,
             float lr, float momentum, float dampening, float decay, float scale, int64_t nesterov, int64_t first) {
    const float old = first ? 0.0f : momentum, part = first ? 1.0f : 1.0f - dampening;
    PARALLEL_FOR(6 * R)
    for (int64_t at = 0; at < R; at += BLOCK) {
        int64_t n = R - at < BLOCK ? R - at : BLOCK;
        float* restrict p = params + at;
        const float* restrict g = grads + at;
        if (!m) {
            for (int64_t i = 0; i < n; i++) p[i] -= lr * (g[i] * scale + decay * p[i]);
            continue;
        }
        float* restrict mi = m + at;
        for (int64_t i = 0; i < n; i++) {
            float d = g[i] * scale + decay * p[i];
            mi[i] = old * mi[i] + part * d;
            p[i] -= lr * (nesterov ? d + momentum * mi[i] : mi[i]);
        }
    }
}

void FN(add_scaled)(float* y, const float* x, int64_t R, float a) {
    PARALLEL_FOR(3 * R)
    for (int64_t first = 0; first < R; first += BLOCK)
        for (int64_t i = first; i < (R - first < BLOCK ? R : first + BLOCK); i++) y[i] += a * x[i];
}

void FN(clamp)(float* x, int64_t R, float limit) {
    PARALLEL_FOR(2 * R)
    for (int64_t first = 0; first < R; first += BLOCK)
        for (int64_t i = first; i < (R - first < BLOCK ? R : first + BLOCK); i++)
            x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];  // a NaN stays
}

size_t FN(global_norm_scratch)(int64_t R) { return 2 * ((R + BLOCK - 1) / BLOCK); }

void FN(global_norm)(float* norm, const float* x, int64_t R, float* scratch) {
    double* squares = (double*)scratch;  // of each block
    PARALLEL_FOR(2 * R)
    for (int64_t first = 0; first < R; first += BLOCK) {
        int64_t last = R - first < BLOCK ? R : first + BLOCK;
        vf sum[4] = {0};
        for (int64_t i = first; i < last; i += 4 * VL)
            for (int j = 0; j < 4; j++) {
                int64_t at = i + j * VL;
                if (at >= last) break;
                vf xi = vf_load_n(x + at, last - at);
                sum[j] += xi * xi;
            }
        squares[first / BLOCK] = (double)vf_sum(sum[0] + sum[1]) + (double)vf_sum(sum[2] + sum[3]);
    }
    double total = 0;
    for (int64_t i = 0; i < (R + BLOCK - 1) / BLOCK; i++) total += squares[i];
    norm[0] = sqrt(total);
}
