// Layer normalisation and RMS normalisation, the latter also of single heads.
//
// Forward and dx go row by row. dw and db are sums over rows: the columns are divided among the threads and each is
// summed over the rows in order, so the result does not depend on the number of threads.
#include <math.h>

#include "gpt2c.h"
#include "parallel.h"
#include "simd.h"

enum { COLUMNS = 4 * VL };  // columns of one task of dw and db: whole cache lines, sums in registers

void FN(layernorm_forward)(float* out, float* mean, float* rstd, const float* x, const float* w, const float* b,
                           int64_t R, int64_t C, float eps) {
    PARALLEL_FOR(4 * R * C)
    for (int64_t r = 0; r < R; r++) {
        const float* xr = x + r * C;
        vf sum = {0};
        for (int64_t c = 0; c < C; c += VL) sum += vf_load_n(xr + c, C - c);
        float m = vf_sum(sum) / C;

        vf squares = {0};
        for (int64_t c = 0; c < C; c += VL) {
            vf d = vf_load_n(xr + c, C - c) - m;
            if (C - c < VL) d = vf_load_n((float*)&d, C - c);  // the padding is not part of the row
            squares += d * d;
        }
        float s = 1.0f / sqrtf(vf_sum(squares) / C + eps);

        for (int64_t c = 0; c < C; c += VL) {
            vf n = (vf_load_n(xr + c, C - c) - m) * s;
            vf_store_n(out + r * C + c, n * vf_load_n(w + c, C - c) + vf_load_n(b + c, C - c), C - c);
        }
        mean[r] = m;
        rstd[r] = s;
    }
}

void FN(layernorm_backward)(float* dx, float* dw, float* db, const float* dout, const float* x, const float* w,
                            const float* mean, const float* rstd, int64_t R, int64_t C, int64_t add) {
    PARALLEL_FOR(8 * R * C)
    for (int64_t r = 0; r < R; r++) {
        const float *g = dout + r * C, *xr = x + r * C;
        float m = mean[r], s = rstd[r];
        vf sum_d = {0}, sum_dn = {0};
        for (int64_t c = 0; c < C; c += VL) {
            vf d = vf_load_n(g + c, C - c) * vf_load_n(w + c, C - c);
            sum_d += d;
            sum_dn += d * ((vf_load_n(xr + c, C - c) - m) * s);
        }
        float mean_d = vf_sum(sum_d) / C, mean_dn = vf_sum(sum_dn) / C;
        for (int64_t c = 0; c < C; c += VL) {
            vf n = (vf_load_n(xr + c, C - c) - m) * s;
            vf d = vf_load_n(g + c, C - c) * vf_load_n(w + c, C - c);
            vf old = add ? vf_load_n(dx + r * C + c, C - c) : (vf){0};
            vf_store_n(dx + r * C + c, old + (d - mean_d - n * mean_dn) * s, C - c);
        }
    }

    PARALLEL_FOR(4 * R * C)
    for (int64_t first = 0; first < C; first += COLUMNS) {
        vf sum_w[COLUMNS / VL] = {0}, sum_b[COLUMNS / VL] = {0};
        for (int64_t r = 0; r < R; r++)
            for (int i = 0; i < COLUMNS / VL; i++) {
                int64_t c = first + i * VL;
                if (c >= C) break;
                vf g = vf_load_n(dout + r * C + c, C - c);
                sum_w[i] += g * ((vf_load_n(x + r * C + c, C - c) - mean[r]) * rstd[r]);
                sum_b[i] += g;
            }
        for (int i = 0; i < COLUMNS / VL; i++) {
            int64_t c = first + i * VL;
            if (c >= C) break;
            vf_store_n(dw + c, vf_load_n(dw + c, C - c) + sum_w[i], C - c);
            vf_store_n(db + c, vf_load_n(db + c, C - c) + sum_b[i], C - c);
        }
    }
}

// RMS --------------------------------------------------------------------------------------------------------------

// The gain at column c of n; without gains, 1.
static inline vf gain(const float* w, int64_t c, int64_t n) { return w ? vf_load_n(w + c, n) : vf_splat(1.0f); }

// out = n w; returns rstd
static inline float normalise(float* out, const float* x, const float* w, int64_t C, float eps) {
    vf squares = {0};
    for (int64_t c = 0; c < C; c += VL) {
        vf v = vf_load_n(x + c, C - c);
        squares += v * v;
    }
    float s = 1.0f / sqrtf(vf_sum(squares) / C + eps);
    for (int64_t c = 0; c < C; c += VL) vf_store_n(out + c, vf_load_n(x + c, C - c) * s * gain(w, c, C - c), C - c);
    return s;
}

// dx = or += s (d - n mean(d n))
static inline void normalise_backward(float* dx, const float* g, const float* x, const float* w, float s, int64_t C, int64_t add) {
    vf sum = {0};
    for (int64_t c = 0; c < C; c += VL) sum += vf_load_n(g + c, C - c) * gain(w, c, C - c) * (vf_load_n(x + c, C - c) * s);
    float mean = vf_sum(sum) / C;
    for (int64_t c = 0; c < C; c += VL) {
        vf d = vf_load_n(g + c, C - c) * gain(w, c, C - c);
        vf old = add ? vf_load_n(dx + c, C - c) : (vf){0};
        vf_store_n(dx + c, old + (d - vf_load_n(x + c, C - c) * s * mean) * s, C - c);
    }
}

// dw += sum of dout n over R rows, `row` apart, of n heads of width C each; rstd of a row are `stats` apart.
static void add_gain_gradient(float* dw, const float* dout, const float* x, const float* rstd, int64_t R, int64_t n, int64_t C,
                              ptrdiff_t row, ptrdiff_t stats) {
    PARALLEL_FOR(3 * R * n * C)
    for (int64_t first = 0; first < C; first += COLUMNS) {
        vf sum[COLUMNS / VL] = {0};
        for (int64_t r = 0; r < R; r++)
            for (int64_t h = 0; h < n; h++)
                for (int i = 0; i < COLUMNS / VL; i++) {
                    int64_t c = first + i * VL, at = r * row + h * C + c;
                    if (c >= C) break;
                    sum[i] += vf_load_n(dout + at, C - c) * (vf_load_n(x + at, C - c) * rstd[r * stats + h]);
                }
        for (int i = 0; i < COLUMNS / VL; i++) {
            int64_t c = first + i * VL;
            if (c >= C) break;
            vf_store_n(dw + c, vf_load_n(dw + c, C - c) + sum[i], C - c);
        }
    }
}

void FN(rmsnorm_forward)(float* out, float* rstd, const float* x, const float* w, int64_t R, int64_t C, float eps) {
    PARALLEL_FOR(3 * R * C)
    for (int64_t r = 0; r < R; r++) rstd[r] = normalise(out + r * C, x + r * C, w, C, eps);
}

void FN(rmsnorm_backward)(float* dx, float* dw, const float* dout, const float* x, const float* w, const float* rstd,
                          int64_t R, int64_t C, int64_t add) {
    PARALLEL_FOR(6 * R * C)
    for (int64_t r = 0; r < R; r++) normalise_backward(dx + r * C, dout + r * C, x + r * C, w, rstd[r], C, add);
    if (dw) add_gain_gradient(dw, dout, x, rstd, R, 1, C, C, 1);
}

void FN(head_norm_forward)(float* out, float* rstd, const float* x, const float* qw, const float* kw,
                           int64_t R, int64_t G, int64_t D, int64_t N, int64_t H, float eps) {
    PARALLEL_FOR(3 * R * G * D)
    for (int64_t r = 0; r < R; r++) {
        const int64_t row = r * G * D, rest = row + N * D;
        for (int64_t h = 0; h < N; h++) rstd[r * N + h] = normalise(out + row + h * D, x + row + h * D, h < H ? qw : kw, D, eps);
        memcpy(out + rest, x + rest, (G - N) * D * sizeof(float));
    }
}

void FN(head_norm_backward)(float* dx, float* dqw, float* dkw, const float* dout, const float* x, const float* qw,
                            const float* kw, const float* rstd, int64_t R, int64_t G, int64_t D, int64_t N, int64_t H,
                            int64_t add) {
    PARALLEL_FOR(6 * R * G * D)
    for (int64_t r = 0; r < R; r++) {
        const int64_t row = r * G * D;
        for (int64_t h = 0; h < N; h++)
            normalise_backward(dx + row + h * D, dout + row + h * D, x + row + h * D, h < H ? qw : kw, rstd[r * N + h], D, add);
        for (int64_t c = N * D; c < G * D; c++) dx[row + c] = (add ? dx[row + c] : 0) + dout[row + c];
    }
    add_gain_gradient(dqw, dout, x, rstd, R, H, D, G * D, N);
    add_gain_gradient(dkw, dout + H * D, x + H * D, rstd + H, R, N - H, D, G * D, N);
}
