// Rotary positions: a query and a key that are turned by angles in proportion to their positions have a product that depends on
// how far apart they are, not on where. In place, because nothing needs what was there; the backward turns gradients back.
#include "gpt2c.h"
#include "parallel.h"
#include "simd.h"

void FN(rope)(float* x, const float* rotations, const int32_t* pos, int64_t B, int64_t T, int64_t G, int64_t D, int64_t E,
              int64_t N, int64_t back) {
    const float way = back ? -1 : 1;
    PARALLEL_FOR(3 * B * T * N * D)
    for (int64_t bt = 0; bt < B * T; bt++) {
        const float *cosines = rotations + (pos[bt / T] + bt % T) * 2 * E, *sines = cosines + E;
        for (int64_t h = 0; h < N; h++) {
            float *a = x + (bt * G + h) * D, *b = a + E;
            for (int64_t j = 0; j < E; j += VL) {
                vf c = vf_load_n(cosines + j, E - j), s = vf_load_n(sines + j, E - j) * way;
                vf aj = vf_load_n(a + j, E - j), bj = vf_load_n(b + j, E - j);
                vf_store_n(a + j, aj * c - bj * s, E - j);
                vf_store_n(b + j, aj * s + bj * c, E - j);
            }
        }
    }
}
