// Causal self-attention: tiled (memory O(T) per head) and cached (to generate). H / K heads of queries in a row share a head of keys
// and values, whose gradients are then sums over these.
//
// Tiled, for one (b, h), plainly:
//   for i:  s_j = q_i k_j / sqrt(D) for j <= i;  lse_i = log sum_j exp(s_j);  out_i = sum_j exp(s_j - lse_i) v_j
//
// Here TN queries go at once, one per vector lane: their scores against the keys are a matrix of one row per key and
// TN columns. Softmax is then elementwise down the rows, without any sum across lanes, and the matrix is already in
// the form that the register tile (tile.h) wants as its right operand for the product with v. Nothing of size T x T
// is kept, only the TN columns at hand.
//
// The backward computes them again from lse, with the roles exchanged: TN keys go at once, one per lane, against the queries
// that see them. Of the five products with its matrices of probabilities and their gradients two then are sums over all
// queries, dv and dk, and only dq is added to TN keys at a time.
//
// Either way the long side of such a matrix goes in pieces of BLOCK rows, which the nearest caches hold from one product to the
// next. Rows and columns that pad a matrix to whole tiles are zero, or belong to lanes without a query or key, whose results
// are dropped.
#include <math.h>

#include "cache.h"
#include "gpt2c.h"
#include "parallel.h"
#include "side.h"

enum { BLOCK = 256 };

// The forward's scratch of one thread: nothing needs to be kept between heads. W is the width of a head, padded.
typedef struct {
    float *k, *v;                               // (T+1, W): one row more than is used, to make the number even
    float *q;                                   // (TN, W): the queries at hand, scaled
    float *s;                                   // (T, TN): scores, then probabilities
    float *out_t;                               // (W, TN)
    float *keys, *values_t, *queries_t, *probs;  // room for sides
} Forward;

static int64_t forward_scratch(Forward* f, float* start, int64_t T, int64_t D) {
    const int64_t W = round_up(D, TN);
    const Part part[] = {{&f->k, (T + 1) * W}, {&f->v, (T + 1) * W}, {&f->q, TN * W}, {&f->s, T * TN}, {&f->out_t, W * TN},
                         {&f->keys, side_room(T, W)}, {&f->values_t, side_room(W, T)}, {&f->queries_t, turned_room(W)},
                         {&f->probs, side_room(TN, BLOCK)}};
    return lay_out(start, part, 9);
}

typedef struct {
    float *k, *v;                               // (T+1, W)
    float *q, *dout;                            // (BLOCK+1, W): the queries at hand, scaled, and their outputs' gradients
    float *s, *ds;                              // (BLOCK, TN): scores, then probabilities; and their gradients
    float *dq;                                  // (BLOCK, W)
    float *dk_t, *dv_t;                         // (T/TN, W, TN)
    float *queries, *queries_t, *douts, *douts_t, *keys, *keys_t, *values_t, *probs;  // room for sides
} Backward;

// Floats of the gradients of a head's keys, or values, as the backward makes them: (T/TN, W, TN).
static inline int64_t turned_floats(int64_t T, int64_t D) { return round_up(T, TN) * round_up(D, TN); }

static int64_t backward_scratch(Backward* b, float* start, int64_t T, int64_t D) {
    const int64_t W = round_up(D, TN), rows = (BLOCK + 1) * W, all = turned_floats(T, D), side = side_room(BLOCK, W);
    const Part part[] = {{&b->k, (T + 1) * W}, {&b->v, (T + 1) * W}, {&b->q, rows}, {&b->dout, rows}, {&b->s, BLOCK * TN},
                         {&b->ds, BLOCK * TN}, {&b->dq, rows}, {&b->dk_t, all}, {&b->dv_t, all}, {&b->queries, side},
                         {&b->queries_t, side}, {&b->douts, side}, {&b->douts_t, side}, {&b->keys, side_room(W, TN)},
                         {&b->keys_t, turned_room(W)}, {&b->values_t, turned_room(W)}, {&b->probs, side_room(BLOCK, TN)}};
    return lay_out(start, part, 17);
}

size_t FN(attention_scratch)(int64_t T, int64_t D) {
    Forward f;
    Backward b;
    int64_t forward = forward_scratch(&f, NULL, T, D), backward = backward_scratch(&b, NULL, T, D);
    return forward > backward ? forward : backward;
}

// Of the products, and whether their operands are packed at all: NULL if not.
static const Precision* precision_for(int64_t T, int64_t D) {
#ifdef __AMX_BF16__
    if (gpt2c_matmul_bf16) return &BF16;
    if (T >= 256 && D >= 64) return &FLOAT32;  // with less of either, packing takes longer than it saves
#endif
    return NULL;
}

static inline int64_t padded_width(const Precision* p, int64_t D) { return round_up(D, p ? TN : VL); }
static inline void begin(const Precision* p) { if (p) p->begin(); }
static inline void end(const Precision* p) { if (p) p->end(); }

// s = exp(s - max) down n rows; adds up each lane's sum
static inline void exp_lanes(float* s, int64_t n, const vf max[2], vf sum[2]) {
    vf sum0 = sum[0], sum1 = sum[1];
    for (int64_t j = 0; j < n; j++) {
        vf p0 = vf_exp(vf_load(s + j * TN) - max[0]), p1 = vf_exp(vf_load(s + j * TN + VL) - max[1]);
        vf_store(s + j * TN, p0);
        vf_store(s + j * TN + VL, p1);
        sum0 += p0;
        sum1 += p1;
    }
    sum[0] = sum0, sum[1] = sum1;
}

// One head: T queries at positions start .. start + T - 1 against the keys and values 0 .. start + T - 1 in f. lse may be NULL.
static void attend(const Precision* p, float* out, ptrdiff_t out_row, float* lse, const float* q, ptrdiff_t q_row,
                   int64_t T, int64_t start, int64_t D, Forward f) {
    const int64_t W = padded_width(p, D);
    begin(p);
    Side keys = left_side(p, f.keys, f.k, W, 0, start + T, D), values_t = left_side(p, f.values_t, f.v, W, 1, D, start + T);
    for (int64_t first = 0; first < T; first += TN) {
        int64_t lanes = T - first < TN ? T - first : TN, at = start + first, n = at + lanes;
        copy_rows(f.q, W, q + first * q_row, q_row, lanes, D, 1.0f / sqrtf(D));
        multiply(p, f.s, TN, n, TN, D, keys, 0, 0, right_side(p, f.queries_t, f.q, W, 1, D, lanes), 0);
        for (int64_t j = at; j < n; j++)  // lane i has query at + i: hide key j from lanes below j - at
            for (int64_t i = 0; i < j - at; i++) f.s[j * TN + i] = -INFINITY;

        vf max[2] = {vf_load(f.s), vf_load(f.s + VL)}, sum[2] = {{0}};
        for (int64_t j = 1; j < n; j++)
            for (int i = 0; i < 2; i++) max[i] = vf_max(max[i], vf_load(f.s + j * TN + i * VL));
        for (int64_t j = 0; j < n; j += BLOCK) {
            int64_t rows = n - j < BLOCK ? n - j : BLOCK;
            exp_lanes(f.s + j * TN, rows, max, sum);
            multiply(p, f.out_t, TN, D, TN, rows, values_t, 0, j, right_side(p, f.probs, f.s + j * TN, TN, 0, rows, TN), j > 0);
        }

        float max_lane[TN], sum_lane[TN], inverse[TN];
        for (int i = 0; i < 2; i++) {
            vf_store(max_lane + i * VL, max[i]);
            vf_store(sum_lane + i * VL, sum[i]);
            vf_store(inverse + i * VL, 1.0f / sum[i]);
        }
        for (int i = 0; lse && i < lanes; i++) lse[first + i] = max_lane[i] + logf(sum_lane[i]);
        store_lanes(out + first * out_row, out_row, f.out_t, lanes, D, inverse, 0);
    }
    end(p);
}

void FN(attention_forward)(float* out, float* lse, const float* qkv, int64_t B, int64_t T, int64_t H, int64_t D, int64_t K,
                           float* scratch) {
    const int64_t row = (H + 2 * K) * D;
    const Precision* p = precision_for(T, D);
    PARALLEL_FOR(B * T * T * H * D / 8)
    for (int64_t bh = 0; bh < B * H; bh++) {
        int64_t b = bh / H, h = bh % H;
        const float *heads = qkv + b * T * row, *k = heads + (H + h * K / H) * D;
        Forward f;
        forward_scratch(&f, scratch + thread_index() * FN(attention_scratch)(T, D), T, D);
        copy_rows(f.k, padded_width(p, D), k, row, T, D, 1);
        copy_rows(f.v, padded_width(p, D), k + K * D, row, T, D, 1);
        attend(p, out + (b * T * H + h) * D, H * D, lse + bh * T, heads + h * D, row, T, 0, D, f);
    }
}

// s = probabilities of `rows` queries, and ds = their scores' gradients: lane l has key j + l, the first row query `at`.
static void probabilities(float* s, float* ds, int64_t rows, int64_t at, int64_t j, const float* lse, const float* dots) {
    for (int64_t i = 0; i < rows; i++)
        for (int l = 0; l < TN; l += VL) {
            vf p = vf_exp(vf_load(s + i * TN + l) - lse[i]);
            if (at + i < j + l + VL - 1) p = vf_select(lane_numbers() + (int32_t)(j + l - at - i) <= 0, p, (vf){0});
            vf_store(s + i * TN + l, p);
            vf_store(ds + i * TN + l, p * (vf_load(ds + i * TN + l) - dots[i]));
        }
}

// One head of queries, rows q_row apart, against the keys and values in b; dk_t and dv_t there get the gradients of these.
static void backward_of_head(const Precision* p, float* dq, const float* q, ptrdiff_t q_row, const float* g, const float* o,
                             ptrdiff_t o_row, const float* lse, int64_t T, int64_t D, int add, Backward b) {
    const int64_t W = padded_width(p, D);
    const float scale = 1.0f / sqrtf(D);
    for (int64_t first = 0; first < T; first += BLOCK) {
        int64_t rows = T - first < BLOCK ? T - first : BLOCK;
        float dots[BLOCK];  // dout_i out_i
        row_dots(dots, g + first * o_row, o + first * o_row, o_row, rows, D);
        copy_rows(b.q, W, q + first * q_row, q_row, rows, D, scale);
        copy_rows(b.dout, W, g + first * o_row, o_row, rows, D, 1);
        memset(b.dq, 0, rows * W * sizeof(float));
        Side queries = left_side(p, b.queries, b.q, W, 0, rows, D), queries_t = left_side(p, b.queries_t, b.q, W, 1, D, rows);
        Side douts = left_side(p, b.douts, b.dout, W, 0, rows, D), douts_t = left_side(p, b.douts_t, b.dout, W, 1, D, rows);

        for (int64_t j = 0; j < first + rows; j += TN) {
            int64_t lanes = T - j < TN ? T - j : TN, from = j > first ? j - first : 0, n = rows - from;
            float *k = b.k + j * W, *s = b.s + from * TN, *ds = b.ds + from * TN;
            Side keys_t = right_side(p, b.keys_t, k, W, 1, D, lanes);
            Side values_t = right_side(p, b.values_t, b.v + j * W, W, 1, D, lanes);
            multiply(p, s, TN, n, TN, D, queries, from, 0, keys_t, 0);
            multiply(p, ds, TN, n, TN, D, douts, from, 0, values_t, 0);
            probabilities(s, ds, n, first + from, j, lse + first + from, dots + from);

            int more = j < first;  // queries of blocks before saw these keys
            multiply(p, b.dv_t + j * W, TN, D, TN, n, douts_t, 0, from, right_side(p, b.probs, s, TN, 0, n, TN), more);
            multiply(p, b.dk_t + j * W, TN, D, TN, n, queries_t, 0, from, right_side(p, b.probs, ds, TN, 0, n, TN), more);
            multiply(p, b.dq + from * W, W, n, W, lanes, left_side(p, b.probs, ds, TN, 0, n, lanes), 0, 0,
                     right_side(p, b.keys, k, W, 0, lanes, W), 1);
        }
        store_rows(dq + first * q_row, q_row, b.dq, W, rows, D, scale, add);
    }
}

// dst (T rows of width D, `row` apart) = or += turned (T/TN, W, TN)
static void store_turned(float* dst, ptrdiff_t row, const float* turned, int64_t W, int64_t T, int64_t D, int add) {
    for (int64_t j = 0; j < T; j += TN)
        store_lanes(dst + j * row, row, turned + j * W, T - j < TN ? T - j : TN, D, NULL, add);
}

// A task is a group of heads that share keys and values, or a single head where such tasks would leave threads without work for
// over an eighth of the time. The gradients of what is shared are added up from the first head to the last either way.
static inline int heads_apart(int64_t B, int64_t T, int64_t H, int64_t D, int64_t K) {
    const int64_t groups = B * K, threads = threads_for(B * T * T * H * D / 4);
    return K < H && 8 * (round_up(groups, threads) - groups) > groups;
}

// What each thread needs, and before that, once, what single heads give to the gradients of shared keys and values.
size_t FN(attention_backward_scratch)(int64_t B, int64_t T, int64_t H, int64_t D, int64_t K) {
    return FN(attention_scratch)(T, D) + (heads_apart(B, T, H, D, K) ? 2 * B * H * turned_floats(T, D) : 0);
}

void FN(attention_backward)(float* dqkv, const float* dout, const float* qkv, const float* out, const float* lse,
                            int64_t B, int64_t T, int64_t H, int64_t D, int64_t K, int64_t add, float* scratch) {
    const int64_t row = (H + 2 * K) * D, each = H / K, apart = heads_apart(B, T, H, D, K), heads = apart ? 1 : each;
    const int64_t all = turned_floats(T, D);
    const Precision* p = precision_for(T, D);
    const int64_t W = padded_width(p, D);
    float *parts = scratch, *threads = scratch + (apart ? 2 * B * H * all : 0);  // parts (B, H, 2, all)
    PARALLEL_FOR(B * T * T * H * D / 4)
    for (int64_t first = 0; first < B * H; first += heads) {
        int64_t b = first / H, at = b * T * row, key = at + (H + first % H / each) * D, value = key + K * D;
        Backward s;
        backward_scratch(&s, threads + thread_index() * FN(attention_scratch)(T, D), T, D);
        if (apart) s.dk_t = parts + 2 * first * all, s.dv_t = s.dk_t + all;
        copy_rows(s.k, W, qkv + key, row, T, D, 1);
        copy_rows(s.v, W, qkv + value, row, T, D, 1);
        begin(p);
        for (int64_t bh = first; bh < first + heads; bh++) {
            int64_t head = at + bh % H * D, o = (b * T * H + bh % H) * D, later = add || bh > first;
            backward_of_head(p, dqkv + head, qkv + head, row, dout + o, out + o, H * D, lse + bh * T, T, D, add, s);
            if (apart) continue;
            store_turned(dqkv + key, row, s.dk_t, W, T, D, later);
            store_turned(dqkv + value, row, s.dv_t, W, T, D, later);
        }
        end(p);
    }
    if (!apart) return;
    PARALLEL_FOR(2 * B * T * H * D)
    for (int64_t i = 0; i < 2 * B * K; i++) {
        int64_t bk = i / 2, of_values = i % 2, key = bk / K * T * row + (H + bk % K) * D;
        const float* part = parts + (2 * bk * each + of_values) * all;
        for (int64_t h = 0; h < each; h++)
            store_turned(dqkv + key + of_values * K * D, row, part + 2 * h * all, W, T, D, add || h > 0);
    }
}

// Cached ----------------------------------------------------------------------------------------------------------

size_t FN(attention_cached_scratch)(int64_t S, int64_t D) {
    Forward f;
    return forward_scratch(&f, NULL, S, D);
}

void FN(attention_cached_forward)(float* out, uint8_t* kcache, uint8_t* vcache, const float* qkv, const int32_t* pos,
                                  const int32_t* slot, int64_t B, int64_t T, int64_t H, int64_t D, int64_t S, int64_t K,
                                  int64_t kv, float* scratch) {
    const int64_t row = (H + 2 * K) * D, head = cached_bytes(kv, D);
    const Precision* p = precision_for(T, D);
    const int64_t W = padded_width(p, D), seen = store_positions(kcache, vcache, qkv, pos, slot, B, T, H, D, S, K, kv);
    PARALLEL_FOR(4 * T * seen * H * D)
    for (int64_t bh = 0; bh < B * H; bh++) {
        int64_t b = bh / H, h = bh % H, at = (slot[b] * S * K + h * K / H) * head;
        Forward f;
        forward_scratch(&f, scratch + thread_index() * FN(attention_cached_scratch)(S, D), S, D);
        copy_cached(f.k, W, kcache + at, K * head, pos[b] + T, D, kv);
        copy_cached(f.v, W, vcache + at, K * head, pos[b] + T, D, kv);
        attend(p, out + (b * T * H + h) * D, H * D, NULL, qkv + b * T * row + h * D, row, T, pos[b], D, f);
    }
}

// One query against n keys and values, kv_row bytes apart: a row of scores, then a sum of rows. p has room for 2 n. Keys and
// values come from memory, since all weights of the model went through the caches after they were last used, and a head's part of
// them lies in short pieces far apart, which hardware does not fetch ahead: the next keys and the values are asked for as scores
// are made.
static inline __attribute__((always_inline)) void
attend_one_as(float* out, const float* q, const uint8_t* k, const uint8_t* v, ptrdiff_t kv_row, int64_t n, int64_t D, float* p,
              const int type) {
    enum { LINE = 64, VECTORS = 4 };  // bytes of a cache line; vectors of the sum that are made in one walk over the values
    float* s = p + n;
    for (int64_t j = 0; j < n; j += VL) {
        vf sum[VL] = {0};
        for (int i = 0; i < VL && j + i < n; i++) {
            const uint8_t *kj = k + (j + i) * kv_row, *vj = v + (j + i) * kv_row;
            for (int64_t at = 0; at < cached_bytes(type, D); at += LINE) {
                if (j + i + VL < n) __builtin_prefetch(kj + VL * kv_row + at);
                __builtin_prefetch(vj + at);
            }
            for (int64_t c = 0; c < D; c += VL) sum[i] += vf_load_n(q + c, D - c) * cached(kj, c, D, type);
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
                if (c < D) sum[i] += p[j] * cached(v + j * kv_row, c, D, type);
            }
        for (int64_t i = 0, c = first; i < VECTORS && c < D; i++, c += VL) vf_store_n(out + c, sum[i], D - c);
    }
}

static void attend_one(float* out, const float* q, const uint8_t* k, const uint8_t* v, ptrdiff_t kv_row, int64_t n, int64_t D,
                       float* p, int64_t type) {
#define ATTEND(constant) attend_one_as(out, q, k, v, kv_row, n, D, p, constant)
    WITH_CACHED_TYPE(type, ATTEND)
#undef ATTEND
}

size_t FN(attention_decode_scratch)(int64_t S) { return 2 * S; }

void FN(attention_decode_forward)(float* out, uint8_t* kcache, uint8_t* vcache, const float* qkv, const int32_t* pos,
                                  const int32_t* slot, int64_t B, int64_t H, int64_t D, int64_t S, int64_t K, int64_t kv,
                                  float* scratch) {
    const int64_t row = (H + 2 * K) * D, head = cached_bytes(kv, D);
    const int64_t seen = store_positions(kcache, vcache, qkv, pos, slot, B, 1, H, D, S, K, kv);
    PARALLEL_FOR(4 * seen * H * D)
    for (int64_t bh = 0; bh < B * H; bh++) {
        int64_t b = bh / H, h = bh % H, at = (slot[b] * S * K + h * K / H) * head;
        attend_one(out + bh * D, qkv + b * row + h * D, kcache + at, vcache + at, K * head, pos[b] + 1, D,
                   scratch + thread_index() * FN(attention_decode_scratch)(S), kv);
    }
}
