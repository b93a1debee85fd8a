// Matrix products: out = x w^T + b, dx += dout w, dw += dout^T x.
//
// All three are C (+)= A B with A (M x K) and B (K x N), and C is row-major in all of them; they differ in how A and B
// lie in memory:
//
//              M   N   K      A                      B
//   forward    R   N   C      x, straight            w, transposed
//   dx         R   C   N      dout, straight         w, straight
//   dw         N   C   R      dout, transposed       x, straight
//
// The plain loop nest is
//   for i, j: for k: c[i][j] += a[i][k] * b[k][j]
// and departs from it in four steps:
//   1. A tile of TM x TN elements of C stays in registers while k runs (tile.h).
//   2. k is cut into spans of KC, so that the TM x KC panel of A that a row of tiles shares stays in the first-level
//      cache while panels of B pass by.
//   3. N is cut into blocks of NC, so that a KC x NC block of B stays in the second-level cache while all panels of A
//      pass by; M is cut into blocks of MC to bound the scratch.
//   4. Both are packed: copied (transposed where needed) so that the tile reads them in order.
//
// Threads divide C into a grid of rectangles and share nothing but the inputs. Each sum runs over k in spans of KC
// whatever the grid is, so the result has the same bits for any number of threads.
//
// With gpt2c_matmul_bf16 both operands are rounded to bf16 while they are packed, and the sums stay float32. Where the
// CPU multiplies pairs of bf16 numbers, or whole tiles of them (amx.h), the panels hold such pairs; elsewhere they hold the
// rounded numbers as float32.
//
// With very few rows there is nothing to share and packing would cost more than the product: rows times matrix is
// then a row of dot products (row_products), always in float32.
#include "amx.h"
#include "gpt2c.h"
#include "parallel.h"
#include "tile.h"

extern int gpt2c_matmul_bf16;  // set through gpt2c_set_matmul_bf16 (program.c)

enum {
    KC = 384,
    MC = 64 * TM,             // about 900
    NC = 10 * TN,
    SLACK = 2 * VL,           // packed rows are stored in whole vectors
    FEW_ROWS = 4,
    FLOPS_PER_WORK = 16,      // products run this much faster than the simple loops that `work` is counted in
};

typedef struct {
    const float* data;
    ptrdiff_t stride;  // between its rows in memory
    int transposed;    // 0: element (k, i) of the panel is data[k * stride + i]; 1: data[i * stride + k]
} Operand;

size_t K(matmul_scratch)(void) { return (MC + NC) * KC + 2 * SLACK; }

// The two precisions. Panels hold 32-bit elements: one step of k as a float32, or two steps as bf16.
typedef struct {
    int rows;   // of a tile; it has TN columns
    int pairs;  // steps of k in an element
    int steps;  // panels are filled up with zeros to a multiple of so many steps of k
    // dst = panels of columns i0 to i1 over K steps of k from k0 on
    void (*pack_a)(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K);
    void (*pack_b)(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K);
    // c (rows x columns) += a b, or = bias + a b; bias may be NULL
    void (*tile)(float* c, ptrdiff_t c_row, int rows, int64_t columns, int64_t K, const float* a, const float* b, int add,
                 const float* bias);
    void (*begin)(void), (*end)(void);  // before and after a thread's tiles
} Precision;

static void pack(float* dst, int width, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {
    if (!m.transposed) pack_straight(dst, width, m.data + k0 * m.stride + i0, m.stride, i1 - i0, K);
    else
        for (int64_t i = i0; i < i1; i += width)
            pack_transposed(dst + (i - i0) * K, width, m.data + i * m.stride + k0, m.stride, i1 - i < width ? i1 - i : width, K);
}

static void pack_a(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) { pack(dst, TM, m, i0, i1, k0, K); }
static void pack_b(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) { pack(dst, TN, m, i0, i1, k0, K); }

// c (rows x columns) = or += the tile; `bias` is added where the tile is the first of its sum
static inline __attribute__((always_inline)) void
tile_out(float* c, ptrdiff_t c_row, vf sum[][2], int rows, int real_rows, int64_t columns, int add, const float* bias) {
    vf b0 = {0}, b1 = {0};
    if (bias) {
        b0 = vf_load_n(bias, columns);
        if (columns > VL) b1 = vf_load_n(bias + VL, columns - VL);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        if (i == real_rows) break;
        float* ci = c + i * c_row;
        vf s0 = sum[i][0] + b0, s1 = sum[i][1] + b1;
        if (columns >= TN) {
            vf_store(ci, add ? vf_load(ci) + s0 : s0);
            vf_store(ci + VL, add ? vf_load(ci + VL) + s1 : s1);
        } else {
            vf_store_n(ci, add ? vf_load_n(ci, columns) + s0 : s0, columns);
            if (columns > VL)
                vf_store_n(ci + VL, add ? vf_load_n(ci + VL, columns - VL) + s1 : s1, columns - VL);
        }
    }
}

// gcc drops calls of functions that do nothing but prefetch, hence always inline
static inline __attribute__((always_inline)) void prefetch_tile(const float* c, ptrdiff_t c_row, int rows) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < TN; j += 16) __builtin_prefetch(c + i * c_row + j, 1);  // both lines
}

static void tile(float* c, ptrdiff_t c_row, int rows, int64_t columns, int64_t K, const float* a, const float* b,
                 int add, const float* bias) {
#define TILE_ROWS(n)                                                  \
    {                                                                 \
        vf sum[n][2];                                                 \
        tile_sums(sum, n, K, a, 1, TM, b, TN);                        \
        tile_out(c, c_row, sum, n, rows, columns, add, bias);         \
    }
    prefetch_tile(c, c_row, rows);
    TILE_DISPATCH(rows, TILE_ROWS)
#undef TILE_ROWS
}

static void nothing(void) {}
static const Precision FLOAT32 = {TM, 1, 1, pack_a, pack_b, tile, nothing, nothing};

#ifdef __AVX512BF16__
static void pack_bf16(float* dst, int width, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K, int64_t pairs) {
    int32_t* panel = (int32_t*)dst;
    if (!m.transposed) pack_straight_bf16(panel, width, m.data + k0 * m.stride + i0, m.stride, i1 - i0, K, pairs);
    else
        for (int64_t i = i0; i < i1; i += width)
            pack_transposed_bf16(panel + (i - i0) * pairs, width, m.data + i * m.stride + k0, m.stride,
                                 i1 - i < width ? i1 - i : width, K, pairs);
}
#endif

#if defined(__AMX_BF16__)
static int64_t whole_steps(int64_t K) { return (K + AMX_STEPS - 1) / AMX_STEPS * AMX_STEPS; }

static void pack_a_bf16(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {
    int64_t steps = whole_steps(K);
    if (!m.transposed) amx_pack_columns(dst, m.data + k0 * m.stride + i0, m.stride, i1 - i0, K, steps);
    else
        for (int64_t i = i0; i < i1; i += AMX_ROWS)
            amx_pack_rows(dst + (i - i0) * steps / 2, m.data + i * m.stride + k0, m.stride, i1 - i, K, steps);
}

static void pack_b_bf16(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {
    pack_bf16(dst, TN, m, i0, i1, k0, K, whole_steps(K) / 2);
}

// The tile starts from c, or from the bias in every row. Where it is not full, that happens in a copy.
static void tile_bf16(float* c, ptrdiff_t c_row, int rows, int64_t columns, int64_t K, const float* a, const float* b,
                      int add, const float* bias) {
    static const float zeros[TN];
    if (rows == AMX_ROWS && columns >= TN) {
        amx_tile(c, c_row, add ? c : bias ? bias : zeros, add ? c_row : 0, K, a, b);
        return;
    }
    float copy[AMX_ROWS][TN] = {0};
    size_t used = (columns < TN ? columns : TN) * sizeof(float);
    for (int i = 0; i < rows; i++)
        if (add || bias) memcpy(copy[i], add ? c + i * c_row : bias, used);
    amx_tile(copy[0], TN, copy[0], TN, K, a, b);
    for (int i = 0; i < rows; i++) memcpy(c + i * c_row, copy[i], used);
}

static const Precision BF16 = {AMX_ROWS, 2, AMX_STEPS, pack_a_bf16, pack_b_bf16, tile_bf16, amx_begin, amx_end};

#elif defined(__AVX512BF16__)
static void pack_a_bf16(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {
    pack_bf16(dst, TM, m, i0, i1, k0, K, (K + 1) / 2);
}

static void pack_b_bf16(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {
    pack_bf16(dst, TN, m, i0, i1, k0, K, (K + 1) / 2);
}

static void tile_bf16(float* c, ptrdiff_t c_row, int rows, int64_t columns, int64_t K, const float* a, const float* b,
                      int add, const float* bias) {
#define TILE_ROWS(n)                                                                      \
    {                                                                                     \
        vf sum[n][2];                                                                     \
        tile_sums_bf16(sum, n, (K + 1) / 2, (const int32_t*)a, (const int32_t*)b);        \
        tile_out(c, c_row, sum, n, rows, columns, add, bias);                             \
    }
    prefetch_tile(c, c_row, rows);
    TILE_DISPATCH(rows, TILE_ROWS)
#undef TILE_ROWS
}

static const Precision BF16 = {TM, 2, 2, pack_a_bf16, pack_b_bf16, tile_bf16, nothing, nothing};

#else
static void round_panels(float* panels, int width, int64_t columns, int64_t K) {
    for (int64_t n = 0; n < K * ((columns + width - 1) / width * width); n += VL)
        vf_store(panels + n, vf_round_bf16(vf_load(panels + n)));
}

static void pack_a_bf16(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {
    pack_a(dst, m, i0, i1, k0, K);
    round_panels(dst, TM, i1 - i0, K);
}

static void pack_b_bf16(float* dst, Operand m, int64_t i0, int64_t i1, int64_t k0, int64_t K) {
    pack_b(dst, m, i0, i1, k0, K);
    round_panels(dst, TN, i1 - i0, K);
}

static const Precision BF16 = {TM, 1, 1, pack_a_bf16, pack_b_bf16, tile, nothing, nothing};
#endif

// n cut into equal blocks of at most `most`, each but the last a multiple of `step`
static int64_t block_size(int64_t n, int64_t most, int64_t step) {
    int64_t blocks = (n + most - 1) / most, size = blocks ? (n + blocks - 1) / blocks : step;
    return (size + step - 1) / step * step;
}

// C[m0..m1) x [n0..n1) on one thread
static void product_rectangle(const Precision* p, float* c, ptrdiff_t c_row, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                              int64_t K, Operand a, Operand b, int add, const float* bias, float* scratch) {
    float *a_pack = scratch, *b_pack = scratch + MC * KC + SLACK;
    const int64_t MB = block_size(m1 - m0, MC, p->rows), NB = block_size(n1 - n0, NC, TN), KB = p->pairs * KC;
    p->begin();
    for (int64_t mc = m0; mc < m1; mc += MB) {
        int64_t m_end = mc + MB < m1 ? mc + MB : m1;
        for (int64_t k = 0; k < K || k == 0; k += KB) {  // a sum of nothing is stored too
            int64_t k_len = K - k < KB ? K - k : KB;
            int64_t packed = (k_len + p->steps - 1) / p->steps * p->steps / p->pairs;  // length of a packed column
            p->pack_a(a_pack, a, mc, m_end, k, k_len);
            for (int64_t nc = n0; nc < n1; nc += NB) {
                int64_t n_end = nc + NB < n1 ? nc + NB : n1;
                p->pack_b(b_pack, b, nc, n_end, k, k_len);
                for (int64_t i = mc; i < m_end; i += p->rows)
                    for (int64_t j = nc; j < n_end; j += TN)
                        p->tile(c + i * c_row + j, c_row, m_end - i < p->rows ? m_end - i : p->rows, n_end - j, k_len,
                                a_pack + (i - mc) * packed, b_pack + (j - nc) * packed, add || k > 0,
                                k == 0 && bias ? bias + j : NULL);
            }
        }
    }
    p->end();
}

// The grid of rectangles, rows x columns = threads, that packs least: each thread packs its share of A and of B.
static void choose_grid(int threads, int tile_rows, int64_t M, int64_t N, int* rows, int* columns) {
    double best = 0;
    for (int r = 1; r <= threads; r++) {
        if (threads % r) continue;
        int64_t tiles_m = (M + tile_rows - 1) / tile_rows, tiles_n = (N + TN - 1) / TN, q = threads / r;
        double m = (tiles_m + r - 1) / r * tile_rows, n = (tiles_n + q - 1) / q * TN;
        double cost = m * n + 16 * (m + n);  // packing an element costs about as much as 16 multiply-adds
        if (r == 1 || cost < best) best = cost, *rows = r, *columns = q;
    }
}

static void product(float* c, int64_t M, int64_t N, int64_t K, Operand a, Operand b, int add, const float* bias,
                    float* scratch) {
    int64_t work = 2 * M * N * K / FLOPS_PER_WORK;
    const Precision* p = gpt2c_matmul_bf16 ? &BF16 : &FLOAT32;
    int grid_m, grid_n;
    choose_grid(threads_for(work), p->rows, M, N, &grid_m, &grid_n);
    int64_t tiles_m = (M + p->rows - 1) / p->rows, tiles_n = (N + TN - 1) / TN;
    PARALLEL_FOR(work)
    for (int t = 0; t < grid_m * grid_n; t++) {
        int64_t gm = t / grid_n, gn = t % grid_n;
        int64_t m0 = tiles_m * gm / grid_m * p->rows, m1 = tiles_m * (gm + 1) / grid_m * p->rows;
        int64_t n0 = tiles_n * gn / grid_n * TN, n1 = tiles_n * (gn + 1) / grid_n * TN;
        product_rectangle(p, c, N, m0, m1 < M ? m1 : M, n0, n1 < N ? n1 : N, K, a, b, add, bias,
                          scratch + thread_index() * K(matmul_scratch)());
    }
}

// out[r][n] = x[r] . w[n] + b[n] for a few rows of x. Each row of w is read once, one after the other: memory is the
// limit here, and it likes a single stream (reading four rows side by side was a fifth slower). Hardware that fetches
// ahead stops at the end of a page, which software does not.
static void row_products(float* out, const float* x, const float* w, const float* b, int64_t R, int64_t C, int64_t N) {
    enum { LINE = 16, AHEAD = 44 * LINE };  // floats; anything from 20 to 50 lines does
    PARALLEL_FOR(2 * N * C)
    for (int64_t n = 0; n < N; n++) {
        const float* wn = w + n * C;
        for (int64_t r = 0; r < R; r++) {
            const float* xr = x + r * C;
            vf sum[4] = {0};
            int64_t c = 0;
            for (; c + 4 * VL <= C; c += 4 * VL)
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    if (i * VL % LINE == 0) __builtin_prefetch(wn + c + i * VL + AHEAD);
                    sum[i] += vf_load(xr + c + i * VL) * vf_load(wn + c + i * VL);
                }
            for (; c < C; c += VL) sum[0] += vf_load_n(xr + c, C - c) * vf_load_n(wn + c, C - c);
            out[r * N + n] = vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) + (b ? b[n] : 0.0f);
        }
    }
}

void K(matmul_forward)(float* out, const float* x, const float* w, const float* b,
                       int64_t R, int64_t C, int64_t N, float* scratch) {
    if (R <= FEW_ROWS) row_products(out, x, w, b, R, C, N);
    else product(out, R, N, C, (Operand){x, C, 1}, (Operand){w, C, 1}, 0, b, scratch);
}

void K(matmul_backward_x)(float* dx, const float* dout, const float* w, int64_t R, int64_t C, int64_t N, int64_t add,
                          float* scratch) {
    product(dx, R, C, N, (Operand){dout, N, 1}, (Operand){w, C, 0}, add, NULL, scratch);
}

void K(matmul_backward_w)(float* dw, float* db, const float* dout, const float* x,
                          int64_t R, int64_t C, int64_t N, int64_t add, float* scratch) {
    product(dw, N, C, R, (Operand){dout, N, 0}, (Operand){x, C, 0}, add, NULL, scratch);
    if (!db) return;
    enum { VECTORS = 8 };  // so many columns at once that a row is read in pieces which memory likes
    PARALLEL_FOR(2 * R * N)
    for (int64_t first = 0; first < N; first += VECTORS * VL) {
        vf sum[VECTORS] = {0};
        for (int64_t r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int i = 0; i < VECTORS; i++) {
                int64_t n = first + i * VL;
                if (n < N) sum[i] += vf_load_n(dout + r * N + n, N - n);
            }
        for (int64_t i = 0, n = first; i < VECTORS && n < N; i++, n += VL)
            vf_store_n(db + n, add ? vf_load_n(db + n, N - n) + sum[i] : sum[i], N - n);
    }
}
