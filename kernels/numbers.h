// Arrays of single numbers that are stored in 32 or 16 bits.
#ifndef GPT2C_NUMBERS_H
#define GPT2C_NUMBERS_H

#include "calls.h"
#include "simd.h"

// n of them in float32, from number `at` on; 0 in the other lanes. `type`: AS_F32, AS_BF16 or AS_F16
static inline __attribute__((always_inline)) vf load_numbers(int type, const void* data, int64_t at, ptrdiff_t n) {
    if (type == AS_F32) return vf_load_n((const float*)data + at, n);
    uint16_t some[VL] = {0};
    const uint16_t* from = (const uint16_t*)data + at;
    if (n < VL) from = memcpy(some, from, n * sizeof *from);
    return type == AS_BF16 ? vf_from_bf16(from) : vf_from_f16(from);
}

#endif
