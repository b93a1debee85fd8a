// What a block that is applied again and again needs: residuals with a learned scale per step, and adaptive depth.
//
// Adaptive depth. After step n each running token has a probability p_n = logistic(w x + b) of halting there. It takes
// N steps: the first n at which p_1 + ... + p_n reaches the threshold, or the last one. From then on it is frozen. What
// comes out is the mixture sum_{n<N} p_n x_n + (1 - sum_{n<N} p_n) x_N.
//
// `depth` tells the tokens apart: after step n it is n + 1 where a token runs on, else its N. So a token takes part in step
// n where depth >= n, and after the last step, in the backward, depth is N.
#include "gpt2c.h"
#include "parallel.h"
#include "simd.h"

static inline int takes_part(const float* depth, int64_t r, int64_t step) { return !depth || depth[r] >= step; }

void FN(scaled_residual_forward)(float* out, const float* x, const float* y, const float* scale, const float* depth,
                                 int64_t R, int64_t C, int64_t step) {
    PARALLEL_FOR(4 * R * C)
    for (int64_t r = 0; r < R; r++) {
        float s = takes_part(depth, r, step) ? scale[0] : 0.0f;
        for (int64_t c = r * C; c < (r + 1) * C; c++) out[c] = x[c] + s * y[c];
    }
}

size_t FN(scaled_residual_scratch)(int64_t R) { return num_chunks(R); }

void FN(scaled_residual_backward)(float* dx, float* dy, float* dscale, const float* dout, const float* y, const float* scale,
                                  const float* depth, int64_t R, int64_t C, int64_t step, int64_t add_x, int64_t add_y,
                                  float* scratch) {
    const int64_t chunks = num_chunks(R), rows = rows_per_chunk(R);
    PARALLEL_FOR(8 * R * C)
    for (int64_t k = 0; k < chunks; k++) {
        vf sum = {0};
        for (int64_t r = k * rows; r < (k + 1) * rows && r < R; r++) {
            int part = takes_part(depth, r, step);
            for (int64_t c = 0; c < C; c += VL) {
                int64_t i = r * C + c;
                vf g = vf_load_n(dout + i, C - c), taken = part ? g : (vf){0};
                vf_store_n(dx + i, add_x ? vf_load_n(dx + i, C - c) + g : g, C - c);
                vf_store_n(dy + i, add_y ? vf_load_n(dy + i, C - c) + taken * scale[0] : taken * scale[0], C - c);
                sum += taken * vf_load_n(y + i, C - c);
            }
        }
        scratch[k] = vf_sum(sum);
    }
    float total = 0;
    for (int64_t k = 0; k < chunks; k++) total += scratch[k];
    dscale[0] += total;
}

void FN(halting_forward)(float* prob, float* weight, float* total, float* depth, float* mixed, const float* x, const float* w,
                         const float* b, int64_t R, int64_t C, int64_t step, int64_t last, float threshold) {
    PARALLEL_FOR(4 * R * C)
    for (int64_t r = 0; r < R; r++) {
        vf dot = {0};
        for (int64_t c = 0; c < C; c += VL) dot += vf_load_n(x + r * C + c, C - c) * vf_load_n(w + c, C - c);
        float p = vf_logistic(vf_splat(vf_sum(dot) + b[0]))[0], before = step == 1 ? 0.0f : total[r], share = 0;
        if (step == 1 || depth[r] >= step) {
            int halts = step == last || before + p >= threshold;
            share = halts ? 1.0f - before : p;
            total[r] = halts ? before : before + p;
            depth[r] = halts ? step : step + 1;
        }
        prob[r] = p;
        weight[r] = share;
        for (int64_t c = 0; c < C; c += VL) {
            vf old = step == 1 ? (vf){0} : vf_load_n(mixed + r * C + c, C - c);
            vf_store_n(mixed + r * C + c, old + vf_load_n(x + r * C + c, C - c) * share, C - c);
        }
    }
}

static int64_t whole_vectors(int64_t C) { return (C + VL - 1) / VL * VL; }

// Per chunk of rows: dw, and db in a vector of its own.
size_t FN(halting_scratch)(int64_t R, int64_t C) { return num_chunks(R) * (whole_vectors(C) + VL); }

void FN(halting_backward)(float* dx, float* dw, float* db, float* dtotal, const float* dmixed, const float* x, const float* w,
                          const float* prob, const float* weight, const float* depth, int64_t R, int64_t C, int64_t step,
                          int64_t add, float* scratch) {
    const int64_t chunks = num_chunks(R), rows = rows_per_chunk(R), W = whole_vectors(C);
    PARALLEL_FOR(8 * R * C)
    for (int64_t k = 0; k < chunks; k++) {
        float *sum_w = scratch + k * (W + VL), *sum_b = sum_w + W;
        memset(sum_w, 0, (W + VL) * sizeof(float));
        for (int64_t r = k * rows; r < (k + 1) * rows && r < R; r++) {
            const float *g = dmixed + r * C, *xr = x + r * C;
            vf dot = {0};
            for (int64_t c = 0; c < C; c += VL) dot += vf_load_n(g + c, C - c) * vf_load_n(xr + c, C - c);
            float dweight = vf_sum(dot), dlogit = 0;
            if (depth[r] > step) dlogit = (dtotal[r] + dweight) * prob[r] * (1.0f - prob[r]);
            else if (depth[r] == step) dtotal[r] -= dweight;  // its weight is 1 - total
            for (int64_t c = 0; c < C; c += VL) {
                vf d = vf_load_n(g + c, C - c) * weight[r] + vf_load_n(w + c, C - c) * dlogit;
                vf_store_n(dx + r * C + c, add ? vf_load_n(dx + r * C + c, C - c) + d : d, C - c);
                vf_store(sum_w + c, vf_load(sum_w + c) + vf_load_n(xr + c, C - c) * dlogit);
            }
            sum_b[0] += dlogit;
        }
    }
    for (int64_t k = 0; k < chunks; k++) {
        const float* sum_w = scratch + k * (W + VL);
        for (int64_t c = 0; c < C; c += VL) vf_store_n(dw + c, vf_load_n(dw + c, C - c) + vf_load(sum_w + c), C - c);
        db[0] += sum_w[W];
    }
}

void FN(ponder_forward)(float* ponder, float* mean_depth, float* count, const float* depth, const float* total,
                        const int32_t* targets, int64_t R) {
    double steps = 0, remainders = 0;
    int64_t counted = 0;
    for (int64_t r = 0; r < R; r++) {
        if (targets[r] < 0) continue;
        counted++;
        steps += depth[r];
        remainders += 1.0 - total[r];
    }
    count[0] = counted;
    ponder[0] = counted ? (steps + remainders) / counted : 0.0f;
    mean_depth[0] = counted ? steps / counted : 0.0f;
}

void FN(ponder_backward)(float* dtotal, const int32_t* targets, const float* count, int64_t R, float weight) {
    for (int64_t r = 0; r < R; r++) dtotal[r] = targets[r] < 0 ? 0.0f : -weight / count[0];
}
