// The two precisions of products, float32 and bf16: how operands are packed, and the tile that multiplies them. Which way
// is fastest depends on the instruction set:
//
//              float32                                     bf16
//   AMX        three bf16 numbers for each float (amx.h)   rounded while packing (amx.h)
//   AVX512BF16 multiply-adds (tile.h)                      rounded while packing, multiplied in pairs (tile.h)
//   others     multiply-adds (tile.h)                      rounded after packing, multiplied as float32
#ifndef GPT2C_PRECISION_H
#define GPT2C_PRECISION_H

#include "amx.h"
#include "tile.h"

// Whether the products of this run are bf16's (program.c). As gpt2c_num_threads, only the thread that called the kernel has it.
extern _Thread_local int gpt2c_matmul_bf16;

typedef struct {
    const float* data;
    ptrdiff_t stride;  // between its rows in memory
    int transposed;    // 0: element (k, i) of the panel is data[k * stride + i]; 1: data[i * stride + k]
    int64_t type;      // what data really holds (stored.h): AS_F32, or a matrix that is decoded before it is packed
} Operand;

enum {
    KC = 384,  // steps of k that are packed at a time, as float32
#ifdef __AMX_BF16__
    TILE_ROWS = AMX_ROWS,
    PACKED = KC * 3 / 2,  // floats that a row of a or a column of b takes then
    NC = 5 * TN,          // columns of b that are packed at a time: 360 KB of 2 MB, which source, rows of a and c share
#else
    TILE_ROWS = TM,
    PACKED = KC,
    NC = 10 * TN,
#endif
};

typedef struct {
    int span;        // steps of k that are packed at a time, in PACKED floats or less
    int step_bytes;  // of one step of k in a packed row of a or column of b
    int steps;       // which are filled up with zeros to a multiple of so many steps
    // dst = panels of rows (columns, of b) i0 to i1 over K steps of k from k0 on
    void (*pack_a)(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K);
    void (*pack_b)(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K);
    // c (rows x columns) += a b, or = bias + a b; bias may be NULL
    void (*tile)(float* c, ptrdiff_t c_row, int rows, int64_t columns, int64_t K, const float* a, const float* b, int add,
                 const float* bias);
    void (*begin)(void), (*end)(void);  // before and after a thread's tiles
} Precision;

#ifdef __AMX_BF16__

static inline __attribute__((always_inline)) void
amx_pack_operand(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K, int turn, int parts) {
    if (m.transposed) amx_pack(dst, m.data + i0 * m.stride + k0, m.stride, i1 - i0, K, 1, turn, parts);
    else amx_pack(dst, m.data + k0 * m.stride + i0, m.stride, i1 - i0, K, 0, !turn, parts);
}

#define AMX_PRECISION(NAME, parts, span)                                                                                       \
    static void pack_a_##NAME(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {                          \
        amx_pack_operand(dst, m, i0, i1, k0, K, 0, parts);                                                                     \
    }                                                                                                                          \
    static void pack_b_##NAME(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {                          \
        amx_pack_operand(dst, m, i0, i1, k0, K, 1, parts);                                                                     \
    }                                                                                                                          \
    static void tile_##NAME(float* c, ptrdiff_t c_row, int rows, int64_t columns, int64_t K, const float* a, const float* b,   \
                            int add, const float* bias) {                                                                      \
        amx_product(c, c_row, rows, columns, K, a, b, add, bias, parts);                                                       \
    }                                                                                                                          \
    static const Precision NAME = {span, 2 * parts, AMX_STEPS, pack_a_##NAME, pack_b_##NAME, tile_##NAME, amx_begin, amx_end};
AMX_PRECISION(FLOAT32, 3, KC)
AMX_PRECISION(BF16, 1, 2 * KC)
#undef AMX_PRECISION

#else

static void pack(float* dst, int width, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {
    if (!m.transposed) pack_straight(dst, width, m.data + k0 * m.stride + i0, m.stride, i1 - i0, K);
    else
        for (int64_t i = i0; i < i1; i += width)
            pack_transposed(dst + (i - i0) * K, width, m.data + i * m.stride + k0, m.stride, i1 - i < width ? i1 - i : width, K);
}

static void pack_a(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) { pack(dst, TM, m, i0, i1, k0, K); }
static void pack_b(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) { pack(dst, TN, m, i0, i1, k0, K); }

// c (rows x columns) = or += the tile; `bias` is added where the tile is the first of its sum
static inline __attribute__((always_inline)) void
tile_out(float* c, ptrdiff_t c_row, vf sum[][2], int rows, int real_rows, int64_t columns, int add, const float* bias) {
    vf b0 = {0}, b1 = {0};
    if (bias) {
        b0 = vf_load_n(bias, columns);
        if (columns > VL) b1 = vf_load_n(bias + VL, columns - VL);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        if (i == real_rows) break;
        float* ci = c + i * c_row;
        vf s0 = sum[i][0] + b0, s1 = sum[i][1] + b1;
        if (columns >= TN) {
            vf_store(ci, add ? vf_load(ci) + s0 : s0);
            vf_store(ci + VL, add ? vf_load(ci + VL) + s1 : s1);
        } else {
            vf_store_n(ci, add ? vf_load_n(ci, columns) + s0 : s0, columns);
            if (columns > VL)
                vf_store_n(ci + VL, add ? vf_load_n(ci + VL, columns - VL) + s1 : s1, columns - VL);
        }
    }
}

static void tile(float* c, ptrdiff_t c_row, int rows, int64_t columns, int64_t K, const float* a, const float* b,
                 int add, const float* bias) {
#define TILE_CALL(n)                                                  \
    {                                                                 \
        vf sum[n][2];                                                 \
        tile_sums(sum, n, K, a, 1, TM, b, TN);                        \
        tile_out(c, c_row, sum, n, rows, columns, add, bias);         \
    }
    prefetch_tile(c, c_row, rows);
    TILE_DISPATCH(rows, TILE_CALL)
#undef TILE_CALL
}

static void nothing(void) {}
static const Precision FLOAT32 = {KC, 4, 1, pack_a, pack_b, tile, nothing, nothing};

#ifdef __AVX512BF16__
static void pack_bf16(float* dst, int width, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K, int64_t pairs) {
    int32_t* panel = (int32_t*)dst;
    if (!m.transposed) pack_straight_bf16(panel, width, m.data + k0 * m.stride + i0, m.stride, i1 - i0, K, pairs);
    else
        for (int64_t i = i0; i < i1; i += width)
            pack_transposed_bf16(panel + (i - i0) * pairs, width, m.data + i * m.stride + k0, m.stride,
                                 i1 - i < width ? i1 - i : width, K, pairs);
}

static void pack_a_bf16(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {
    pack_bf16(dst, TM, m, i0, i1, k0, K, (K + 1) / 2);
}

static void pack_b_bf16(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {
    pack_bf16(dst, TN, m, i0, i1, k0, K, (K + 1) / 2);
}

static void tile_bf16(float* c, ptrdiff_t c_row, int rows, int64_t columns, int64_t K, const float* a, const float* b,
                      int add, const float* bias) {
#define TILE_CALL(n)                                                                      \
    {                                                                                     \
        vf sum[n][2];                                                                     \
        tile_sums_bf16(sum, n, (K + 1) / 2, (const int32_t*)a, (const int32_t*)b);        \
        tile_out(c, c_row, sum, n, rows, columns, add, bias);                             \
    }
    prefetch_tile(c, c_row, rows);
    TILE_DISPATCH(rows, TILE_CALL)
#undef TILE_CALL
}

static const Precision BF16 = {2 * KC, 2, 2, pack_a_bf16, pack_b_bf16, tile_bf16, nothing, nothing};

#else
static void round_panels(float* panels, int width, int64_t columns, int64_t K) {
    for (int64_t n = 0; n < K * ((columns + width - 1) / width * width); n += VL)
        vf_store(panels + n, vf_round_bf16(vf_load(panels + n)));
}

static void pack_a_bf16(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {
    pack_a(dst, m, i0, i1, k0, K);
    round_panels(dst, TM, i1 - i0, K);
}

static void pack_b_bf16(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {
    pack_b(dst, m, i0, i1, k0, K);
    round_panels(dst, TN, i1 - i0, K);
}

static const Precision BF16 = {KC, 4, 1, pack_a_bf16, pack_b_bf16, tile, nothing, nothing};
#endif
#endif

#endif
