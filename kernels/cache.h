// Rows of a KV cache in the types that it may hold (CACHED in door.py): how they are written and read.
// A head is `n` numbers in a row, whole blocks of them: q8_0's are a scale, float16, and 32 numbers of 8 bits, d q.
#ifndef GPT2C_CACHE_H
#define GPT2C_CACHE_H

#include <math.h>

#include "numbers.h"

enum { Q8_NUMBERS = 32, Q8_BYTES = 34 };

static inline int64_t cached_bytes(int64_t type, int64_t n) {
    return type == AS_F32 ? 4 * n : type == AS_Q8_0 ? n / Q8_NUMBERS * Q8_BYTES : 2 * n;
}

// do_it(type) with the type as a constant
#define WITH_CACHED_TYPE(type, do_it)           \
    switch (type) {                             \
        case AS_BF16: do_it(AS_BF16); break;    \
        case AS_F16: do_it(AS_F16); break;      \
        case AS_Q8_0: do_it(AS_Q8_0); break;    \
        default: do_it(AS_F32);                 \
    }

// Numbers c .. c + VL - 1 of a head; 0 from n on
static inline __attribute__((always_inline)) vf cached(const uint8_t* head, int64_t c, int64_t n, const int type) {
    if (type != AS_Q8_0) return load_numbers(type, head, c, n - c);
    const uint8_t* block = head + c / Q8_NUMBERS * Q8_BYTES;
    return vf_from_i8(block + 2 + c % Q8_NUMBERS) * vf_from_f16(block)[0];
}

static inline void store_q8_0(uint8_t* block, const float* x) {
    vf most = {0};
    for (int c = 0; c < Q8_NUMBERS; c += VL) most = vf_max(most, vf_max(vf_load(x + c), -vf_load(x + c)));
    const float d = vf_hmax(most) / 127, inverse = d >= 0x1p-126f ? 1 / d : 0;
    const uint16_t scale = vf_to_f16(vf_splat(d))[0];
    memcpy(block, &scale, 2);
    for (int c = 0; c < Q8_NUMBERS; c++) block[2 + c] = (uint8_t)(int8_t)roundf(x[c] * inverse);
}

static inline void store_cached(uint8_t* head, const float* x, int64_t n, int64_t type) {
    if (type == AS_F32) memcpy(head, x, n * sizeof(float));
    else if (type == AS_Q8_0)
        for (int64_t c = 0; c < n; c += Q8_NUMBERS) store_q8_0(head + c / Q8_NUMBERS * Q8_BYTES, x + c);
    else
        for (int64_t c = 0; c < n; c += VL) {
            vf v = vf_load_n(x + c, n - c);
            half_vector half = type == AS_F16 ? vf_to_f16(v) : vf_to_bf16(v);
            memcpy(head + 2 * c, &half, 2 * (n - c < VL ? n - c : VL));
        }
}

// dst (rows, W) = heads of n numbers, head_row bytes apart; columns from n on are 0. Each is asked for some rows before its turn.
static inline __attribute__((always_inline)) void
copy_cached_as(float* dst, int64_t W, const uint8_t* head, ptrdiff_t head_row, int64_t rows, int64_t n, const int type) {
    enum { LINE = 64, AHEAD_OF_IT = 8 };
    for (int64_t i = 0; i < rows; i++, head += head_row) {
        for (int64_t at = 0; at < cached_bytes(type, n); at += LINE) __builtin_prefetch(head + AHEAD_OF_IT * head_row + at, 0, 2);
        for (int64_t c = 0; c < W; c += VL) vf_store(dst + i * W + c, c < n ? cached(head, c, n, type) : (vf){0});
    }
}

static inline void copy_cached(float* dst, int64_t W, const uint8_t* head, ptrdiff_t head_row, int64_t rows, int64_t n,
                               int64_t type) {
#define COPY(constant) copy_cached_as(dst, W, head, head_row, rows, n, constant)
    WITH_CACHED_TYPE(type, COPY)
#undef COPY
}

// Puts the keys and values of B T new positions, which the rows of qkv hold behind H heads of queries, into the caches (N, S, K,
// bytes): those of b at positions pos[b] .. of slot[b]. -> How many keys the queries see, those of one b counted once.
static inline int64_t store_positions(uint8_t* kcache, uint8_t* vcache, const float* qkv, const int32_t* pos, const int32_t* slot,
                                      int64_t B, int64_t T, int64_t H, int64_t D, int64_t S, int64_t K, int64_t type) {
    const int64_t bytes = cached_bytes(type, D);
    int64_t seen = 0;
    for (int64_t b = 0; b < B; b++) {
        for (int64_t t = 0; t < T; t++) {
            const float* k = qkv + ((b * T + t) * (H + 2 * K) + H) * D;
            int64_t at = (slot[b] * S + pos[b] + t) * K * bytes;
            for (int64_t h = 0; h < K; h++, k += D, at += bytes) {
                store_cached(kcache + at, k, D, type);
                store_cached(vcache + at, k + K * D, D, type);
            }
        }
        seen += pos[b] + T;
    }
    return seen;
}

#endif
