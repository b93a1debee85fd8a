// What the kernels of attention share: queries, one per vector lane, as attention.c and cope.c take them. TN of them go at once; a
// matrix of scores has one row per key. The backward of attention.c exchanges the roles. See there.
#ifndef GPT2C_ATTEND_H
#define GPT2C_ATTEND_H

#include "tile.h"

#define LANE_NUMBER(i, s) (i)
static inline vi lane_numbers(void) { return LANES(LANE_NUMBER, 0); }

static inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

typedef struct { float** part; int64_t size; } Part;

// Lays parts out behind one another; returns how much they take. `start` may be NULL.
static inline int64_t lay_out(float* start, const Part* part, int parts) {
    int64_t at = 0;
    for (int i = 0; i < parts; i++) *part[i].part = start ? start + at : NULL, at += part[i].size;
    return at;
}

// c (M x TN) = or += a (M x K) b (K x TN); rows of c are c_row apart. a must have readable rows up to an even number.
static inline void panel_product(float* c, ptrdiff_t c_row, int64_t M, int64_t K, const float* a, ptrdiff_t a_row,
                                 ptrdiff_t a_k, const float* b, ptrdiff_t b_k, int add) {
#define TILE_CALL(n)                                                            \
    {                                                                           \
        vf sum[n][2];                                                           \
        tile_sums(sum, n, K, a + i * a_row, a_row, a_k, b, b_k);                \
        _Pragma("GCC unroll 16") for (int r = 0; r < n; r++) {                  \
            if (r == rows) break;                                               \
            float* cr = c + (i + r) * c_row;                                    \
            vf_store(cr, add ? vf_load(cr) + sum[r][0] : sum[r][0]);            \
            vf_store(cr + VL, add ? vf_load(cr + VL) + sum[r][1] : sum[r][1]);  \
        }                                                                       \
    }
    FOR_TILES(M, TILE_CALL)
#undef TILE_CALL
}

// The same with c and b one vector wide: heads are often narrower than TN.
static inline void narrow_product(float* c, ptrdiff_t c_row, int64_t M, int64_t K, const float* a, ptrdiff_t a_row,
                                  ptrdiff_t a_k, const float* b, ptrdiff_t b_k, int add) {
#define TILE_CALL(n)                                                            \
    {                                                                           \
        vf sum[n];                                                              \
        _Pragma("GCC unroll 16") for (int r = 0; r < n; r++) sum[r] = (vf){0};  \
        for (int64_t k = 0; k < K; k++) {                                       \
            vf bk = vf_load(b + k * b_k);                                       \
            const float* ak = a + i * a_row + k * a_k;                          \
            _Pragma("GCC unroll 16") for (int r = 0; r < n; r++) sum[r] += vf_splat(ak[r * a_row]) * bk; \
        }                                                                       \
        _Pragma("GCC unroll 16") for (int r = 0; r < n; r++) {                  \
            if (r == rows) break;                                               \
            float* cr = c + (i + r) * c_row;                                    \
            vf_store(cr, add ? vf_load(cr) + sum[r] : sum[r]);                  \
        }                                                                       \
    }
    FOR_TILES(M, TILE_CALL)
#undef TILE_CALL
}

// The same with c and b W wide, W a multiple of VL.
static inline void rows_product(float* c, ptrdiff_t c_row, int64_t M, int64_t K, const float* a, ptrdiff_t a_row,
                                ptrdiff_t a_k, const float* b, ptrdiff_t b_k, int64_t W, int add) {
    int64_t at = 0;
    for (; at + TN <= W; at += TN) panel_product(c + at, c_row, M, K, a, a_row, a_k, b + at, b_k, add);
    if (at < W) narrow_product(c + at, c_row, M, K, a, a_row, a_k, b + at, b_k, add);
}

// Rows of a head are short pieces far apart, which hardware does not fetch ahead: each is asked for AHEAD rows before its turn.
enum { AHEAD = 8 };

// dst (n, W) = scale * rows of width D, src_row apart; columns from D on are 0
static inline void copy_rows(float* dst, int64_t W, const float* src, ptrdiff_t src_row, int64_t n, int64_t D, float scale) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < W; c += VL) {
            __builtin_prefetch(src + (i + AHEAD) * src_row + c, 0, 2);
            vf_store(dst + i * W + c, c < D ? vf_load_n(src + i * src_row + c, D - c) * scale : (vf){0});
        }
}

// dst (n rows of width D, dst_row apart) = or += rows of src, W apart, * scale
static inline void store_rows(float* dst, ptrdiff_t dst_row, const float* src, int64_t W, int64_t n, int64_t D, float scale, int add) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < D; c += VL) {
            float* d = dst + i * dst_row + c;
            __builtin_prefetch(d + AHEAD * dst_row, 1);
            vf r = vf_load(src + i * W + c) * scale;
            vf_store_n(d, add ? vf_load_n(d, D - c) + r : r, D - c);
        }
}

// dot of each of n rows of a and b, which are `row` apart
static inline void row_dots(float* dots, const float* a, const float* b, ptrdiff_t row, int64_t n, int64_t D) {
    for (int64_t i = 0; i < n; i++) {
        vf sum = {0};
        for (int64_t c = 0; c < D; c += VL) sum += vf_load_n(a + i * row + c, D - c) * vf_load_n(b + i * row + c, D - c);
        dots[i] = vf_sum(sum);
    }
}

// dst (n rows of width D, dst_row apart) = or += src_t^T * scale, where src_t is (D, TN) and scale one factor per lane (NULL: 1)
static inline void store_lanes(float* dst, ptrdiff_t dst_row, const float* src_t, int64_t n, int64_t D, const float* scale,
                               int add) {
    for (int64_t q = 0; q < n; q += VL)
        for (int64_t c = 0; c < D; c += VL) {
            vf r[VL];
            for (int i = 0; i < VL; i++) r[i] = vf_load(src_t + (c + i) * TN + q) * (scale ? vf_load(scale + q) : vf_splat(1));
            vf_transpose(r);
            for (int64_t i = 0; i < VL && q + i < n; i++) {
                float* d = dst + (q + i) * dst_row + c;
                __builtin_prefetch(d + AHEAD * dst_row, 1);
                vf_store_n(d, add ? vf_load_n(d, D - c) + r[i] : r[i], D - c);
            }
        }
}

// p = softmax of n scores
static inline void softmax(float* p, const float* s, int64_t n) {
    float max = s[0];
    for (int64_t j = 1; j < n; j++) max = s[j] > max ? s[j] : max;
    vf sum = {0};
    for (int64_t j = 0; j < n; j += VL) {
        vf e = vf_exp(vf_load_n(s + j, n - j) - max);
        vf_store_n(p + j, e, n - j);
        sum += n - j < VL ? vf_load_n(p + j, n - j) : e;
    }
    float inverse = 1.0f / vf_sum(sum);
    for (int64_t j = 0; j < n; j++) p[j] *= inverse;
}

#endif
