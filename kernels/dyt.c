// Dynamic tanh: what stands in for a normalisation where no statistics are wanted.
//
// The gradients of a, w and b are sums over rows: each chunk of rows has its own, added up in order.
#include "gpt2c.h"
#include "parallel.h"
#include "simd.h"

void FN(dyt_forward)(float* out, const float* x, const float* a, const float* w, const float* b, int64_t R, int64_t C) {
    PARALLEL_FOR(16 * R * C)
    for (int64_t r = 0; r < R; r++)
        for (int64_t c = 0; c < C; c += VL) {
            vf t = vf_tanh(vf_load_n(x + r * C + c, C - c) * a[0]);
            vf_store_n(out + r * C + c, t * vf_load_n(w + c, C - c) + vf_load_n(b + c, C - c), C - c);
        }
}

static int64_t whole_vectors(int64_t C) { return (C + VL - 1) / VL * VL; }

// Per chunk of rows: dw, db, and da of each column, a row of whole vectors each.
size_t FN(dyt_scratch)(int64_t R, int64_t C) { return num_chunks(R) * 3 * whole_vectors(C); }

void FN(dyt_backward)(float* dx, float* da, float* dw, float* db, const float* dout, const float* x, const float* a,
                      const float* w, int64_t R, int64_t C, int64_t add, float* scratch) {
    const int64_t chunks = num_chunks(R), rows = rows_per_chunk(R), W = whole_vectors(C);
    PARALLEL_FOR(24 * R * C)
    for (int64_t k = 0; k < chunks; k++) {
        float *sum_w = scratch + k * 3 * W, *sum_b = sum_w + W, *sum_a = sum_b + W;
        int64_t last = (k + 1) * rows < R ? (k + 1) * rows : R;
        for (int64_t c = 0; c < C; c += VL) {
            vf wc = vf_load_n(w + c, C - c), columns_w = {0}, columns_b = {0}, columns_a = {0};
            for (int64_t r = k * rows; r < last; r++) {
                int64_t i = r * C + c;
                vf g = vf_load_n(dout + i, C - c), xi = vf_load_n(x + i, C - c), t = vf_tanh(xi * a[0]);
                vf du = g * wc * (1.0f - t * t);
                vf old = add ? vf_load_n(dx + i, C - c) : (vf){0};
                vf_store_n(dx + i, old + du * a[0], C - c);
                columns_w += g * t;
                columns_b += g;
                columns_a += du * xi;
            }
            vf_store(sum_w + c, columns_w);
            vf_store(sum_b + c, columns_b);
            vf_store(sum_a + c, columns_a);
        }
    }
    vf all = {0};
    for (int64_t c = 0; c < C; c += VL) {
        vf columns_w = {0}, columns_b = {0};
        for (int64_t k = 0; k < chunks; k++) {
            columns_w += vf_load(scratch + k * 3 * W + c);
            columns_b += vf_load(scratch + k * 3 * W + W + c);
            all += vf_load(scratch + k * 3 * W + 2 * W + c);
        }
        vf_store_n(dw + c, vf_load_n(dw + c, C - c) + columns_w, C - c);
        vf_store_n(db + c, vf_load_n(db + c, C - c) + columns_b, C - c);
    }
    da[0] += vf_sum(all);
}
