// A mixture of experts on a few rows, forward and backward side by side: for moe.c, which has all rows at once, and for
// gru.c, where the experts sit inside the recurrence. The formulas are in gpt2c.h.
//
// Rows are taken expert by expert, so that an expert's weights are read once for all rows that chose it, and an expert
// that nobody chose costs nothing. The parts of a row are added up in an order of its own (slot by slot, expert by expert).
#ifndef GPT2C_MOE_H
#define GPT2C_MOE_H

#include <math.h>

#include "gpt2c.h"
#include "rows.h"

enum { MOST_ROWS = 32 };  // that are worked on together; each thread has scratch for as many

typedef struct {
    const float *g, *u, *d, *router;
    int64_t N, S, M, H;
} Experts;

// What the forward keeps, for all R rows.
typedef struct {
    float *gates, *y, *probs, *weights;
    int32_t* chosen;
    int64_t R;
} Kept;

// The balance loss's part of the probabilities' gradients: of the rows whose position among their T is at least `first`.
typedef struct {
    const float* fraction;  // NULL: there is none
    float weight;
    int64_t T, first;
} Balance;

// One row's place in an expert's list: which of the rows, and in which slot it holds the expert.
typedef struct {
    int row, slot;
} Pick;

static inline float* gates_of(float* gates, const Experts* e, int64_t R, int64_t slot, int64_t r) {
    return gates + (slot * R + r) * 4 * e->H;
}

static inline vf silu(vf x) { return x * vf_logistic(x); }

// probs holds logits and becomes their softmax; expert 0 takes slot 0, the likeliest of the others the slots after it, the
// lowest number first among equals.
static void route(float* probs, float* weights, int32_t* chosen, int64_t M, int64_t S) {
    float most = -INFINITY, sum = 0, picked = 0;
    for (int64_t j = 0; j < M; j++) most = probs[j] > most ? probs[j] : most;
    for (int64_t j = 0; j < M; j++) sum += probs[j] = expf(probs[j] - most);
    for (int64_t j = 0; j < M; j++) probs[j] /= sum;
    chosen[0] = 0;
    for (int64_t s = 1; s < S; s++) {
        int64_t best = -1;
        for (int64_t j = 0; j < M; j++) {
            int taken = 0;
            for (int64_t before = 1; before < s; before++) taken |= chosen[before] == j + 1;
            if (!taken && (best < 0 || probs[j] > probs[best])) best = j;
        }
        chosen[s] = best + 1;
        picked += weights[s] = probs[best];
    }
    weights[0] = 1.0f / (1.0f + picked);
    for (int64_t s = 1; s < S; s++) weights[s] *= weights[0];
}

static int picks_of(Pick* picks, int64_t expert, const int64_t* at, int rows, const Experts* e, const Kept* kept) {
    int count = 0;
    for (int i = 0; i < rows; i++)
        for (int64_t s = 0; s < e->S; s++)
            if (kept->chosen[at[i] * e->S + s] == expert) picks[count++] = (Pick){i, (int)s};
    return count;
}

static size_t experts_scratch(int64_t H) { return MOST_ROWS * 3 * H; }

// out[i] += sum_s w_s y_s for the rows n[i], which are rows at[i] of everything kept
static void experts_forward(float* const* out, const float* const* n, const int64_t* at, int rows, const Experts* e,
                            const Kept* kept, float* scratch) {
    const int64_t H = e->H, S = e->S, R = kept->R;
    float* probs[MOST_ROWS];
    for (int i = 0; i < rows; i++) probs[i] = kept->probs + at[i] * e->M;
    if (e->M) rows_forward(probs, n, rows, e->router, e->M, H, 0);
    for (int i = 0; i < rows; i++) route(probs[i], kept->weights + at[i] * S, kept->chosen + at[i] * S, e->M, S);

    for (int64_t expert = 0; expert < e->N; expert++) {
        Pick picks[MOST_ROWS];
        int count = picks_of(picks, expert, at, rows, e, kept);
        const float *x[MOST_ROWS], *hidden[MOST_ROWS];
        float *g[MOST_ROWS], *u[MOST_ROWS], *y[MOST_ROWS];
        for (int i = 0; i < count; i++) {
            int64_t r = at[picks[i].row], s = picks[i].slot;
            x[i] = n[picks[i].row];
            g[i] = gates_of(kept->gates, e, R, s, r);
            u[i] = g[i] + 2 * H;
            y[i] = kept->y + (s * R + r) * H;
            hidden[i] = scratch + i * 2 * H;
        }
        rows_forward(g, x, count, e->g + expert * 2 * H * H, 2 * H, H, 0);
        rows_forward(u, x, count, e->u + expert * 2 * H * H, 2 * H, H, 0);
        for (int i = 0; i < count; i++)
            for (int64_t c = 0; c < 2 * H; c += VL) {
                int64_t left = 2 * H - c;
                vf_store_n(scratch + i * 2 * H + c, silu(vf_load_n(g[i] + c, left)) * vf_load_n(u[i] + c, left), left);
            }
        rows_forward(y, hidden, count, e->d + expert * 2 * H * H, H, 2 * H, 0);
    }
    for (int i = 0; i < rows; i++)
        for (int64_t s = 0; s < S; s++) {
            const float *y = kept->y + (s * R + at[i]) * H, weight = kept->weights[at[i] * S + s];
            for (int64_t c = 0; c < H; c += VL)
                vf_store_n(out[i] + c, vf_load_n(out[i] + c, H - c) + vf_load_n(y + c, H - c) * weight, H - c);
        }
}

// The gradient of a row's logits from that of its result and the balance loss.
static void route_backward(float* dlogits, const float* dout, int64_t r, const Experts* e, const Kept* kept, Balance b) {
    const int64_t H = e->H, S = e->S, M = e->M;
    const float *probs = kept->probs + r * M, *weights = kept->weights + r * S;
    const int32_t* chosen = kept->chosen + r * S;
    float along[S], mean = 0, sum = 0;
    for (int64_t s = 0; s < S; s++) {
        const float* y = kept->y + (s * kept->R + r) * H;
        vf dot = {0};
        for (int64_t c = 0; c < H; c += VL) dot += vf_load_n(dout + c, H - c) * vf_load_n(y + c, H - c);
        along[s] = vf_sum(dot);
        mean += weights[s] * along[s];
    }
    const int balanced = b.fraction && r % b.T >= b.first;
    const int64_t rows = balanced ? kept->R / b.T * (b.T - b.first) : 0;  // that the balance loss is over
    for (int64_t j = 0; j < M; j++) dlogits[j] = balanced ? b.weight * M * b.fraction[j] / rows : 0.0f;
    for (int64_t s = 1; s < S; s++) dlogits[chosen[s] - 1] += (along[s] - mean) * weights[0];
    for (int64_t j = 0; j < M; j++) sum += probs[j] * dlogits[j];
    for (int64_t j = 0; j < M; j++) dlogits[j] = probs[j] * (dlogits[j] - sum);
}

// dn[i], and for all R rows the gradients of gates and logits, from dout[i]
static void experts_backward(float* const* dn, float* dgates, float* dlogits, const float* const* dout, const int64_t* at,
                             int rows, const Experts* e, const Kept* kept, Balance balance, float* scratch) {
    const int64_t H = e->H, R = kept->R;
    for (int i = 0; i < rows; i++)
        if (e->M) route_backward(dlogits + at[i] * e->M, dout[i], at[i], e, kept, balance);
    const float* dl[MOST_ROWS];
    for (int i = 0; i < rows; i++) dl[i] = dlogits + at[i] * e->M;
    rows_backward(dn, dl, rows, e->router, e->M, H, 0);  // without a router, a sum of nothing

    for (int64_t expert = 0; expert < e->N; expert++) {
        Pick picks[MOST_ROWS];
        int count = picks_of(picks, expert, at, rows, e, kept);
        const float *dy[MOST_ROWS], *dg[MOST_ROWS], *du[MOST_ROWS];
        float *dhidden[MOST_ROWS], *dx[MOST_ROWS];
        for (int i = 0; i < count; i++) {
            int row = picks[i].row;
            float weight = kept->weights[at[row] * e->S + picks[i].slot], *scaled = scratch + i * 3 * H;
            for (int64_t c = 0; c < H; c += VL) vf_store_n(scaled + c, vf_load_n(dout[row] + c, H - c) * weight, H - c);
            dy[i] = scaled;
            dhidden[i] = scaled + H;
            dg[i] = gates_of(dgates, e, R, picks[i].slot, at[row]);
            du[i] = dg[i] + 2 * H;
            dx[i] = dn[row];
        }
        rows_backward(dhidden, dy, count, e->d + expert * 2 * H * H, H, 2 * H, 0);
        for (int i = 0; i < count; i++) {
            const float* g = gates_of(kept->gates, e, R, picks[i].slot, at[picks[i].row]);
            float* d = gates_of(dgates, e, R, picks[i].slot, at[picks[i].row]);
            for (int64_t c = 0; c < 2 * H; c += VL) {
                int64_t left = 2 * H - c;
                vf x = vf_load_n(g + c, left), s = vf_logistic(x), dh = vf_load_n(dhidden[i] + c, left);
                vf_store_n(d + c, dh * vf_load_n(g + 2 * H + c, left) * s * (x * (1.0f - s) + 1.0f), left);
                vf_store_n(d + 2 * H + c, dh * x * s, left);
            }
        }
        rows_backward(dx, dg, count, e->g + expert * 2 * H * H, 2 * H, H, 1);
        rows_backward(dx, du, count, e->u + expert * 2 * H * H, 2 * H, H, 1);
    }
}

#endif
