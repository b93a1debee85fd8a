// The matrix products inside a kernel, of small operands that lie in the caches: c (M x N) = or += a (M x K) b (K x N).
//
// A `Side` is an operand as its products want it: packed for a precision (precision.h), or, for multiply-adds without one
// (`p` is NULL), as it lies in memory. Packing pays where a side is used often, and with AMX.
#ifndef GPT2C_SIDE_H
#define GPT2C_SIDE_H

#include "attend.h"
#include "precision.h"

typedef struct {
    const float* data;
    ptrdiff_t row, k;  // in memory: from one row (column, of b), and from one step of k, to the next
    int64_t steps;     // packed: of k, filled up
} Side;

// Room for n packed rows or columns over K steps, and for TN columns that are turned, packed or not.
#ifdef __AMX_BF16__
static inline int64_t side_room(int64_t n, int64_t K) { return round_up(n, TN) * round_up(K, TN) * PACKED / KC; }
#else
static inline int64_t side_room(int64_t n, int64_t K) { return 0 * n * K; }
#endif
static inline int64_t turned_room(int64_t K) { return TN * round_up(K, TN) * PACKED / KC; }

// Floats that `rows` packed rows (columns, of b) take over so many steps.
static inline int64_t packed_floats(const Precision* p, int64_t rows, int64_t steps) {
    return rows * steps * p->step_bytes / (int64_t)sizeof(float);
}

// The side of a. Its rows lie `stride` apart in memory, or, if it is `turned`, its steps do.
static Side left_side(const Precision* p, float* room, const float* a, ptrdiff_t stride, int turned, int64_t M, int64_t K) {
    if (!p) return turned ? (Side){a, 1, stride} : (Side){a, stride, 1};
    p->pack_a(room, (Operand){a, stride, !turned}, 0, M, 0, K);
    return (Side){.data = room, .steps = round_up(K, p->steps)};
}

// The side of b. Its steps lie `stride` apart in memory, or, if it is `turned`, its columns do; then there are TN at most.
static Side right_side(const Precision* p, float* room, const float* b, ptrdiff_t stride, int turned, int64_t K, int64_t N) {
    if (p) p->pack_b(room, (Operand){b, stride, turned}, 0, N, 0, K);
    else if (!turned) return (Side){b, 1, stride};
    else pack_transposed(room, TN, b, stride, N, K);
    return (Side){room, 1, TN, p ? round_up(K, p->steps) : 0};
}

// c = or += the rows of a from i0 and its steps from k0 on times b. Packed: i0 is a multiple of TILE_ROWS, k0 and N are of TN. In
// memory: N is a multiple of VL, and a has readable rows up to an even number.
static void multiply(const Precision* p, float* c, ptrdiff_t c_row, int64_t M, int64_t N, int64_t K, Side a, int64_t i0,
                     int64_t k0, Side b, int add) {
    if (!p) {
        rows_product(c, c_row, M, K, a.data + i0 * a.row + k0 * a.k, a.row, a.k, b.data, b.k, N, add);
        return;
    }
    const float* from = a.data + packed_floats(p, i0, a.steps) + packed_floats(p, TILE_ROWS, k0);
    for (int64_t i = 0; i < M; i += TILE_ROWS)
        for (int64_t j = 0; j < N; j += TN)
            p->tile(c + i * c_row + j, c_row, M - i < TILE_ROWS ? M - i : TILE_ROWS, N - j, K, from + packed_floats(p, i, a.steps),
                    b.data + packed_floats(p, j, b.steps), add, NULL);
}

#endif
