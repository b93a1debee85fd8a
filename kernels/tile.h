// The register tile: the one inner loop that every matrix product here ends in.
//
//   c[i][j] (+)= sum_k a[i][k] * b[k][j]        i < rows <= TM, j < TN, k < K
//
// A tile of TM x TN sums lives in vector registers while k runs: each step loads TN contiguous floats of b (two
// vectors) and broadcasts one float of a per row. Every sum runs over k in order, one multiply-add at a time, so an
// element has the same bits wherever the borders between tiles, or between threads, fall.
//
// b is a panel: K rows of TN floats, b_k apart. a is read through two strides, so it may be packed ([k][TM]: a_row 1,
// a_k TM), a plain matrix (a_row its row length, a_k 1) or a transposed one.
#ifndef GPT2C_TILE_H
#define GPT2C_TILE_H

#include "simd.h"

enum {
    TN = 2 * VL,  // columns: two vectors
    // rows: 28 sums, 2 of b and 2 spare fill AVX-512's 32 registers; 12 + 2 + 1 AVX's 16; SSE needs one for products
    TM = VL == 16 ? 14 : VL == 8 ? 6 : 4,
};

// `rows` is a constant wherever this is inlined, so that `sum` becomes registers.
static inline __attribute__((always_inline)) void
tile_sums(vf sum[][2], int rows, int64_t K, const float* a, ptrdiff_t a_row, ptrdiff_t a_k, const float* b, ptrdiff_t b_k) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (vf){0};
    for (int64_t k = 0; k < K; k++) {
        vf b0 = vf_load(b), b1 = vf_load(b + VL);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vf ai = vf_splat(a[i * a_row]);
            sum[i][0] += ai * b0;
            sum[i][1] += ai * b1;
        }
        a += a_k;
        b += b_k;
    }
}

#ifdef __AVX512BF16__
// The same on pairs: a and b hold the bf16 numbers of steps k and k + 1 side by side in 32 bits, and one instruction
// adds both products. `pairs` is half the number of steps; rows of a are TM, of b TN pairs.
static inline __attribute__((always_inline)) void
tile_sums_bf16(vf sum[][2], int rows, int64_t pairs, const int32_t* a, const int32_t* b) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (vf){0};
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + VL);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            __m512bh ai = (__m512bh)_mm512_set1_epi32(a[i]);
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], ai, b0);
            sum[i][1] = _mm512_dpbf16_ps(sum[i][1], ai, b1);
        }
        a += TM;
        b += TN;
    }
}

#endif

// Calls TILE_CALL(n) with the even constant n nearest above `rows`: the last tile of a matrix is seldom full.
#define TILE_CASE(n, TILE_CALL) case (n) / 2: TILE_CALL(n); break;
#if VL == 16
#define TILE_CASES(T) TILE_CASE(2, T) TILE_CASE(4, T) TILE_CASE(6, T) TILE_CASE(8, T) TILE_CASE(10, T) TILE_CASE(12, T)
#elif VL == 8
#define TILE_CASES(T) TILE_CASE(2, T) TILE_CASE(4, T)
#else
#define TILE_CASES(T) TILE_CASE(2, T)
#endif
#define TILE_DISPATCH(rows, TILE_CALL) \
    switch (((rows) + 1) / 2) { TILE_CASES(TILE_CALL) default: TILE_CALL(TM); }

// Calls TILE_CALL(n) for each tile of M rows, which begins at row i and has `rows` of them.
#define FOR_TILES(M, TILE_CALL)                            \
    for (int64_t i = 0; i < (M); i += TM) {                \
        int rows = (M) - i < TM ? (int)((M) - i) : TM;     \
        TILE_DISPATCH(rows, TILE_CALL)                     \
    }

// gcc drops calls of functions that do nothing but prefetch, hence always inline
static inline __attribute__((always_inline)) void prefetch_tile(const float* c, ptrdiff_t c_row, int rows) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < TN; j += 16) __builtin_prefetch(c + i * c_row + j, 1);  // both lines
}

// dst[k][i] = src[i][k] for i < width, k < K: VL x VL squares transposed in registers. Rows of src from `rows` on
// count as zero. `width` is a multiple of VL, or less than VL: then each row of dst is stored with surplus lanes that
// the next row overwrites, and dst needs VL floats of slack at its end.
static inline void pack_transposed(float* dst, int width, const float* src, ptrdiff_t src_row, int rows, int64_t K) {
    for (int i = 0; i < width; i += VL)
        for (int64_t k = 0; k < K; k += VL) {
            ptrdiff_t n = K - k < VL ? K - k : VL;
            vf r[VL];
#pragma GCC unroll 16
            for (int j = 0; j < VL; j++)
                r[j] = i + j < rows ? vf_load_n(src + (i + j) * src_row + k, n) : (vf){0};
            vf_transpose(r);
            for (int j = 0; j < n; j++) vf_store(dst + (k + j) * width + i, r[j]);
        }
}

// dst = panels of `width` columns, each K x width: dst[p][k][i] = src[k][p width + i] for all `columns` of src; the last
// panel is filled up with zeros. A few rows at a time: src is then read along its rows, which memory likes, and dst in
// pieces long enough for the cache. The last row of a panel must not spill into the next panel.
enum { PACK_ROWS = 8 };

static inline void pack_straight(float* dst, int width, const float* src, ptrdiff_t src_row, int64_t columns, int64_t K) {
    for (int64_t k0 = 0; k0 < K; k0 += PACK_ROWS)
        for (int64_t c = 0; c < columns; c += width)
            for (int64_t k = k0; k < K && k < k0 + PACK_ROWS; k++)
                for (int i = 0; i < width; i += VL) {
                    int64_t left = columns - c - i;
                    vf v = left > 0 ? vf_load_n(src + k * src_row + c + i, left) : (vf){0};
                    vf_store_n(dst + c * K + k * width + i, v, k + 1 < K ? VL : width - i);
                }
}

#ifdef __AVX512BF16__
// The same two for pairs: dst[k/2][i] = the bf16 of steps k and k + 1. Steps from K on, up to `pairs` pairs, count as zero.
static inline void pack_transposed_bf16(int32_t* dst, int width, const float* src, ptrdiff_t src_row, int rows, int64_t K,
                                        int64_t pairs) {
    for (int i = 0; i < width; i += VL)
        for (int64_t k = 0; k < 2 * pairs; k += 2 * VL) {
            vf r[VL];
#pragma GCC unroll 16
            for (int j = 0; j < VL; j++) {
                const float* row = src + (i + j) * src_row + k;
                vf low = i + j < rows ? vf_load_n(row, K - k) : (vf){0};
                vf high = i + j < rows && K - k > VL ? vf_load_n(row + VL, K - k - VL) : (vf){0};
                r[j] = (vf)_mm512_cvtne2ps_pbh(high, low);
            }
            vf_transpose(r);
            for (int j = 0; j < VL && k / 2 + j < pairs; j++) vf_store((float*)dst + (k / 2 + j) * width + i, r[j]);
        }
}

#define LANE_IN_BOTH_HALVES(i, s) ((i) * 0x10001)
// Lane i = the bf16 of low[i] and, in the upper half, of high[i]
static inline vf vf_pairs_bf16(vf low, vf high) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);  // 16 low ones, then 16 high ones
    const __m512i order = _mm512_add_epi32(_mm512_set1_epi32(16 << 16), (__m512i)(LANES(LANE_IN_BOTH_HALVES, 0)));
    return (vf)_mm512_permutexvar_epi16(order, both);
}

static inline void pack_straight_bf16(int32_t* dst, int width, const float* src, ptrdiff_t src_row, int64_t columns, int64_t K,
                                      int64_t pairs) {
    for (int64_t k0 = 0; k0 < 2 * pairs; k0 += PACK_ROWS)
        for (int64_t c = 0; c < columns; c += width)
            for (int64_t k = k0; k < 2 * pairs && k < k0 + PACK_ROWS; k += 2)
                for (int i = 0; i < width; i += VL) {
                    const float* from = src + k * src_row + c + i;
                    int64_t left = columns - c - i;
                    vf even = left > 0 && k < K ? vf_load_n(from, left) : (vf){0};
                    vf odd = left > 0 && k + 1 < K ? vf_load_n(from + src_row, left) : (vf){0};
                    vf v = vf_pairs_bf16(even, odd);
                    vf_store_n((float*)dst + c * pairs + k / 2 * width + i, v, k + 2 < 2 * pairs ? VL : width - i);
                }
}
#endif

#endif
