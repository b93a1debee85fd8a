// Token and, where there is a table for it, position embedding.
//
// Forward gathers rows. Backward scatters them back: two positions may hold the same token, so the work is divided by
// columns, and each column of the tables is summed over (b, t) in order, whoever does it.
#include "gpt2c.h"
#include "parallel.h"
#include "stored.h"

enum { COLUMNS = 4 * VL };  // columns of one task in the backward: whole cache lines

void FN(embedding_forward)(float* out, const int32_t* tokens, const void* wte, const float* wpe, const int32_t* pos,
                           int64_t B, int64_t T, int64_t C, int64_t wte_type) {
    const Matrix table = {wte, wte_type, C};
    PARALLEL_FOR(B * T * C)
    for (int64_t bt = 0; bt < B * T; bt++) {
        float* o = out + bt * C;
        decode(o, C, table, tokens[bt], tokens[bt] + 1, 0, C);
        if (!wpe) continue;
        const float* p = wpe + (pos[bt / T] + bt % T) * C;
        for (int64_t c = 0; c < C; c++) o[c] += p[c];
    }
}

void FN(embedding_backward)(float* dwte, float* dwpe, const float* dout, const int32_t* tokens, const int32_t* pos,
                            int64_t B, int64_t T, int64_t C) {
    PARALLEL_FOR(2 * B * T * C)
    for (int64_t first = 0; first < C; first += COLUMNS) {
        int64_t last = first + COLUMNS < C ? first + COLUMNS : C;
        for (int64_t bt = 0; bt < B * T; bt++) {
            const float* d = dout + bt * C;
            float* e = dwte + tokens[bt] * C;
            for (int64_t c = first; c < last; c++) e[c] += d[c];
            if (!dwpe) continue;
            float* p = dwpe + (pos[bt / T] + bt % T) * C;
            for (int64_t c = first; c < last; c++) p[c] += d[c];
        }
    }
}
