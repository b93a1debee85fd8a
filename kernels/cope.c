// Causal self-attention with contextual positions (CoPE). Plainly, for one query i of one (b, h):
//
//   for j from i down to 0:
//     r_j = q_i k_j,  g_j = logistic(r_j),  p_j = min(p_(j+1) + g_j, M - 1)        p_(i+1) = 0
//     m = floor(p_j),  f = p_j - m,  s_j = r_j / sqrt(D) + (1 - f) z_m + f z_(m+1)     z_m = q_i table_m
//   a = softmax(s),  out_i = sum_j a_j v_j
//
// So a key is as far away as the gates between it and the query say, and the table is read between its rows.
//
// Queries go TN at once, one per lane, as in attention.c: the gates, the sums p from the last key to the first and the
// reading of the table are then elementwise down the rows of the matrix of scores. z is a matrix of one row per row of the
// table, and each lane gathers from its own column. Nothing of size T x T is kept; the backward computes it again.
#include <math.h>

#include "attend.h"
#include "cache.h"
#include "gpt2c.h"
#include "parallel.h"

enum { MAX_GROUPS = 8 };  // of batch entries, each with a gradient of the table of its own: MAX_GROUPS tasks per head

// The scratch of one thread; nothing needs to be kept between heads.
typedef struct {
    float *k, *v;               // (T+1, W): the head's keys and values, one row more to make the number even
    float* table;               // (M+1, W)
    float *s, *ds, *gate, *dp;  // (T, TN): scores, then probabilities; the gradients of scores, then of r; gates; gradients of p
    float *z, *dz;              // (M+1, TN): one row more, for the neighbour of the last
    float *q_t, *dout_t;        // (W, TN): the queries at hand and their output gradients, one per lane
    float *q, *dout;            // (TN, W): the same, one per row
    float *out_t;               // (W, TN)
    float *dk, *dv;             // (T, W)
    int64_t M, W;
} Scratch;

static int64_t divide_scratch(Scratch* s, float* start, int64_t T, int64_t M, int64_t D) {
    const int64_t W = round_up(D, VL), scores = T * TN, rows = (M + 1) * TN, lanes = W * TN;
    s->M = M, s->W = W;
    const Part part[] = {{&s->k, (T + 1) * W}, {&s->v, (T + 1) * W}, {&s->table, (M + 1) * W}, {&s->s, scores}, {&s->ds, scores},
                         {&s->gate, scores}, {&s->dp, scores}, {&s->z, rows}, {&s->dz, rows}, {&s->q_t, lanes},
                         {&s->dout_t, lanes}, {&s->q, lanes}, {&s->dout, lanes}, {&s->out_t, lanes}, {&s->dk, T * W},
                         {&s->dv, T * W}};
    return lay_out(start, part, 16);
}

size_t FN(cope_scratch)(int64_t T, int64_t M, int64_t D) {
    Scratch s;
    return divide_scratch(&s, NULL, T, M, D);
}

static void load_head(Scratch s, const float* k, const float* v, ptrdiff_t kv_row, const float* table, int64_t n, int64_t D) {
    copy_rows(s.k, s.W, k, kv_row, n, D, 1);
    copy_rows(s.v, s.W, v, kv_row, n, D, 1);
    copy_rows(s.table, s.W, table, D, s.M, D, 1);
}

// Rows of z that n keys can reach: their gates add up to n at most.
static inline int64_t reached(Scratch s, int64_t n) { return n < s.M ? n + 1 : s.M; }

// r and z of the lanes' queries; `width` lanes hold all of them.
static void products(Scratch s, int64_t D, int64_t n, int64_t width) {
    int64_t rows = reached(s, n);
    rows_product(s.s, TN, n, D, s.k, s.W, 1, s.q_t, TN, width, 0);
    rows_product(s.z, TN, rows, D, s.table, s.W, 1, s.q_t, TN, width, 0);
    memset(s.z + rows * TN, 0, TN * sizeof(float));
}

// How many of n keys any of the VL lanes from i on sees. For the others, probabilities and gradients are 0.
static inline int64_t seen_by_any(int64_t at, int i, int64_t n) { return at + i + VL < n ? at + i + VL : n; }

static inline void clear_rows(float* lanes_of, int i, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; j++) vf_store(lanes_of + j * TN + i, (vf){0});
}

// Which lanes have their query, at position `at` + lane, not before key j.
static inline vi sees(int64_t at, int i, int64_t j) { return lane_numbers() + (int32_t)(at + i) >= (int32_t)j; }

// Where the lanes read z: in row m and the next, in parts 1 - f and f. From key to key m grows by one at most, because no
// gate is above 1; where rounding takes a position beyond that, f = 1 means the same. `index` is where row m lies.
typedef struct {
    vi m, index;
    vf f;
} Place;

// Moves on to a new position; true lanes of the result have gone to the next row.
static inline vi move(Place* at, vf position) {
    vi beyond = __builtin_convertvector(position, vi) > at->m;
    at->m -= beyond;
    at->index += beyond & TN;
    at->f = position - __builtin_convertvector(at->m, vf);
    return beyond;
}

// The scores of keys 0 .. n-1 in place of r, -inf where the key comes after the query, and each lane's largest.
static vf scores(Scratch s, int i, int64_t D, int64_t at, int64_t n) {
    const vf scale = vf_splat(1.0f / sqrtf(D)), last = vf_splat(s.M - 1), hidden = vf_splat(-INFINITY);
    Place place = {.index = lane_numbers() + i};
    vf sum = {0}, max = hidden, low = vf_load(s.z + i), high = vf_load(s.z + TN + i);
    for (int64_t j = n - 1; j >= 0; j--) {
        float* sj = s.s + j * TN + i;
        vi seen = sees(at, i, j);
        vf r = vf_load(sj);
        sum += vf_select(seen, vf_logistic(r), (vf){0});
        low = vf_select(move(&place, vf_min(sum, last)), high, low);  // a NaN counts as `last`: no index is ever wild
        high = vf_gather(s.z + TN, place.index);
        r = vf_select(seen, r * scale + (low + place.f * (high - low)), hidden);
        max = vf_max(max, r);
        vf_store(sj, r);
    }
    return max;
}

// Writes the lanes' first n entries to rows of dst, which are dst_row apart and `dst_row` long; 0 from n on.
static void store_to_look_at(float* dst, int64_t dst_row, const float* lanes_of, const float* scale, int64_t lanes,
                             int64_t at) {
    for (int64_t l = 0; l < lanes; l++)
        for (int64_t j = 0; j < dst_row; j++) dst[l * dst_row + j] = j <= at + l ? lanes_of[j * TN + l] * scale[l] : 0.0f;
}

// One head: T queries at positions start .. start + T - 1 against keys and values 0 .. start + T - 1. lse, preatt and att
// may be NULL.
static void attend(float* out, ptrdiff_t out_row, float* lse, float* preatt, float* att, const float* q, ptrdiff_t q_row,
                   int64_t T, int64_t start, int64_t D, Scratch s) {
    float one[TN], inverse[TN];
    for (int i = 0; i < TN; i++) one[i] = 1;
    for (int64_t first = 0; first < T; first += TN) {
        int64_t lanes = T - first < TN ? T - first : TN, at = start + first, n = at + lanes;
        copy_rows(s.q, s.W, q + first * q_row, q_row, lanes, D, 1);
        pack_transposed(s.q_t, TN, s.q, s.W, lanes, D);
        int64_t width = round_up(lanes, VL);
        products(s, D, n, width);
        vf max[TN / VL];
        for (int i = 0; i < width; i += VL) max[i / VL] = scores(s, i, D, at, seen_by_any(at, i, n));
        if (preatt) store_to_look_at(preatt + first * T, T, s.s, one, lanes, at);
        for (int i = 0; i < width; i += VL) {
            int64_t seen = seen_by_any(at, i, n);
            vf sum = {0};
            for (int64_t j = 0; j < seen; j++) {
                vf p = vf_exp(vf_load(s.s + j * TN + i) - max[i / VL]);
                vf_store(s.s + j * TN + i, p);
                sum += p;
            }
            clear_rows(s.s, i, seen, n);
            vf_store(inverse + i, 1.0f / sum);
            for (int l = 0; lse && l < VL && i + l < lanes; l++) lse[first + i + l] = max[i / VL][l] + logf(sum[l]);
        }
        if (att) store_to_look_at(att + first * T, T, s.s, inverse, lanes, at);
        rows_product(s.out_t, TN, D, n, s.v, 1, s.W, s.s, TN, width, 0);
        store_lanes(out + first * out_row, out_row, s.out_t, lanes, D, inverse, 0);
    }
}

void FN(cope_forward)(float* out, float* lse, float* preatt, float* att, const float* qkv, const float* table,
                      int64_t B, int64_t T, int64_t C, int64_t H, int64_t M, float* scratch) {
    int64_t D = C / H;
    PARALLEL_FOR(B * T * T * (C / 8 + 4 * H))
    for (int64_t bh = 0; bh < B * H; bh++) {
        const float* q = qkv + bh / H * T * 3 * C + bh % H * D;
        Scratch s;
        divide_scratch(&s, scratch + thread_index() * FN(cope_scratch)(T, M, D), T, M, D);
        load_head(s, q + C, q + 2 * C, 3 * C, table + bh % H * M * D, T, D);
        attend(out + bh / H * T * C + bh % H * D, C, lse + bh * T, preatt ? preatt + bh * T * T : NULL,
               att ? att + bh * T * T : NULL, q, 3 * C, T, 0, D, s);
    }
}

// As load_head, from the caches.
static void load_cached_head(Scratch s, const uint8_t* k, const uint8_t* v, ptrdiff_t kv_row, const float* table, int64_t n,
                             int64_t D, int64_t type) {
    copy_cached(s.k, s.W, k, kv_row, n, D, type);
    copy_cached(s.v, s.W, v, kv_row, n, D, type);
    copy_rows(s.table, s.W, table, D, s.M, D, 1);
}

void FN(cope_cached_forward)(float* out, uint8_t* kcache, uint8_t* vcache, const float* qkv, const int32_t* pos,
                             const int32_t* slot, const float* table, int64_t B, int64_t T, int64_t C, int64_t S, int64_t H,
                             int64_t M, int64_t kv, float* scratch) {
    const int64_t D = C / H, head = cached_bytes(kv, D);
    const int64_t seen = store_positions(kcache, vcache, qkv, pos, slot, B, T, H, D, S, H, kv);
    PARALLEL_FOR(TN * seen * (C / 8 + 4 * H))
    for (int64_t bh = 0; bh < B * H; bh++) {
        int64_t b = bh / H, h = bh % H, at = (slot[b] * S * H + h) * head;
        Scratch s;
        divide_scratch(&s, scratch + thread_index() * FN(cope_scratch)(S, M, D), S, M, D);
        load_cached_head(s, kcache + at, vcache + at, H * head, table + h * M * D, pos[b] + T, D, kv);
        attend(out + b * T * C + h * D, C, NULL, NULL, NULL, qkv + b * T * 3 * C + h * D, 3 * C, T, pos[b], D, s);
    }
}

// Backward --------------------------------------------------------------------------------------------------------

// From r in s.s: the gates; the probabilities in place of r; ds from dout_i v_j; and what flows into p and z.
static void backward_of_scores(Scratch s, int i, int64_t D, int64_t at, int64_t n, vf lse, vf dot) {
    const vf scale = vf_splat(1.0f / sqrtf(D)), last = vf_splat(s.M - 1), none = {0};
    Place place = {.index = lane_numbers() + i};
    vf sum = {0}, low = vf_load(s.z + i), high = vf_load(s.z + TN + i), dlow = {0}, dhigh = {0};
    for (int64_t j = n - 1; j >= 0; j--) {
        int64_t at_j = j * TN + i;
        vi seen = sees(at, i, j);
        vf r = vf_load(s.s + at_j), gate = vf_select(seen, vf_logistic(r), none);
        sum += gate;
        vi moved = move(&place, vf_min(sum, last));
        low = vf_select(moved, high, low);
        high = vf_gather(s.z + TN, place.index);
        vf prob = vf_select(seen, vf_exp(r * scale + (low + place.f * (high - low)) - lse), none);
        vf ds = prob * (vf_load(s.ds + at_j) - dot), part = place.f * ds;
        dlow = vf_select(moved, dhigh, dlow) + (ds - part);
        dhigh = vf_select(moved, none, dhigh) + part;
        vf_scatter(s.dz, place.index, dlow);  // what it is when the lane leaves the row stays
        vf_store(s.s + at_j, prob);
        vf_store(s.ds + at_j, ds);
        vf_store(s.gate + at_j, gate);
        vf_store(s.dp + at_j, vf_select(sum < last, ds * (high - low), none));
    }
    vf_scatter(s.dz + TN, place.index, dhigh);
}

// dr = ds / sqrt(D) + dg g (1 - g) in place of ds: the gate of key k is part of p of every key before it, and of its own
static void backward_of_gates(Scratch s, int i, int64_t D, int64_t n) {
    const vf scale = vf_splat(1.0f / sqrtf(D));
    vf dgate = {0};
    for (int64_t j = 0; j < n; j++) {
        int64_t at_j = j * TN + i;
        vf gate = vf_load(s.gate + at_j);
        dgate += vf_load(s.dp + at_j);
        vf_store(s.ds + at_j, vf_load(s.ds + at_j) * scale + dgate * (gate * (1.0f - gate)));
    }
}

// One head of one batch entry. dtable (M, W) is added to.
static void backward_of_head(float* dq, float* dtable, const float* g, const float* q, const float* o, const float* lse,
                             int64_t T, int64_t C, int64_t D, int add, Scratch s) {
    memset(s.dk, 0, T * s.W * sizeof(float));
    memset(s.dv, 0, T * s.W * sizeof(float));
    for (int64_t first = 0; first < T; first += TN) {
        int64_t lanes = T - first < TN ? T - first : TN, n = first + lanes, rows = reached(s, n);
        copy_rows(s.q, s.W, q + first * 3 * C, 3 * C, lanes, D, 1);
        copy_rows(s.dout, s.W, g + first * C, C, lanes, D, 1);
        pack_transposed(s.q_t, TN, s.q, s.W, lanes, D);
        pack_transposed(s.dout_t, TN, s.dout, s.W, lanes, D);

        float lse_lane[TN], dots[TN] = {0};  // dout_i out_i
        for (int i = 0; i < TN; i++) lse_lane[i] = i < lanes ? lse[first + i] : INFINITY;  // no query: probabilities 0
        row_dots(dots, g + first * C, o + first * C, C, lanes, D);

        int64_t width = round_up(lanes, VL);
        products(s, D, n, width);
        rows_product(s.ds, TN, n, D, s.v, s.W, 1, s.dout_t, TN, width, 0);
        memset(s.dz, 0, (rows + 1) * TN * sizeof(float));
        for (int i = 0; i < width; i += VL) {
            int64_t seen = seen_by_any(first, i, n);
            backward_of_scores(s, i, D, first, seen, vf_load(lse_lane + i), vf_load(dots + i));
            backward_of_gates(s, i, D, seen);
            clear_rows(s.s, i, seen, n);
            clear_rows(s.ds, i, seen, n);
        }

        rows_product(s.out_t, TN, D, n, s.k, 1, s.W, s.ds, TN, width, 0);
        rows_product(s.out_t, TN, D, rows, s.table, 1, s.W, s.dz, TN, width, 1);
        store_lanes(dq + first * 3 * C, 3 * C, s.out_t, lanes, D, NULL, add);
        rows_product(s.dv, s.W, n, lanes, s.s, TN, 1, s.dout, s.W, s.W, 1);
        rows_product(s.dk, s.W, n, lanes, s.ds, TN, 1, s.q, s.W, s.W, 1);
        rows_product(dtable, s.W, rows, lanes, s.dz, TN, 1, s.q, s.W, s.W, 1);
    }
    store_rows(dq + C, 3 * C, s.dk, s.W, T, D, 1, add);
    store_rows(dq + 2 * C, 3 * C, s.dv, s.W, T, D, 1, add);
}

static int64_t num_groups(int64_t B) { return B < MAX_GROUPS ? B : MAX_GROUPS; }

// What each thread needs, and before that, once, the groups' gradients of the table.
size_t FN(cope_backward_scratch)(int64_t B, int64_t T, int64_t H, int64_t M, int64_t D) {
    return FN(cope_scratch)(T, M, D) + num_groups(B) * H * M * round_up(D, VL);
}

void FN(cope_backward)(float* dqkv, float* dtable, const float* dout, const float* qkv, const float* out, const float* lse,
                       const float* table, int64_t B, int64_t T, int64_t C, int64_t H, int64_t M, int64_t add, float* scratch) {
    int64_t D = C / H, G = num_groups(B), W = round_up(D, VL);
    float* dtables = scratch;  // (G, H, M, W)
    scratch += G * H * M * W;
    PARALLEL_FOR(B * T * T * (C / 4 + 8 * H))
    for (int64_t gh = 0; gh < G * H; gh++) {
        int64_t group = gh / H, h = gh % H;
        float* mine = dtables + gh * M * W;
        memset(mine, 0, M * W * sizeof(float));
        Scratch s;
        divide_scratch(&s, scratch + thread_index() * FN(cope_scratch)(T, M, D), T, M, D);
        for (int64_t b = B * group / G; b < B * (group + 1) / G; b++) {
            int64_t head = b * T * 3 * C + h * D, at = b * T * C + h * D;
            load_head(s, qkv + head + C, qkv + head + 2 * C, 3 * C, table + h * M * D, T, D);
            backward_of_head(dqkv + head, mine, dout + at, qkv + head, out + at, lse + (b * H + h) * T, T, C, D, add, s);
        }
    }
    PARALLEL_FOR(G * H * M * D)
    for (int64_t hm = 0; hm < H * M; hm++)
        for (int64_t c = 0; c < D; c += VL) {
            vf sum = {0};
            for (int64_t g = 0; g < G; g++) sum += vf_load(dtables + (g * H * M + hm) * W + c);
            vf_store_n(dtable + hm * D + c, vf_load_n(dtable + hm * D + c, D - c) + sum, D - c);
        }
}
