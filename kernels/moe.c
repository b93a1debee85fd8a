// A mixture of experts over all rows at once, the gradients of the experts' weights, and how evenly they are used.
//
// Rows are independent but for the weights' gradients: there the rows of each expert are gathered, in order, and become
// ordinary products.
#include "moe.h"

#include "parallel.h"

enum { GATHERED = 1024 };  // rows of an expert that are gathered at a time

size_t FN(moe_scratch)(int64_t H) { return experts_scratch(H); }

static Experts experts_of(const float* g, const float* u, const float* d, const float* router, int64_t N, int64_t S, int64_t M,
                          int64_t H) {
    return (Experts){g, u, d, router, N, S, M, H};
}

static inline int block_rows(int64_t first, int64_t R) { return R - first < MOST_ROWS ? (int)(R - first) : MOST_ROWS; }

void FN(moe_forward)(float* out, float* gates, float* y, float* probs, float* weights, int32_t* chosen, const float* n,
                     const float* expert_g, const float* expert_u, const float* expert_d, const float* router,
                     int64_t B, int64_t T, int64_t H, int64_t S, int64_t M, int64_t N, float* scratch) {
    const int64_t R = B * T;
    const Experts e = experts_of(expert_g, expert_u, expert_d, router, N, S, M, H);
    const Kept kept = {gates, y, probs, weights, chosen, R};
    PARALLEL_FOR(12 * R * S * H * H)
    for (int64_t first = 0; first < R; first += MOST_ROWS) {
        float* o[MOST_ROWS];
        const float* x[MOST_ROWS];
        int64_t at[MOST_ROWS];
        int rows = block_rows(first, R);
        for (int i = 0; i < rows; i++) {
            at[i] = first + i;
            o[i] = out + at[i] * H;
            x[i] = n + at[i] * H;
            memset(o[i], 0, H * sizeof(float));
        }
        experts_forward(o, x, at, rows, &e, &kept, scratch + thread_index() * experts_scratch(H));
    }
}

void FN(moe_backward)(float* dn, float* dgates, float* dlogits, const float* dout, const float* gates, const float* y,
                      const float* probs, const float* weights, const int32_t* chosen, const float* expert_g,
                      const float* expert_u, const float* expert_d, const float* router, const float* fraction,
                      int64_t B, int64_t T, int64_t H, int64_t S, int64_t M, int64_t N, float balance, int64_t first_new,
                      float* scratch) {
    const int64_t R = B * T;
    const Experts e = experts_of(expert_g, expert_u, expert_d, router, N, S, M, H);
    const Kept kept = {(float*)gates, (float*)y, (float*)probs, (float*)weights, (int32_t*)chosen, R};
    PARALLEL_FOR(12 * R * S * H * H)
    for (int64_t first = 0; first < R; first += MOST_ROWS) {
        float* dx[MOST_ROWS];
        const float* d[MOST_ROWS];
        int64_t at[MOST_ROWS];
        int rows = block_rows(first, R);
        for (int i = 0; i < rows; i++) {
            at[i] = first + i;
            dx[i] = dn + at[i] * H;
            d[i] = dout + at[i] * H;
        }
        experts_backward(dx, dgates, dlogits, d, at, rows, &e, &kept, (Balance){fraction, balance, T, first_new},
                         scratch + thread_index() * experts_scratch(H));
    }
}

size_t FN(moe_backward_w_scratch)(int64_t H) { return GATHERED * 8 * H + GATHERED + FN(matmul_scratch)(); }

void FN(moe_backward_w)(float* dexpert_g, float* dexpert_u, float* dexpert_d, const float* dout, const float* dgates,
                        const float* gates, const float* n, const float* weights, const int32_t* chosen,
                        int64_t B, int64_t T, int64_t H, int64_t S, int64_t N, int64_t add, float* scratch) {
    const int64_t R = B * T;
    float *x = scratch, *dg = x + GATHERED * H, *du = dg + GATHERED * 2 * H, *hidden = du + GATHERED * 2 * H;
    float *dy = hidden + GATHERED * 2 * H, *products = dy + GATHERED * H + GATHERED;
    int32_t* place = (int32_t*)(dy + GATHERED * H);  // of each gathered row among the (R, S) choices
    for (int64_t expert = 0; expert < N; expert++) {
        int64_t at = 0, stored = add;
        do {
            int64_t count = 0;
            for (; at < R * S && count < GATHERED; at++)
                if (chosen[at] == expert) place[count++] = (int32_t)at;
            PARALLEL_FOR(16 * count * H)
            for (int64_t i = 0; i < count; i++) {
                int64_t r = place[i] / S, s = place[i] % S;
                const float *g = gates + (s * R + r) * 4 * H, *d = dgates + (s * R + r) * 4 * H;
                memcpy(x + i * H, n + r * H, H * sizeof(float));
                memcpy(dg + i * 2 * H, d, 2 * H * sizeof(float));
                memcpy(du + i * 2 * H, d + 2 * H, 2 * H * sizeof(float));
                for (int64_t c = 0; c < 2 * H; c += VL) {
                    vf h = silu(vf_load_n(g + c, 2 * H - c)) * vf_load_n(g + 2 * H + c, 2 * H - c);
                    vf_store_n(hidden + i * 2 * H + c, h, 2 * H - c);
                }
                for (int64_t c = 0; c < H; c += VL)
                    vf_store_n(dy + i * H + c, vf_load_n(dout + r * H + c, H - c) * weights[place[i]], H - c);
            }
            if (count || !stored) {
                int64_t size = 2 * H * H;
                FN(matmul_backward_w)(dexpert_g + expert * size, NULL, dg, x, count, H, 2 * H, stored, products);
                FN(matmul_backward_w)(dexpert_u + expert * size, NULL, du, x, count, H, 2 * H, stored, products);
                FN(matmul_backward_w)(dexpert_d + expert * size, NULL, dy, hidden, count, 2 * H, H, stored, products);
            }
            stored = 1;
        } while (at < R * S);
    }
}

void FN(balance_forward)(float* balance, float* fraction, const float* probs, const int32_t* chosen, int64_t B, int64_t T,
                         int64_t M, int64_t S, int64_t first_new) {
    const int64_t R = B * (T - first_new);
    double sum = 0;
    for (int64_t j = 0; j < M; j++) {
        double mean = 0;
        int64_t count = 0;
        for (int64_t r = 0; r < B * T; r++) {
            if (r % T < first_new) continue;
            mean += probs[r * M + j];
            for (int64_t s = 1; s < S; s++) count += chosen[r * S + s] == j + 1;
        }
        fraction[j] = R ? (float)((double)count / R) : 0.0f;
        sum += R ? fraction[j] * mean / R : 0.0;
    }
    balance[0] = (float)(M * sum);
}
