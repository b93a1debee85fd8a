// A few rows times a stored matrix: what a decoding step consists of, where each number of the matrix is used once for each row.
//
//   out[r][n] = x[r] . w[n] + b[n]
//
// Memory is the limit, so every byte of w is read once, in order, whatever R is, and serves all rows of x while it is in the
// first-level cache. What a row gets does not depend on the rows beside it or on their number: each has sums of its own, which
// run over the columns in order.
//
// A matrix of single numbers (f32, bf16, f16) is multiplied in float32, a row of w after the other: memory likes a single stream.
//
// Blocks of integers have a row of w in each lane (stored.h). They are multiplied as integers, exactly: x is rounded to 16 bits,
// relative to the largest of each BLOCK of it, and only then do the scales come in, once for a block. That is four times less
// work than to convert each code to float32, and costs at most 2^-16 of the largest x of the block: less than 1 % of what 8 bits
// would cost, and far below what the storage type itself has lost.
#include "gpt2c.h"
#include "parallel.h"
#include "stored.h"

enum {
    LINE = 64,           // bytes
    AHEAD = 40 * LINE,   // hardware that fetches ahead stops at the end of a page, which software does not; 20 to 50 lines do
    MOST_ROWS = VL == 16 ? 8 : 4,
};

// Calls CALL(n) with constants n that add up to R, `first` being the row that each begins with.
#define FOR_ROWS(R, CALL)                               \
    {                                                   \
        int64_t first = 0;                              \
        for (; R - first >= MOST_ROWS; first += MOST_ROWS) CALL(MOST_ROWS); \
        for (; R - first >= 2; first += 2) CALL(2);     \
        for (; R - first >= 1; first += 1) CALL(1);     \
    }

// BLOCK numbers of x, in whole numbers: x = scale * q
typedef struct {
    int32_t a[STEPS], b[STEPS];       // q, as quad_dot takes it
    int32_t sums[2];                  // of 16 q each
    float scale, total;               // total: sum of scale * q
} Rounded;

size_t FN(few_rows_scratch)(int64_t R, int64_t C) { return R * ((C + BLOCK - 1) / BLOCK) * (sizeof(Rounded) / sizeof(float)); }

static void round_block(Rounded* out, const float* x) {
    const vf magic = vf_splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
    vf most = {0};
    for (int k = 0; k < BLOCK; k += VL) most = vf_max(most, (vf)((vi)vf_load(x + k) & 0x7fffffff));
    out->scale = vf_hmax(most) * (1.0f / QUAD_MOST);
    const float inverse = out->scale > 0 ? 1 / out->scale : 0;
    float sums[2] = {0, 0};
    for (int k = 0; k < BLOCK; k += VL) {
        vi q = (vi)(vf_load(x + k) * inverse + magic) - (vi)magic;
        quads(out->a + k / 4, out->b + k / 4, q);
        sums[k / 16] += vf_sum(vf_from_i32(q));  // exact
    }
    for (int i = 0; i < 2; i++) out->sums[i] = (int32_t)sums[i];
    out->total = out->scale * (sums[0] + sums[1]);
}

// VL rows of w, from `row` of the group on, times `rows` rows of x, whose blocks lie x_row apart
static inline __attribute__((always_inline)) void
multiply_group(vf* sum, const int rows, int type, const Group* group, int row, const Rounded* x, int64_t x_row, int64_t blocks) {
    const int run = run_of(type);
    vf sums[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sums[r] = (vf){0};
    for (int64_t t = 0; t < blocks; t++, x++) {
        for (int ahead = 0; ahead < (type == AS_Q8_0 ? 512 : 256); ahead += LINE)
            __builtin_prefetch(group->codes + t * (type == AS_Q8_0 ? 512 : 256) + AHEAD + ahead);
#pragma GCC unroll 2
        for (int part = 0; part < BLOCK / run; part++) {
            QuadSums dots[rows];
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) dots[r] = (QuadSums){{0}, {0}};
#pragma GCC unroll 8
            for (int g = part * run / 4; g < (part + 1) * run / 4; g++) {
                vu codes = codes_of(type, group, t, g, row);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) quad_dot(&dots[r], codes, x[r * x_row].a[g], x[r * x_row].b[g]);
            }
            vf scale = scale_of(type, group, t, part, row);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                const Rounded* xr = x + r * x_row;
                int32_t q = run == BLOCK ? xr->sums[0] + xr->sums[1] : xr->sums[part];
                sums[r] += scale * xr->scale * vf_from_i32(quad_total(dots[r]) - zero_of(type) * q);
            }
        }
        if (!has_least(type)) continue;
        vf least = least_of(type, group, t, row);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) sums[r] += least * x[r * x_row].total;
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sum[r] = sums[r];
}

// Groups g0 to g1 of w
static inline __attribute__((always_inline)) void
multiply_groups(float* out, int64_t P, int type, Matrix w, int64_t N, int64_t g0, int64_t g1, const Rounded* x, int64_t R,
                const float* b) {
    const int64_t blocks = w.columns / BLOCK;
    for (int64_t g = g0; g < g1; g++) {
        const Group group = group_of(w.data, type, w.columns, g);
        for (int64_t n = g * GROUP; n < (g + 1) * GROUP && n < N; n += VL) {
            const vf bias = b ? vf_load_n(b + n, N - n) : (vf){0};
#define ROWS(rows)                                                                                              \
    {                                                                                                           \
        vf sum[rows];                                                                                           \
        multiply_group(sum, rows, type, &group, n % GROUP, x + first * blocks, blocks, blocks);                 \
        for (int r = 0; r < rows; r++) vf_store_n(out + (first + r) * P + n, sum[r] + bias, N - n);             \
    }
            FOR_ROWS(R, ROWS)
#undef ROWS
        }
    }
}

// Row n of w, single numbers, times `rows` rows of x
static inline __attribute__((always_inline)) void
multiply_row(float* out, int64_t P, const int rows, int type, Matrix w, int64_t n, const float* x, float bias) {
    enum { SUMS = 2 };
    const int64_t C = w.columns, bytes = type == AS_F32 ? 4 : 2;
    const char* ahead = (const char*)w.data + n * C * bytes + AHEAD;
    vf sum[rows][SUMS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < SUMS; i++) sum[r][i] = (vf){0};
    int64_t c = 0;
    for (; c + SUMS * VL <= C; c += SUMS * VL) {
        for (int i = 0; i < SUMS * VL * bytes; i += LINE) __builtin_prefetch(ahead + c * bytes + i);
#pragma GCC unroll 2
        for (int i = 0; i < SUMS; i++) {
            vf wi = load_numbers(type, w.data, n * C + c + i * VL, VL);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) sum[r][i] += vf_load(x + r * C + c + i * VL) * wi;
        }
    }
    for (; c < C; c += VL) {
        vf wc = load_numbers(type, w.data, n * C + c, C - c);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) sum[r][0] += vf_load_n(x + r * C + c, C - c) * wc;
    }
    for (int r = 0; r < rows; r++) out[r * P + n] = vf_sum(sum[r][0] + sum[r][1]) + bias;
}

static inline __attribute__((always_inline)) void
multiply_rows(float* out, int64_t P, int type, Matrix w, int64_t n0, int64_t n1, const float* x, int64_t R, const float* b) {
    for (int64_t n = n0; n < n1; n++) {
        const float bias = b ? b[n] : 0.0f;
#define ROWS(rows) multiply_row(out + first * P, P, rows, type, w, n, x + first * w.columns, bias)
        FOR_ROWS(R, ROWS)
#undef ROWS
    }
}

typedef struct {
    float* out;  // its rows P apart
    Matrix w;    // N rows
    const float* b;
} Product;

// One or two products with the same x, for which threads meet once. Each rounds all of x for itself: that is less than telling
// the others.
static void multiply(const Product* products, int count, const float* x, int64_t R, int64_t N, int64_t P, float* scratch) {
    const int64_t C = products->w.columns, work = 2 * count * R * N * C;
    const int threads = threads_for(work);
    PARALLEL_FOR(work)
    for (int t = 0; t < threads; t++) {
        Rounded* rounded = (Rounded*)(scratch + thread_index() * FN(few_rows_scratch)(R, C));
        int done = 0;
        for (const Product* p = products; p < products + count; p++) {
            const int64_t step = p->w.type <= AS_F16 ? 1 : GROUP, steps = (N + step - 1) / step;
            const int64_t first = steps * t / threads, last = steps * (t + 1) / threads;
            if (step == GROUP && !done++)
                for (int64_t block = 0; block < R * (C / BLOCK); block++) round_block(rounded + block, x + block * BLOCK);
#define NUMBERS(type) multiply_rows(p->out, P, type, p->w, first, last, x, R, p->b)
#define BLOCKS(type) multiply_groups(p->out, P, type, p->w, N, first, last, rounded, R, p->b)
            STORED_DISPATCH(p->w.type, NUMBERS, BLOCKS)
#undef NUMBERS
#undef BLOCKS
        }
    }
}

void FN(few_rows_forward)(float* out, const float* x, const void* w, const float* b, int64_t R, int64_t P, int64_t C, int64_t N,
                          int64_t at, int64_t w_type, float* scratch) {
    multiply(&(Product){out + at, {w, w_type, C}, b ? b + at : NULL}, 1, x, R, N, P, scratch);
}

void FN(few_rows_pair_forward)(float* a, float* b, const float* x, const void* wa, const void* wb, int64_t R, int64_t N, int64_t C,
                               int64_t wa_type, int64_t wb_type, float* scratch) {
    multiply((Product[]){{a, {wa, wa_type, C}, NULL}, {b, {wb, wb_type, C}, NULL}}, 2, x, R, N, N, scratch);
}
