// Dropout of what is added to the residual stream.
//
// Whether an element is kept depends on (seed, counter, stream, index) alone: every GROUP elements get two 32-bit keys
// from a 64-bit mix of where they stand, and each element mixes its place in the group with both keys. So any number of
// threads and any vector width find the same mask, and the backward finds the forward's without its being stored.
#include "gpt2c.h"
#include "parallel.h"
#include "simd.h"

enum { GROUP = 1024 };

// A bijection of 64 bits in which every input bit changes every output bit with probability near 1/2.
static inline uint64_t mix64(uint64_t x) {
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}

static inline uint64_t stream_key(const int32_t* noise, int64_t stream) {
    uint64_t key = mix64((uint64_t)(uint32_t)noise[0] << 32 | (uint32_t)noise[1]);
    return mix64(key ^ mix64((uint64_t)stream + 0x9e3779b97f4a7c15u));
}

// All ones where element i .. i + VL - 1 of the group is kept: its 24 random bits are at least `dropped`.
static inline vi kept(uint64_t key, int i, int32_t dropped) {
#define LANE(i, s) (i)
    vu x = ((vu)LANES(LANE, 0) + (uint32_t)i) * 0x9e3779b9u + (uint32_t)key;
#undef LANE
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ (uint32_t)(key >> 32) ^ x >> 13) * 0xc2b2ae35u;
    x ^= x >> 16;
    return (vi)(x >> 8) >= dropped;
}

static inline int32_t dropped_below(float p) { return (int32_t)(p * 16777216.0f); }

void FN(dropout_residual_forward)(float* out, const float* a, const float* b, const int32_t* noise, int64_t R,
                                  int64_t stream, float p) {
    const uint64_t key = stream_key(noise, stream);
    const int32_t dropped = dropped_below(p);
    const float scale = 1.0f / (1.0f - p);
    PARALLEL_FOR(6 * R)
    for (int64_t first = 0; first < R; first += GROUP) {
        uint64_t group = mix64(key + first / GROUP);
        for (int64_t i = first; i < R && i < first + GROUP; i += VL) {
            vf added = vf_select(kept(group, i - first, dropped), vf_load_n(b + i, R - i) * scale, (vf){0});
            vf_store_n(out + i, vf_load_n(a + i, R - i) + added, R - i);
        }
    }
}

void FN(dropout_residual_backward)(float* da, float* db, const float* dout, const int32_t* noise, int64_t R,
                                   int64_t stream, float p, int64_t add_a, int64_t add_b) {
    const uint64_t key = stream_key(noise, stream);
    const int32_t dropped = dropped_below(p);
    const float scale = 1.0f / (1.0f - p);
    PARALLEL_FOR(8 * R)
    for (int64_t first = 0; first < R; first += GROUP) {
        uint64_t group = mix64(key + first / GROUP);
        for (int64_t i = first; i < R && i < first + GROUP; i += VL) {
            vf g = vf_load_n(dout + i, R - i);
            vf old_a = add_a ? vf_load_n(da + i, R - i) : (vf){0}, old_b = add_b ? vf_load_n(db + i, R - i) : (vf){0};
            vf_store_n(da + i, old_a + g, R - i);
            vf_store_n(db + i, old_b + vf_select(kept(group, i - first, dropped), g * scale, (vf){0}), R - i);
        }
    }
}
