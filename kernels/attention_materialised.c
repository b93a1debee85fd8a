// Causal self-attention that keeps its scores and probabilities, to look at: plainly, one query at a time.
#include <math.h>

#include "attend.h"
#include "gpt2c.h"
#include "parallel.h"

static inline float dot(const float* a, const float* b, int64_t n) {
    vf sum = {0};
    for (int64_t c = 0; c < n; c += VL) sum += vf_load_n(a + c, n - c) * vf_load_n(b + c, n - c);
    return vf_sum(sum);
}

// y += a x
static inline void axpy(float* y, float a, const float* x, int64_t n) {
    for (int64_t c = 0; c < n; c++) y[c] += a * x[c];
}

void FN(attention_materialised_forward)(float* out, float* preatt, float* att, const float* qkv,
                                        int64_t B, int64_t T, int64_t H, int64_t D, int64_t K) {
    const int64_t row = (H + 2 * K) * D;
    const float scale = 1.0f / sqrtf(D);
    PARALLEL_FOR(B * T * T * H * D)
    for (int64_t bht = 0; bht < B * H * T; bht++) {
        int64_t t = bht % T, h = bht / T % H, b = bht / T / H;
        const float *heads = qkv + b * T * row, *q = heads + t * row + h * D, *k = heads + (H + h * K / H) * D, *v = k + K * D;
        float *s = preatt + bht * T, *p = att + bht * T, *o = out + ((b * T + t) * H + h) * D;
        memset(s, 0, T * sizeof(float));
        memset(p, 0, T * sizeof(float));
        for (int64_t j = 0; j <= t; j++) s[j] = dot(q, k + j * row, D) * scale;
        softmax(p, s, t + 1);
        memset(o, 0, D * sizeof(float));
        for (int64_t j = 0; j <= t; j++) axpy(o, p[j], v + j * row, D);
    }
}

size_t FN(attention_materialised_scratch)(int64_t T) { return T; }

void FN(attention_materialised_backward)(float* dqkv, const float* dout, const float* qkv, const float* att,
                                         int64_t B, int64_t T, int64_t H, int64_t D, int64_t K, int64_t add, float* scratch) {
    const int64_t row = (H + 2 * K) * D, each = H / K;
    const float scale = 1.0f / sqrtf(D);
    PARALLEL_FOR(2 * B * T * T * H * D)
    for (int64_t bk = 0; bk < B * K; bk++) {
        int64_t b = bk / K, at = b * T * row, key = at + (H + bk % K) * D;
        const float *k = qkv + key, *v = k + K * D;
        float *dk = dqkv + key, *dv = dk + K * D, *da = scratch + thread_index() * T;
        for (int64_t j = 0; !add && j < T; j++) {
            memset(dk + j * row, 0, D * sizeof(float));
            memset(dv + j * row, 0, D * sizeof(float));
        }
        for (int64_t ht = 0; ht < each * T; ht++) {
            int64_t h = bk % K * each + ht / T, t = ht % T;
            const float *q = qkv + at + t * row + h * D, *g = dout + ((b * T + t) * H + h) * D, *p = att + ((b * H + h) * T + t) * T;
            float *dq = dqkv + at + t * row + h * D, mean = 0;  // sum_j p_j da_j
            if (!add) memset(dq, 0, D * sizeof(float));
            for (int64_t j = 0; j <= t; j++) {
                da[j] = dot(g, v + j * row, D);
                axpy(dv + j * row, p[j], g, D);
                mean += p[j] * da[j];
            }
            for (int64_t j = 0; j <= t; j++) {
                float ds = p[j] * (da[j] - mean) * scale;
                axpy(dq, ds, k + j * row, D);
                axpy(dk + j * row, ds, q, D);
            }
        }
    }
}
