// Causal self-attention: tiled (memory O(T) per head), materialised (to look at) and cached (to decode).
//
// Tiled, for one (b, h), plainly:
//   for i:  s_j = q_i k_j / sqrt(D) for j <= i;  lse_i = log sum_j exp(s_j);  out_i = sum_j exp(s_j - lse_i) v_j
//
// Here TN queries go at once, one per vector lane: their scores against the keys are a matrix of one row per key and
// TN columns. Softmax is then elementwise down the rows, without any sum across lanes, and the matrix is already in
// the form that the register tile (tile.h) wants as its right operand for the product with v. Nothing of size T x T
// is kept, only the TN columns at hand. The backward recomputes them from lse.
//
// Keys and values of a head are copied to contiguous rows once. Rows and columns that pad a matrix to whole tiles are
// zero, or belong to lanes without a query, whose results are dropped.
#include <math.h>

#include "attend.h"
#include "gpt2c.h"
#include "parallel.h"

// The scratch of one thread. W is the width of a head, padded; nothing needs to be kept between heads.
typedef struct {
    float *k, *v;            // (T+1, W): the head's keys and values, one row more to make the number even
    float *s, *ds;           // (T, TN): scores, then probabilities; and their gradients
    float *q_t, *dout_t;     // (W, TN): the queries at hand (scaled) and their output gradients, one per lane
    float *q, *dout;         // (TN, W): the same, one per row
    float *out_t;            // (W, TN)
    float *dk, *dv;          // (T, W)
    int64_t W;
} Scratch;

static Scratch divide_scratch(float* p, int64_t T, int64_t D) {
    int64_t W = round_up(D, VL);
    Scratch s = {.W = W};
    float** part[] = {&s.k, &s.v, &s.dk, &s.dv, &s.s, &s.ds, &s.q_t, &s.dout_t, &s.out_t, &s.q, &s.dout};
    int64_t size[] = {(T + 1) * W, (T + 1) * W, T * W, T * W, T * TN, T * TN, W * TN, W * TN, W * TN, TN * W, TN * W};
    for (int i = 0; i < 11; i++) *part[i] = p, p += size[i];
    return s;
}

size_t K(attention_scratch)(int64_t T, int64_t D) {
    int64_t W = round_up(D, VL);
    return (4 * T + 2) * W + 2 * T * TN + 5 * W * TN;
}

// Scores of the lanes' queries, which lie at positions `at` and on, against keys 0 .. n-1: -inf where the key comes after
// the query.
static void scores(Scratch s, int64_t D, int64_t at, int64_t n) {
    panel_product(s.s, TN, n, D, s.k, s.W, 1, s.q_t, TN, 0);
    for (int64_t j = at; j < n; j++)  // lane i has query at + i: hide key j from lanes below j - at
        for (int64_t i = 0; i < j - at; i++) s.s[j * TN + i] = -INFINITY;
}

// s = exp(s - max) down n rows, with the maximum and the sum of each lane.
static void softmax_lanes(float* s, int64_t n, float* max, float* sum) {
    vf max0 = vf_load(s), max1 = vf_load(s + VL), sum0 = {0}, sum1 = {0};
    for (int64_t j = 1; j < n; j++) {
        max0 = vf_max(max0, vf_load(s + j * TN));
        max1 = vf_max(max1, vf_load(s + j * TN + VL));
    }
    for (int64_t j = 0; j < n; j++) {
        vf p0 = vf_exp(vf_load(s + j * TN) - max0), p1 = vf_exp(vf_load(s + j * TN + VL) - max1);
        vf_store(s + j * TN, p0);
        vf_store(s + j * TN + VL, p1);
        sum0 += p0;
        sum1 += p1;
    }
    vf_store(max, max0);
    vf_store(max + VL, max1);
    vf_store(sum, sum0);
    vf_store(sum + VL, sum1);
}

// One head: T queries at positions start .. start + T - 1 against keys and values 0 .. start + T - 1. lse may be NULL.
static void attend(float* out, ptrdiff_t out_row, float* lse, const float* q, ptrdiff_t q_row, const float* k,
                   const float* v, ptrdiff_t kv_row, int64_t T, int64_t start, int64_t D, Scratch s) {
    copy_rows(s.k, s.W, k, kv_row, start + T, D, 1);
    copy_rows(s.v, s.W, v, kv_row, start + T, D, 1);
    memset(s.k + (start + T) * s.W, 0, s.W * sizeof(float));
    for (int64_t first = 0; first < T; first += TN) {
        int64_t lanes = T - first < TN ? T - first : TN, n = start + first + lanes;
        copy_rows(s.q, s.W, q + first * q_row, q_row, lanes, D, 1.0f / sqrtf(D));
        pack_transposed(s.q_t, TN, s.q, s.W, lanes, D);
        scores(s, D, start + first, n);

        float max[TN], sum[TN], inverse[TN];
        softmax_lanes(s.s, n, max, sum);
        for (int i = 0; i < TN; i++) inverse[i] = 1.0f / sum[i];
        for (int i = 0; lse && i < lanes; i++) lse[first + i] = max[i] + logf(sum[i]);
        panel_product(s.out_t, TN, D, n, s.v, 1, s.W, s.s, TN, 0);
        store_lanes(out + first * out_row, out_row, s.out_t, lanes, D, inverse, 0);
    }
}

void K(attention_forward)(float* out, float* lse, const float* qkv, int64_t B, int64_t T, int64_t C, int64_t H,
                          float* scratch) {
    int64_t D = C / H;
    PARALLEL_FOR(B * T * T * C / 8)
    for (int64_t bh = 0; bh < B * H; bh++) {
        const float* q = qkv + bh / H * T * 3 * C + bh % H * D;
        Scratch s = divide_scratch(scratch + thread_index() * K(attention_scratch)(T, D), T, D);
        attend(out + bh / H * T * C + bh % H * D, C, lse + bh * T, q, 3 * C, q + C, q + 2 * C, 3 * C, T, 0, D, s);
    }
}

void K(attention_backward)(float* dqkv, const float* dout, const float* qkv, const float* out, const float* lse,
                           int64_t B, int64_t T, int64_t C, int64_t H, int64_t add, float* scratch) {
    int64_t D = C / H;
    const float scale = 1.0f / sqrtf(D);
    PARALLEL_FOR(B * T * T * C / 4)
    for (int64_t bh = 0; bh < B * H; bh++) {
        int64_t head = bh / H * T * 3 * C + bh % H * D;
        const float *q = qkv + head, *o = out + bh / H * T * C + bh % H * D, *g = dout + bh / H * T * C + bh % H * D;
        float* dq = dqkv + head;
        Scratch s = divide_scratch(scratch + thread_index() * K(attention_scratch)(T, D), T, D);
        copy_rows(s.k, s.W, q + C, 3 * C, T, D, 1);
        copy_rows(s.v, s.W, q + 2 * C, 3 * C, T, D, 1);
        memset(s.k + T * s.W, 0, s.W * sizeof(float));
        memset(s.v + T * s.W, 0, s.W * sizeof(float));
        memset(s.dk, 0, T * s.W * sizeof(float));
        memset(s.dv, 0, T * s.W * sizeof(float));

        for (int64_t first = 0; first < T; first += TN) {
            int64_t lanes = T - first < TN ? T - first : TN, n = first + lanes;
            memset(s.q, 0, TN * s.W * sizeof(float));
            memset(s.dout, 0, TN * s.W * sizeof(float));
            copy_rows(s.q, s.W, q + first * 3 * C, 3 * C, lanes, D, scale);
            copy_rows(s.dout, s.W, g + first * C, C, lanes, D, 1);
            pack_transposed(s.q_t, TN, s.q, s.W, lanes, D);
            pack_transposed(s.dout_t, TN, s.dout, s.W, lanes, D);

            float lse_lane[TN], dot_lane[TN], scale_lane[TN];  // dot: dout_i out_i
            for (int i = 0; i < TN; i++) {
                lse_lane[i] = i < lanes ? lse[bh * T + first + i] : INFINITY;  // no query: probabilities 0
                scale_lane[i] = scale;
                vf dot = {0};
                for (int64_t c = 0; c < D && i < lanes; c += VL)
                    dot += vf_load_n(g + (first + i) * C + c, D - c) * vf_load_n(o + (first + i) * C + c, D - c);
                dot_lane[i] = vf_sum(dot);
            }

            scores(s, D, first, n);
            panel_product(s.ds, TN, n, D, s.v, s.W, 1, s.dout_t, TN, 0);
            for (int64_t j = 0; j < n; j++)
                for (int i = 0; i < TN; i += VL) {
                    vf p = vf_exp(vf_load(s.s + j * TN + i) - vf_load(lse_lane + i));
                    vf_store(s.s + j * TN + i, p);
                    vf_store(s.ds + j * TN + i, p * (vf_load(s.ds + j * TN + i) - vf_load(dot_lane + i)));
                }

            panel_product(s.out_t, TN, D, n, s.k, 1, s.W, s.ds, TN, 0);
            store_lanes(dq + first * 3 * C, 3 * C, s.out_t, lanes, D, scale_lane, add);
            rows_product(s.dv, s.W, n, TN, s.s, TN, 1, s.dout, s.W, s.W, 1);
            rows_product(s.dk, s.W, n, TN, s.ds, TN, 1, s.q, s.W, s.W, 1);
        }
        store_dk_dv(dq, 3 * C, s.dk, s.dv, T, C, D, s.W, add);
    }
}

// Materialised ----------------------------------------------------------------------------------------------------

static inline float dot(const float* a, const float* b, int64_t n) {
    vf sum = {0};
    for (int64_t c = 0; c < n; c += VL) sum += vf_load_n(a + c, n - c) * vf_load_n(b + c, n - c);
    return vf_sum(sum);
}

// y += a x
static inline void axpy(float* y, float a, const float* x, int64_t n) {
    for (int64_t c = 0; c < n; c++) y[c] += a * x[c];
}

// p = softmax of n scores
static void softmax(float* p, const float* s, int64_t n) {
    float max = s[0];
    for (int64_t j = 1; j < n; j++) max = s[j] > max ? s[j] : max;
    vf sum = {0};
    for (int64_t j = 0; j < n; j += VL) {
        vf e = vf_exp(vf_load_n(s + j, n - j) - max);
        vf_store_n(p + j, e, n - j);
        sum += n - j < VL ? vf_load_n(p + j, n - j) : e;
    }
    float inverse = 1.0f / vf_sum(sum);
    for (int64_t j = 0; j < n; j++) p[j] *= inverse;
}

void K(attention_materialised_forward)(float* out, float* preatt, float* att, const float* qkv,
                                       int64_t B, int64_t T, int64_t C, int64_t H) {
    int64_t D = C / H;
    const float scale = 1.0f / sqrtf(D);
    PARALLEL_FOR(B * T * T * C)
    for (int64_t bht = 0; bht < B * H * T; bht++) {
        int64_t t = bht % T, b = bht / T / H, offset = bht / T % H * D;
        const float* head = qkv + b * T * 3 * C + offset;
        float *s = preatt + bht * T, *p = att + bht * T, *o = out + (b * T + t) * C + offset;
        memset(s, 0, T * sizeof(float));
        memset(p, 0, T * sizeof(float));
        for (int64_t j = 0; j <= t; j++) s[j] = dot(head + t * 3 * C, head + j * 3 * C + C, D) * scale;
        softmax(p, s, t + 1);
        memset(o, 0, D * sizeof(float));
        for (int64_t j = 0; j <= t; j++) axpy(o, p[j], head + j * 3 * C + 2 * C, D);
    }
}

size_t K(attention_materialised_scratch)(int64_t T) { return T; }

void K(attention_materialised_backward)(float* dqkv, const float* dout, const float* qkv, const float* att,
                                        int64_t B, int64_t T, int64_t C, int64_t H, int64_t add, float* scratch) {
    int64_t D = C / H;
    const float scale = 1.0f / sqrtf(D);
    PARALLEL_FOR(2 * B * T * T * C)
    for (int64_t bh = 0; bh < B * H; bh++) {
        int64_t b = bh / H, offset = bh % H * D;
        const float* head = qkv + b * T * 3 * C + offset;
        float *dhead = dqkv + b * T * 3 * C + offset, *da = scratch + thread_index() * T;
        for (int64_t t = 0; !add && t < T; t++)
            for (int third = 0; third < 3; third++) memset(dhead + (t * 3 + third) * C, 0, D * sizeof(float));
        for (int64_t t = 0; t < T; t++) {
            const float *p = att + (bh * T + t) * T, *g = dout + (b * T + t) * C + offset;
            float mean = 0;  // sum_j p_j da_j
            for (int64_t j = 0; j <= t; j++) {
                da[j] = dot(g, head + j * 3 * C + 2 * C, D);
                axpy(dhead + j * 3 * C + 2 * C, p[j], g, D);
                mean += p[j] * da[j];
            }
            for (int64_t j = 0; j <= t; j++) {
                float ds = p[j] * (da[j] - mean) * scale;
                axpy(dhead + t * 3 * C, ds, head + j * 3 * C + C, D);
                axpy(dhead + j * 3 * C + C, ds, head + t * 3 * C, D);
            }
        }
    }
}

// Cached ----------------------------------------------------------------------------------------------------------

size_t K(attention_cached_scratch)(int64_t S, int64_t D) { return K(attention_scratch)(S, D) + 2 * S; }

// One query against n keys and values: a row of scores, then a sum of rows. p has room for 2 n. Keys and values come from
// memory, since all weights of the model went through the caches after they were last used, and a head's part of them lies in
// short pieces far apart, which hardware does not fetch ahead: the next keys and the values are asked for as scores are made.
static void attend_one(float* out, const float* q, const float* k, const float* v, ptrdiff_t kv_row, int64_t n, int64_t D,
                       float* p) {
    enum { LINE = 16, VECTORS = 4 };  // floats in a cache line; vectors of the sum that are made in one walk over the values
    float* s = p + n;
    for (int64_t j = 0; j < n; j += VL) {
        vf sum[VL] = {0};
        for (int i = 0; i < VL && j + i < n; i++) {
            const float *kj = k + (j + i) * kv_row, *vj = v + (j + i) * kv_row;
            for (int64_t c = 0; c < D; c += LINE) {
                if (j + i + VL < n) __builtin_prefetch(kj + VL * kv_row + c);
                __builtin_prefetch(vj + c);
            }
            for (int64_t c = 0; c < D; c += VL) sum[i] += vf_load_n(q + c, D - c) * vf_load_n(kj + c, D - c);
        }
        vf_store_n(s + j, vf_sums(sum) * (1.0f / sqrtf(D)), n - j);
    }
    softmax(p, s, n);
    for (int64_t first = 0; first < D; first += VECTORS * VL) {
        vf sum[VECTORS] = {0};
        for (int64_t j = 0; j < n; j++)
#pragma GCC unroll 4
            for (int i = 0; i < VECTORS; i++) {
                int64_t c = first + i * VL;
                if (c < D) sum[i] += p[j] * vf_load_n(v + j * kv_row + c, D - c);
            }
        for (int64_t i = 0, c = first; i < VECTORS && c < D; i++, c += VL) vf_store_n(out + c, sum[i], D - c);
    }
}

void K(attention_cached_forward)(float* out, float* kcache, float* vcache, const float* qkv, const int32_t* pos,
                                 int64_t B, int64_t T, int64_t C, int64_t S, int64_t H, float* scratch) {
    enum { FEW_QUERIES = 4 };  // below this, copying the head's keys and values would cost more than it saves
    int64_t D = C / H, start = pos[0];
    for (int64_t bt = 0; bt < B * T; bt++) {
        int64_t at = (bt / T * S + start + bt % T) * C;
        memcpy(kcache + at, qkv + bt * 3 * C + C, C * sizeof(float));
        memcpy(vcache + at, qkv + bt * 3 * C + 2 * C, C * sizeof(float));
    }
    PARALLEL_FOR(4 * B * T * (start + T) * C)
    for (int64_t bh = 0; bh < B * H; bh++) {
        int64_t b = bh / H, offset = bh % H * D;
        const float *q = qkv + b * T * 3 * C + offset, *k = kcache + b * S * C + offset, *v = vcache + b * S * C + offset;
        float *o = out + b * T * C + offset, *mine = scratch + thread_index() * K(attention_cached_scratch)(S, D);
        if (T >= FEW_QUERIES) attend(o, C, NULL, q, 3 * C, k, v, C, T, start, D, divide_scratch(mine, S, D));
        else
            for (int64_t t = 0; t < T; t++) attend_one(o + t * C, q + t * 3 * C, k, v, C, start + t + 1, D, mine);
    }
}
