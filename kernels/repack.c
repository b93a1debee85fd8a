// Rows of a file's blocks, laid out as kernels take them: stored.h says how. Once, when a model is loaded.
//
// The blocks of a file (d, m, dmin: float16; q: codes; h: fifth bits):
//   q8_0  d, 32 x int8                     q5_0  d, h[4], q[16]           q4_K  d, dmin, s[12], q[128]
//   q4_0  d, q[16]                         q5_1  d, m, h[4], q[16]        q5_K  d, dmin, s[12], h[32], q[128]
//   q4_1  d, m, q[16]                                                     q6_K  lower[128], upper[64], scales[16], d
#include "gpt2c.h"
#include "parallel.h"
#include "stored.h"

// Codes of 32 columns, one in each byte, become the codes of block t of a row: four bits, and `more` to `high`.
static void put_codes(const Group* group, int64_t t, int row, const uint8_t codes[BLOCK], int more) {
    for (int k = 0; k < BLOCK / 2; k++)
        group->codes[t * 256 + k / 4 * 64 + row * 4 + k % 4] = (codes[k] & 15) | (codes[k + 16] & 15) << 4;
    const int steps = more ? 8 / more : 0;  // whose bits share a byte
    for (int k = 0; more && k < BLOCK; k++) {
        uint8_t* high = group->high + ((t * more + k / 4 / steps) * GROUP + row) * 4 + k % 4;
        *high |= (codes[k] >> 4) << k / 4 % steps * more;  // memory was 0
    }
}

static void put(uint8_t* plane, int64_t block, int row, const uint8_t* half) {
    memcpy(plane + block * 32 + row * 2, half, 2);
}

// Block t of a row, from the file's block of 32, whose bytes of codes are those of the row here
static inline __attribute__((always_inline)) void
repack_block(const Group* group, int64_t t, int row, const uint8_t* from, int type) {
    put(group->d, t, row, from);
    from += 2;
    if (type == AS_Q8_0) {
        for (int g = 0; g < STEPS; g++) {
            uint32_t codes;
            memcpy(&codes, from + 4 * g, 4);
            codes ^= 0x80808080;  // plus 128
            memcpy(group->codes + t * 512 + g * 64 + row * 4, &codes, 4);
        }
        return;
    }
    if (type == AS_Q4_1 || type == AS_Q5_1) {
        put(group->m, t, row, from);
        from += 2;
    }
    if (type == AS_Q5_0 || type == AS_Q5_1) {
        uint32_t fifth, high = 0;
        memcpy(&fifth, from, 4);
        for (int k = 0; k < BLOCK; k++) high |= (fifth >> k & 1) << (k % 4 * 8 + k / 4);
        memcpy(group->high + t * 64 + row * 4, &high, 4);
        from += 4;
    }
    for (int g = 0; g < STEPS / 2; g++) memcpy(group->codes + t * 256 + g * 64 + row * 4, from + 4 * g, 4);
}

// Blocks of 256: number `super` of a row
static void repack_super(const Group* group, int64_t super, int row, const uint8_t* from, int type) {
    put(group->d, super, row, from);
    put(group->m, super, row, from + 2);
    const uint8_t *s = from + 4, *h = from + 16, *q = from + (type == AS_Q5_K ? 48 : 16);
    for (int part = 0; part < 8; part++) {
        const int low = part < 4;
        uint8_t scale = low ? s[part] & 63 : (s[part + 4] & 15) | (s[part - 4] >> 6) << 4;
        uint8_t minimum = low ? s[part + 4] & 63 : s[part + 4] >> 4 | (s[part] >> 6) << 4;
        (group->scales)[super * 128 + part * 16 + row] = scale;
        (group->minimums)[super * 128 + part * 16 + row] = minimum;
        uint8_t codes[BLOCK];
        for (int k = 0; k < BLOCK; k++) {
            codes[k] = q[part / 2 * 32 + k] >> part % 2 * 4 & 15;
            if (type == AS_Q5_K) codes[k] |= (h[k] >> part & 1) << 4;
        }
        put_codes(group, super * 8 + part, row, codes, type == AS_Q5_K);
    }
}

static void repack_q6(const Group* group, int64_t super, int row, const uint8_t* from) {
    put(group->d, super, row, from + 208);
    for (int part = 0; part < 16; part++) (group->scales)[super * 256 + part * 16 + row] = from[192 + part];
    for (int part = 0; part < 8; part++) {
        const uint8_t *lower = from + part / 4 * 64 + part % 2 * 32, *upper = from + 128 + part / 4 * 32;
        uint8_t codes[BLOCK];
        for (int k = 0; k < BLOCK; k++)
            codes[k] = (lower[k] >> part / 2 % 2 * 4 & 15) | (upper[k] >> part % 4 * 2 & 3) << 4;
        put_codes(group, super * 8 + part, row, codes, 2);
    }
}

static inline __attribute__((always_inline)) void
repack_group(void* w, int64_t number, int type, const uint8_t* blocks, int64_t rows, int64_t C, int64_t Y) {
    const Group group = group_of(w, type, C, number);
    const int64_t step = type < AS_Q4_K ? BLOCK : SUPER, bytes = Y / (C / step);
    for (int64_t t = 0; t < C / step; t++)
        for (int64_t row = 0; row < rows; row++) {
            const uint8_t* from = blocks + row * Y + t * bytes;
            if (type < AS_Q4_K) repack_block(&group, t, row, from, type);
            else if (type < AS_Q6_K) repack_super(&group, t, row, from, type);
            else repack_q6(&group, t, row, from);
        }
}

void FN(repack)(void* w, const uint8_t* blocks, int64_t N, int64_t C, int64_t Y, int64_t w_type) {
    PARALLEL_FOR(N * Y)
    for (int64_t first = 0; first < N; first += GROUP) {
        const int64_t rows = N - first < GROUP ? N - first : GROUP;
        const uint8_t* from = blocks + first * Y;
#define NUMBERS(type) memcpy((uint8_t*)w + first * Y, from, rows * Y)
#define BLOCKS(type) repack_group(w, first / GROUP, type, from, rows, C, Y)
        STORED_DISPATCH(w_type, NUMBERS, BLOCKS)
#undef NUMBERS
#undef BLOCKS
    }
}
