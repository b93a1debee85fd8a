// The most multiply-adds this machine can do: what the share of peak in benchmarks and training lines is measured by.
//
// Sums that do not wait for each other (more of them than a multiply-add takes cycles times units), all in registers.
#include "gpt2c.h"
#include "parallel.h"
#include "simd.h"

enum { SUMS = 12 };

void FN(peak)(float* sink, float* flops, int64_t R, int64_t steps) {
    flops[0] = 2.0f * VL * SUMS * R * steps;
    PARALLEL_FOR(R * steps * SUMS)
    for (int64_t r = 0; r < R; r++) {
        vf sum[SUMS], x = vf_splat(1.0001f), y = vf_splat(0.0001f);
        for (int i = 0; i < SUMS; i++) sum[i] = vf_splat(0.1f * i);
        for (int64_t step = 0; step < steps; step++)
#pragma GCC unroll 12
            for (int i = 0; i < SUMS; i++) sum[i] = sum[i] * x + y;
        for (int i = 1; i < SUMS; i++) sum[0] += sum[i];
        sink[r] = vf_sum(sum[0]);
    }
}
