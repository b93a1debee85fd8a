// Matrices in storage types: how they lie in memory, and how their numbers become float32.
//
// f32, bf16 and f16 are stored row by row. Blocks of integers are interleaved when they are loaded (repack.c), GROUP rows at a
// time, so that a vector has a row in each lane and nothing is summed across lanes. Every type is then
//   x = scale * code + least
// with codes of 8, 6, 5 or 4 bits from 0 up, and scale and least of RUN neighbours in a row:
//
//            scale          least               RUN
//   q8_0     d              -128 d               32     (the int8 of the file plus 128)
//   q4_0     d                -8 d               32
//   q5_0     d               -16 d               32
//   q4_1     d                m                  32
//   q5_1     d                m                  32
//   q4_K     d scales[k]     -dmin minimums[k]   32     of the 8 parts of a block of 256
//   q5_K     d scales[k]     -dmin minimums[k]   32
//   q6_K     d scales[k]     -32 d scales[k]     16     of 16 parts
//
// In float32 that gives the very number that the formula of the file gives: all but the last addition is exact.
//
// A group is a sequence of planes, each filled up to whole cache lines (STORED in door.py says how large they are). All have, for
// one block of columns after the other, for the 16 rows:
//   d, m           float16, a row in each
//   scales, minimums   bytes: for each part of a block of 256, a row in each
//   high           the fifth bits, or fifth and sixth, of codes: 32 bits a row, byte b with those of columns 4 g + b, lowest g first
//   codes          for each step g of four columns, 32 bits a row, one column in each byte; where codes have four bits here, those
//                  of step g in the lower half and those of step g + 4 in the upper half of a byte
#ifndef GPT2C_STORED_H
#define GPT2C_STORED_H

#include "numbers.h"

typedef struct {
    const void* data;
    int64_t type;     // AS_F32 to AS_Q6_K (calls.h)
    int64_t columns;  // of the whole matrix
} Matrix;

enum {
    GROUP = 16,       // rows that are interleaved
    BLOCK = 32,       // columns that are decoded at a time
    STEPS = 8,        // of four columns each
    SUPER = 256,      // columns of a block of the types K
    PLANE_LINE = 64,  // bytes that a plane is filled up to
};

// Which columns have a scale of their own, and a least value that is no multiple of the scale
static inline __attribute__((always_inline)) int run_of(int type) { return type == AS_Q6_K ? 16 : BLOCK; }
static inline __attribute__((always_inline)) int has_least(int type) {
    return type == AS_Q4_1 || type == AS_Q5_1 || type == AS_Q4_K || type == AS_Q5_K;
}
// least / -scale of the others
static inline __attribute__((always_inline)) int zero_of(int type) {
    return type == AS_Q8_0 ? 128 : type == AS_Q4_0 ? 8 : type == AS_Q5_0 ? 16 : type == AS_Q6_K ? 32 : 0;
}

// Where the planes of a group are: from its beginning on, and how many bytes all of them take
typedef struct { int64_t d, m, scales, minimums, high, codes, bytes; } Planes;

static inline int64_t plane(int64_t* at, int64_t count, int64_t bytes) {
    const int64_t here = *at;
    *at += (count * bytes + PLANE_LINE - 1) / PLANE_LINE * PLANE_LINE;
    return here;
}

static inline __attribute__((always_inline)) Planes planes_of(int type, int64_t columns) {
    const int64_t blocks = columns / BLOCK, supers = columns / SUPER;
    Planes p = {0};
    p.d = plane(&p.bytes, type >= AS_Q4_K ? supers : blocks, 32);
    if (type == AS_Q4_1 || type == AS_Q5_1) p.m = plane(&p.bytes, blocks, 32);
    if (type == AS_Q4_K || type == AS_Q5_K) {
        p.m = plane(&p.bytes, supers, 32);
        p.scales = plane(&p.bytes, supers, 128);
        p.minimums = plane(&p.bytes, supers, 128);
    }
    if (type == AS_Q6_K) p.scales = plane(&p.bytes, supers, 256);
    if (type == AS_Q5_0 || type == AS_Q5_1 || type == AS_Q5_K) p.high = plane(&p.bytes, blocks, 64);
    if (type == AS_Q6_K) p.high = plane(&p.bytes, blocks, 128);
    p.codes = plane(&p.bytes, blocks, type == AS_Q8_0 ? 512 : 256);
    return p;
}

typedef struct { uint8_t *d, *m, *scales, *minimums, *high, *codes; } Group;

// The planes of group `number` of a matrix
static inline __attribute__((always_inline)) Group group_of(const void* data, int type, int64_t columns, int64_t number) {
    const Planes p = planes_of(type, columns);
    uint8_t* start = (uint8_t*)data + number * p.bytes;
    return (Group){start + p.d, start + p.m, start + p.scales, start + p.minimums, start + p.high, start + p.codes};
}

// Lane i: the codes of row `row` + i at step g of block t, column 4 g + b in byte b
static inline __attribute__((always_inline)) vu codes_of(int type, const Group* group, int64_t t, int g, int row) {
    if (type == AS_Q8_0) return vu_load(group->codes + t * 512 + g * 64 + row * 4);
    vu line = vu_load(group->codes + t * 256 + g % 4 * 64 + row * 4);
    vu codes = (g < 4 ? line : line >> 4) & 0x0f0f0f0f;
    if (type == AS_Q5_0 || type == AS_Q5_1 || type == AS_Q5_K)
        codes |= (vu_load(group->high + t * 64 + row * 4) >> g & 0x01010101) << 4;
    if (type == AS_Q6_K)
        codes |= (vu_load(group->high + t * 128 + g / 4 * 64 + row * 4) >> g % 4 * 2 & 0x03030303) << 4;
    return codes;
}

// Lane i: scale and, where it is no multiple of that, least of row `row` + i in run r of block t
static inline __attribute__((always_inline)) vf scale_of(int type, const Group* group, int64_t t, int r, int row) {
    if (type < AS_Q4_K) return vf_from_f16(group->d + t * 32 + row * 2);
    const int64_t super = t / (SUPER / BLOCK), part = t % (SUPER / BLOCK);
    vf d = vf_from_f16(group->d + super * 32 + row * 2);
    if (type == AS_Q6_K) return d * vf_from_i8(group->scales + super * 256 + (part * 2 + r) * 16 + row);
    return d * vf_from_u8(group->scales + super * 128 + part * 16 + row);
}

static inline __attribute__((always_inline)) vf least_of(int type, const Group* group, int64_t t, int row) {
    if (type < AS_Q4_K) return vf_from_f16(group->m + t * 32 + row * 2);
    const int64_t super = t / (SUPER / BLOCK), part = t % (SUPER / BLOCK);
    return vf_from_f16(group->m + super * 32 + row * 2) * -vf_from_u8(group->minimums + super * 128 + part * 16 + row);
}

// out[k][i] = column k of block t of row i of the group
static inline __attribute__((always_inline)) void decode_block(float out[BLOCK][GROUP], int type, const Group* group, int64_t t) {
    for (int row = 0; row < GROUP; row += VL)
        for (int g = 0; g < STEPS; g++) {
            vf scale = scale_of(type, group, t, g * 4 / run_of(type), row);
            vf least = has_least(type) ? least_of(type, group, t, row) : scale * (float)-zero_of(type);
            vu codes = codes_of(type, group, t, g, row);
            for (int b = 0; b < 4; b++)
                vf_store(out[4 * g + b] + row, vf_from_i32((vi)(codes >> 8 * b & 255)) * scale + least);
        }
}

// out[r - r0][c - c0] = rows r0 to r1, columns c0 to c1 of blocks; both c are multiples of BLOCK. Rows of out are `out_row` apart.
static inline __attribute__((always_inline)) void
decode_groups(float* out, ptrdiff_t out_row, int type, Matrix m, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    for (int64_t first = r0 / GROUP * GROUP; first < r1; first += GROUP) {
        const Group group = group_of(m.data, type, m.columns, first / GROUP);
        const int64_t low = first < r0 ? r0 - first : 0, high = r1 - first < GROUP ? r1 - first : GROUP;
        for (int64_t c = c0; c < c1; c += BLOCK) {
            float block[BLOCK][GROUP];
            decode_block(block, type, &group, c / BLOCK);
            for (int64_t row = low / VL * VL; row < high; row += VL)
                for (int k = 0; k < BLOCK; k += VL) {
                    vf r[VL];
#pragma GCC unroll 16
                    for (int j = 0; j < VL; j++) r[j] = vf_load(block[k + j] + row);
                    vf_transpose(r);
                    for (int j = 0; j < VL; j++)
                        if (row + j >= low && row + j < high)
                            vf_store(out + (first + row + j - r0) * out_row + c - c0 + k, r[j]);
                }
        }
    }
}

static inline __attribute__((always_inline)) void
decode_numbers(float* out, ptrdiff_t out_row, int type, Matrix m, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    for (int64_t r = r0; r < r1; r++)
        for (int64_t c = c0; c < c1; c += VL)
            vf_store_n(out + (r - r0) * out_row + c - c0, load_numbers(type, m.data, r * m.columns + c, c1 - c), c1 - c);
}

// Calls CALL(type) with the constant for the type of blocks, NUMBERS(type) for that of single numbers.
#define STORED_DISPATCH(type, NUMBERS, CALL)                                                                   \
    switch (type) {                                                                                            \
        case AS_F32: NUMBERS(AS_F32); break;                                                                         \
        case AS_BF16: NUMBERS(AS_BF16); break;                                                                       \
        case AS_F16: NUMBERS(AS_F16); break;                                                                         \
        case AS_Q8_0: CALL(AS_Q8_0); break;                                                                          \
        case AS_Q4_0: CALL(AS_Q4_0); break;                                                                          \
        case AS_Q4_1: CALL(AS_Q4_1); break;                                                                          \
        case AS_Q5_0: CALL(AS_Q5_0); break;                                                                          \
        case AS_Q5_1: CALL(AS_Q5_1); break;                                                                          \
        case AS_Q4_K: CALL(AS_Q4_K); break;                                                                          \
        case AS_Q5_K: CALL(AS_Q5_K); break;                                                                          \
        case AS_Q6_K: CALL(AS_Q6_K); break;                                                                          \
    }

// As decode_groups and decode_numbers, of any type
static __attribute__((noinline, unused)) void decode(float* out, ptrdiff_t out_row, Matrix m, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
#define NUMBERS(type) decode_numbers(out, out_row, type, m, r0, r1, c0, c1)
#define BLOCKS(type) decode_groups(out, out_row, type, m, r0, r1, c0, c1)
    STORED_DISPATCH(m.type, NUMBERS, BLOCKS)
#undef NUMBERS
#undef BLOCKS
}

#endif
