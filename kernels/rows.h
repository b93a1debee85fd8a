// A few rows times a matrix: what is left of a product when one step of a recurrence needs the result of the one before.
//
// There is too little to do for packing to pay: every element of the matrix is used once for each row and comes from the
// second-level cache. So the matrix is read where it lies, in long stretches, and each piece of it that has been loaded
// serves up to four rows. Rows are given by pointers, because they lie far apart (one per sequence, or those that chose
// an expert). What a row gets does not depend on which rows go with it.
#ifndef GPT2C_ROWS_H
#define GPT2C_ROWS_H

#include "simd.h"

// VL dot products: of `rows` rows of x with VL / rows rows of w, of which `left` exist.
static inline __attribute__((always_inline)) void
dots(float* const* out, const float* const* x, const int rows, const float* w, int64_t C, int64_t left, int add) {
    enum { SUMS = VL };
    const int columns = SUMS / rows;
    vf sum[SUMS];
#pragma GCC unroll 16
    for (int i = 0; i < SUMS; i++) sum[i] = (vf){0};
    const float* wn[SUMS];
#pragma GCC unroll 16
    for (int n = 0; n < columns; n++) wn[n] = w + (n < left ? n : 0) * C;
    for (int64_t c = 0; c < C; c += VL) {
        vf xr[SUMS];
        if (C - c >= VL) {
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) xr[r] = vf_load(x[r] + c);
#pragma GCC unroll 16
            for (int n = 0; n < columns; n++) {
                vf wv = vf_load(wn[n] + c);
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++) sum[r * columns + n] += xr[r] * wv;
            }
        } else {
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) xr[r] = vf_load_n(x[r] + c, C - c);
#pragma GCC unroll 16
            for (int n = 0; n < columns; n++) {
                vf wv = vf_load_n(wn[n] + c, C - c);
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++) sum[r * columns + n] += xr[r] * wv;
            }
        }
    }
    float sums[SUMS];
    vf_store(sums, vf_sums(sum));
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        if (left >= columns && !add) memcpy(out[r], sums + r * columns, columns * sizeof(float));
        else
            for (int n = 0; n < columns && n < left; n++) out[r][n] = (add ? out[r][n] : 0.0f) + sums[r * columns + n];
}

// out[r] = or += w x[r]                                out (rows, N)  x (rows, C)  w (N, C)
static void rows_forward(float* const* out, const float* const* x, int rows, const float* w, int64_t N, int64_t C, int add) {
#define ROWS_DOTS(n)                                                                                             \
    for (; rows - first >= n; first += n)                                                                        \
        for (int64_t column = 0; column < N; column += VL / n) {                                                 \
            float* at[n];                                                                                        \
            for (int r = 0; r < n; r++) at[r] = out[first + r] + column;                                         \
            dots(at, x + first, n, w + column * C, C, N - column, add);                                          \
        }
    int first = 0;
    ROWS_DOTS(4)
    ROWS_DOTS(2)
    ROWS_DOTS(1)
#undef ROWS_DOTS
}

// dx[r][c..] = or += sum_n d[r][n] w[n][c..] for `vectors` vectors of columns, or, where there is only one, `left` columns.
static inline __attribute__((always_inline)) void
combine(float* const* dx, const float* const* d, const int rows, const int vectors, const float* w, int64_t N, int64_t C,
        int64_t c, int64_t left, int add) {
    vf sum[rows][vectors];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            sum[r][v] = !add ? (vf){0} : vectors > 1 ? vf_load(dx[r] + c + v * VL) : vf_load_n(dx[r] + c, left);
    for (int64_t n = 0; n < N; n++) {
        const float* wn = w + n * C + c;
        vf dr[rows];
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) dr[r] = vf_splat(d[r][n]);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
            vf wv = vectors > 1 ? vf_load(wn + v * VL) : vf_load_n(wn, left);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) sum[r][v] += dr[r] * wv;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            if (vectors > 1) vf_store(dx[r] + c + v * VL, sum[r][v]);
            else vf_store_n(dx[r] + c, sum[r][v], left);
}

// dx[r] = or += w^T d[r]                               dx (rows, C)  d (rows, N)  w (N, C)
static void rows_backward(float* const* dx, const float* const* d, int rows, const float* w, int64_t N, int64_t C, int add) {
#define COMBINE(n, vectors) \
    for (; C - c >= vectors * VL; c += vectors * VL) combine(dx + first, d + first, n, vectors, w, N, C, c, C - c, add);
#define ROWS_COMBINE(n, most)                                                                             \
    for (; rows - first >= n; first += n) {                                                               \
        int64_t c = 0;                                                                                    \
        COMBINE(n, most)                                                                                  \
        COMBINE(n, 2)                                                                                     \
        for (; c < C; c += VL) combine(dx + first, d + first, n, 1, w, N, C, c, C - c, add);              \
    }
    int first = 0;
#if VL == 16
    ROWS_COMBINE(4, 4)
    ROWS_COMBINE(2, 8)
#else
    ROWS_COMBINE(2, 4)
#endif
    ROWS_COMBINE(1, 8)
#undef ROWS_COMBINE
#undef COMBINE
}

#endif
