// Softmax and cross-entropy in one: the probabilities are never stored.
//
// Forward keeps lse = log sum exp(logits) per row; p = exp(logits - lse) comes back in the backward. Both look at the
// first V columns only: the rest pads the vocabulary to a round size.
#include <math.h>

#include "gpt2c.h"
#include "parallel.h"
#include "simd.h"

void FN(crossentropy_forward)(float* losses, float* lse, const float* logits, const int32_t* targets,
                              int64_t R, int64_t P, int64_t V) {
    PARALLEL_FOR(8 * R * V)
    for (int64_t r = 0; r < R; r++) {
        const float* row = logits + r * P;
        const float lowest = -INFINITY;
        vf largest = vf_splat(lowest);
        int64_t v = 0;
        for (; v + VL <= V; v += VL) largest = vf_max(largest, vf_load(row + v));
        float max = vf_hmax(largest);
        for (; v < V; v++) max = row[v] > max ? row[v] : max;

        vf sum = {0};
        for (v = 0; v + VL <= V; v += VL) sum += vf_exp(vf_load(row + v) - max);
        if (v < V) {
            vf tail = vf_splat(lowest);
            memcpy(&tail, row + v, (V - v) * sizeof(float));
            sum += vf_exp(tail - max);
        }
        lse[r] = max + logf(vf_sum(sum));
        losses[r] = targets[r] < 0 ? 0.0f : lse[r] - row[targets[r]];
    }
}

void FN(crossentropy_backward)(float* dlogits, const float* logits, const float* lse, const int32_t* targets,
                               const float* count, const float* weights, int64_t R, int64_t P, int64_t V, float scale) {
    PARALLEL_FOR(8 * R * V)
    for (int64_t r = 0; r < R; r++) {
        float* d = dlogits + r * P;
        int64_t v = targets[r] < 0 ? 0 : V;  // columns that count in this row
        memset(d + v, 0, (P - v) * sizeof(float));
        if (v == 0) continue;
        const float* row = logits + r * P;
        float factor = (weights ? weights[r] : 1.0f) * scale / count[0];
        for (v = 0; v < V; v += VL)
            vf_store_n(d + v, vf_exp(vf_load_n(row + v, V - v) - lse[r]) * factor, V - v);
        d[targets[r]] -= factor;
    }
}

// These two are apart from the above because the gradient needs the count before the last row has been seen: rows may
// go through the two above in pieces.
void FN(count_targets)(float* count, const int32_t* targets, int64_t R) {
    int64_t counted = 0;
    for (int64_t r = 0; r < R; r++) counted += targets[r] >= 0;
    count[0] = counted;
}

void FN(mean_loss)(float* loss, const float* losses, const float* count, int64_t R) {
    double total = 0;
    for (int64_t r = 0; r < R; r++) total += losses[r];
    loss[0] = count[0] ? total / count[0] : 0.0f;
}
