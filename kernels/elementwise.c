// Sums, copies and zeros.
#include "gpt2c.h"
#include "parallel.h"
#include "simd.h"

enum { BLOCK = 64 * VL };  // elements of one task

static inline int64_t block_end(int64_t first, int64_t R) { return first + BLOCK < R ? first + BLOCK : R; }

void FN(residual_forward)(float* out, const float* a, const float* b, int64_t R, float scale) {
    PARALLEL_FOR(3 * R)
    for (int64_t first = 0; first < R; first += BLOCK)
        for (int64_t i = first; i < block_end(first, R); i++) out[i] = a[i] + b[i] * scale;
}

void FN(residual_backward)(float* da, float* db, const float* dout, int64_t R, float scale, int64_t add_a, int64_t add_b) {
    PARALLEL_FOR(5 * R)
    for (int64_t first = 0; first < R; first += BLOCK)
        for (int64_t i = first; i < block_end(first, R); i++) {
            float g = dout[i];
            da[i] = add_a ? da[i] + g : g;
            db[i] = add_b ? db[i] + g * scale : g * scale;  // b may be a: then its `add` is 1 and it gets both
        }
}

void FN(last_position_forward)(float* out, const float* x, int64_t B, int64_t T, int64_t C) {
    for (int64_t b = 0; b < B; b++) memcpy(out + b * C, x + ((b + 1) * T - 1) * C, C * sizeof(float));
}

void FN(gather)(float* out, const float* x, const int32_t* slot, int64_t B, int64_t C) {
    for (int64_t b = 0; b < B; b++) memcpy(out + b * C, x + slot[b] * C, C * sizeof(float));
}

void FN(scatter)(float* x, const float* rows, const int32_t* slot, int64_t B, int64_t C) {
    for (int64_t b = 0; b < B; b++) memcpy(x + slot[b] * C, rows + b * C, C * sizeof(float));
}

void FN(copy)(float* out, const float* x, int64_t R) {
    PARALLEL_FOR(R)
    for (int64_t first = 0; first < R; first += BLOCK)
        memcpy(out + first, x + first, (block_end(first, R) - first) * sizeof(float));
}

void FN(zero)(float* x, int64_t R) {
    PARALLEL_FOR(R)
    for (int64_t first = 0; first < R; first += BLOCK)
        memset(x + first, 0, (block_end(first, R) - first) * sizeof(float));
}
