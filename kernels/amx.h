// The register tile of AMX: one instruction multiplies 16 rows of 32 bf16 numbers by 16 columns of as many and adds the products
// to 16 x 16 float32 sums, at 16 times the rate of float32's multiply-add. Two tiles of rows and two of columns are held against
// each other, four tiles of sums.
//
// That makes it the fastest way to float32 as well. A float32 has 24 bits and is exactly the sum of three bf16 numbers of 8 bits,
// x = x0 + x1 + x2, each about 2^8 times smaller than the one before. Of the nine products in
//   x y = x0 y0 + x0 y1 + x1 y0 + x1 y1 + x0 y2 + x2 y0 + (x1 y2 + x2 y1 + x2 y2)
// those in brackets are below 2^-24 |x y|, what rounding to float32 loses anyway. Six are left; as a sum is rounded only once per
// product of tiles instead of once per step of k, the result is closer to the exact one than a chain of float32 multiply-adds is.
// Infinities, and numbers from 3.39e38 on, become NaN; numbers below 1e-33 lose their lower bits, as subnormals count as zero.
//
// Operands are packed in blocks of 32 rows (of a) or columns (of b) and 32 steps of k: for each part of its numbers, two tiles of
// 16 rows or columns. What is multiplied at once is a pair, steps j and j + 16 of a block, in 32 bits:
//   a: [i/32][k/32][part][i/16 % 2][16 rows][16 pairs]        b: [j/32][k/32][part][j/16 % 2][16 pairs][16 columns]
// filled up with zeros. Sums run over k in order, whatever the borders.
#ifndef GPT2C_AMX_H
#define GPT2C_AMX_H
#ifdef __AMX_BF16__

#include "tile.h"

enum {
    AMX_ROWS = 32,
    AMX_STEPS = 32,
    AMX_ROW_BYTES = 64,
    AMX_TILE = VL * VL,         // floats
    AMX_PART = 2 * AMX_TILE,
};

// The compiler does not know that these instructions read and write memory.
#define MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

// Before the first product of a thread; until then, and after amx_end, the system need not save its tiles.
static inline void amx_begin(void) {
    struct { uint8_t palette, start, zeros[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.row_bytes[i] = AMX_ROW_BYTES, shape.rows[i] = 16;
    MEMORY_BARRIER();
    _tile_loadconfig(&shape);
}

static inline void amx_end(void) { _tile_release(); }

// c (32 x 32, rows c_row apart) = a b over `blocks` of 32 steps
static inline __attribute__((always_inline)) void
amx_tile(float* c, ptrdiff_t c_row, int64_t blocks, const float* a, const float* b, int parts) {
#define LOAD_A(part)                                              \
    _tile_loadd(4, a + (part) * AMX_PART, AMX_ROW_BYTES);         \
    _tile_loadd(5, a + (part) * AMX_PART + AMX_TILE, AMX_ROW_BYTES)
#define LOAD_B(part)                                              \
    _tile_loadd(6, b + (part) * AMX_PART, AMX_ROW_BYTES);         \
    _tile_loadd(7, b + (part) * AMX_PART + AMX_TILE, AMX_ROW_BYTES)
#define MULTIPLY()            \
    _tile_dpbf16ps(0, 4, 6);  \
    _tile_dpbf16ps(1, 4, 7);  \
    _tile_dpbf16ps(2, 5, 6);  \
    _tile_dpbf16ps(3, 5, 7)
    MEMORY_BARRIER();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t n = 0; n < blocks; n++, a += parts * AMX_PART, b += parts * AMX_PART) {
        LOAD_A(0);
        if (parts == 3) {  // from small to large, and so that only one operand changes at a time
            LOAD_B(2); MULTIPLY();
            LOAD_B(1); MULTIPLY();
            LOAD_A(1); MULTIPLY();
            LOAD_B(0); MULTIPLY();
            LOAD_A(2); MULTIPLY();
            LOAD_A(0); MULTIPLY();
        } else {
            LOAD_B(0); MULTIPLY();
        }
    }
    _tile_stored(0, c, c_row * sizeof(float));
    _tile_stored(1, c + 16, c_row * sizeof(float));
    _tile_stored(2, c + 16 * c_row, c_row * sizeof(float));
    _tile_stored(3, c + 16 * c_row + 16, c_row * sizeof(float));
    MEMORY_BARRIER();
#undef LOAD_A
#undef LOAD_B
#undef MULTIPLY
}

// c (rows x columns, at most 32 x 32) = or += a b, plus the bias if there is one
static inline __attribute__((always_inline)) void
amx_product(float* c, ptrdiff_t c_row, int rows, int64_t columns, int64_t K, const float* a, const float* b, int add,
             const float* bias, int parts) {
    const int64_t blocks = (K + AMX_STEPS - 1) / AMX_STEPS;
    prefetch_tile(c, c_row, rows);
    if (rows == AMX_ROWS && columns >= TN && !add && !bias) {
        amx_tile(c, c_row, blocks, a, b, parts);
        return;
    }
    float sums[AMX_ROWS][TN];
    amx_tile(sums[0], TN, blocks, a, b, parts);
    for (int64_t j = 0; j < TN && j < columns; j += VL) {
        vf first = bias ? vf_load_n(bias + j, columns - j) : (vf){0};
        for (int i = 0; i < rows; i++) {
            vf sum = vf_load(&sums[i][j]) + first;
            vf_store_n(c + i * c_row + j, add ? vf_load_n(c + i * c_row + j, columns - j) + sum : sum, columns - j);
        }
    }
}

// p[0] + p[1] + p[2] = x, each the upper half of its lane
static inline __attribute__((always_inline)) void vf_split(vf p[3], vf x) {
    p[0] = (vf)(((vu)x + 0x8000) & 0xffff0000);
    x -= p[0];
    p[1] = (vf)(((vu)x + 0x8000) & 0xffff0000);
    p[2] = x - p[1];
}

// The lanes of `low` and `high` as pairs, once for each part
static inline __attribute__((always_inline)) void amx_pairs(vf* pairs, vf low, vf high, int parts) {
    if (parts == 1) {
        pairs[0] = vf_pairs_bf16(low, high);
        return;
    }
    vf l[3], h[3];
    vf_split(l, low);
    vf_split(h, high);
    for (int p = 0; p < 3; p++) pairs[p] = (vf)(((vu)h[p] & 0xffff0000) | ((vu)l[p] >> 16));
}

// 16 rows of 16 floats; what lies outside the matrix is zero
static inline __attribute__((always_inline)) void
load_square(vf r[VL], const float* src, ptrdiff_t src_row, int64_t rows, int64_t columns) {
    if (rows >= VL && columns >= VL) {
#pragma GCC unroll 16
        for (int j = 0; j < VL; j++) r[j] = vf_load(src + j * src_row);
    } else
        for (int j = 0; j < VL; j++) r[j] = j < rows && columns > 0 ? vf_load_n(src + j * src_row, columns) : (vf){0};
}

// One tile of each part. `low` and `high` are where its steps 0 to 15 and 16 to 31 begin; `turn`: rows of memory are not rows of
// the tile. bf16 numbers are turned as pairs, which are half as many; float32, before one becomes three.
static inline __attribute__((always_inline)) void
amx_pack_tile(float* dst, const float* low, const float* high, ptrdiff_t src_row, const int64_t rows[2], const int64_t columns[2],
              int turn, int parts) {
    vf l[VL], h[VL], pairs[3];
    load_square(l, low, src_row, rows[0], columns[0]);
    if (turn && parts == 3) vf_transpose(l);
    load_square(h, high, src_row, rows[1], columns[1]);
    if (turn && parts == 3) vf_transpose(h);
    if (turn && parts == 1) {
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++) l[i] = vf_pairs_bf16(l[i], h[i]);
        vf_transpose(l);
        for (int i = 0; i < VL; i++) vf_store(dst + i * VL, l[i]);
        return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) {
        amx_pairs(pairs, l[i], h[i], parts);
        for (int p = 0; p < parts; p++) vf_store(dst + p * AMX_PART + i * VL, pairs[p]);
    }
}

// dst = the blocks of an operand's `rows` rows (columns, of b) and K steps. `along`: its memory runs along k, else across. What
// lies below is asked for meanwhile: waiting for memory takes longer than all else here.
static inline __attribute__((always_inline)) void
amx_pack(float* dst, const float* src, ptrdiff_t src_row, int64_t rows, int64_t K, int along, int turn, int parts) {
    const int64_t blocks = (K + AMX_STEPS - 1) / AMX_STEPS, all = (rows + AMX_ROWS - 1) / AMX_ROWS * AMX_ROWS;
#define TILE_AT(i, k) (dst + ((i) / AMX_ROWS * blocks + (k) / AMX_STEPS) * parts * AMX_PART + (i) / VL % 2 * AMX_TILE)
    if (along) {
        for (int64_t i = 0; i < all; i += VL)
            for (int64_t k = 0; k < K; k += AMX_STEPS) {
                const float* from = src + i * src_row + k;
                for (int j = VL; j < 2 * VL; j++) {
                    __builtin_prefetch(from + j * src_row, 0, 2);
                    __builtin_prefetch(from + j * src_row + VL, 0, 2);
                }
                amx_pack_tile(TILE_AT(i, k), from, from + VL, src_row, (int64_t[]){rows - i, rows - i},
                              (int64_t[]){K - k, K - k - VL}, turn, parts);
            }
    } else {
        for (int64_t k = 0; k < K; k += AMX_STEPS)
            for (int64_t i = 0; i < all; i += VL) {
                const float* from = src + k * src_row + i;
                for (int j = AMX_STEPS; j < 2 * AMX_STEPS; j++) __builtin_prefetch(from + j * src_row, 0, 2);
                amx_pack_tile(TILE_AT(i, k), from, from + VL * src_row, src_row, (int64_t[]){K - k, K - k - VL},
                              (int64_t[]){rows - i, rows - i}, turn, parts);
            }
    }
#undef TILE_AT
}

#endif
#endif
