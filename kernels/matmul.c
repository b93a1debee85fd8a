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
//   1. A tile of C, a few rows by TN columns, stays in registers while k runs (tile.h, amx.h).
//   2. k is cut into spans of KC, so that a panel of A, which a row of tiles shares, or one of B, which a column shares, stays
//      in the first-level cache, or near it, while panels of the other pass by.
//   3. N is cut into blocks of NC, so that a KC x NC block of B stays in the second-level cache while all panels of A
//      pass by; M is cut into blocks of MC to bound the scratch.
//   4. Both are packed: copied (transposed where needed) so that the tile reads them in order.
//
// Threads divide C into a grid of rectangles and share nothing but the inputs. Each sum runs over k in spans of KC
// whatever the grid is, so the result has the same bits for any number of threads.
//
// What a packed panel holds, and how a tile of them is multiplied, depends on the precision asked for and on what the CPU can
// do (precision.h). With gpt2c_matmul_bf16 both operands are rounded to bf16, and the sums stay float32.
//
// w may be in any storage type: a few columns of B at a time are decoded to float32 and then packed. Next to the products of
// many rows that costs nothing. (What decoding steps need instead is in few_rows.c.)
#include "gpt2c.h"
#include "parallel.h"
#include "precision.h"
#include "stored.h"

enum {
    MC = 64 * TM,             // about 900
    SLACK = 2 * VL,           // packed rows are stored in whole vectors
    FLOPS_PER_WORK = 16,      // products run this much faster than the simple loops that `work` is counted in
    // A panel of B is the larger one and better kept, if the first-level cache of 32 to 48 KB holds it beside one of A.
    B_STAYS = TN * PACKED * sizeof(float) <= 24 * 1024,
};

enum {
    DECODED_COLUMNS = 32,  // of b, at a time
    DECODED_WIDTH = TN % BLOCK ? 2 * BLOCK : BLOCK,  // what they may lie across
    DECODED = 2 * KC * DECODED_WIDTH,
};

size_t FN(matmul_scratch)(void) { return (MC + NC) * PACKED + 2 * SLACK + DECODED; }

// n cut into equal blocks of at most `most`, each but the last a multiple of `step`
static int64_t block_size(int64_t n, int64_t most, int64_t step) {
    int64_t blocks = (n + most - 1) / most, size = blocks ? (n + blocks - 1) / blocks : step;
    return (size + step - 1) / step * step;
}

// As Precision's pack_b, of a matrix in any storage type. `packed`: floats of a packed column
static void pack_stored(const Precision* p, float* dst, int64_t packed, Operand b, int64_t n0, int64_t n1, int64_t k0, int64_t K,
                        float* decoded) {
    if (b.type == AS_F32) {
        p->pack_b(dst, b, n0, n1, k0, K);
        return;
    }
    const Matrix w = {b.data, b.type, b.stride};
    for (int64_t n = n0; n < n1; n += DECODED_COLUMNS) {
        const int64_t count = n1 - n < DECODED_COLUMNS ? n1 - n : DECODED_COLUMNS;
        Operand part;
        if (b.transposed) {
            decode(decoded, K, w, n, n + count, k0, k0 + K);
            part = (Operand){decoded, K, 1};
        } else {
            const int64_t first = n / BLOCK * BLOCK, last = first + DECODED_WIDTH;
            decode(decoded, DECODED_WIDTH, w, k0, k0 + K, first, last < b.stride ? last : b.stride);
            part = (Operand){decoded + n - first, DECODED_WIDTH, 0};
        }
        p->pack_b(dst + (n - n0) * packed, part, 0, count, 0, K);
    }
}

// C[m0..m1) x [n0..n1) on one thread
static void product_rectangle(const Precision* p, float* c, ptrdiff_t c_row, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                              int64_t K, Operand a, Operand b, int add, const float* bias, float* scratch) {
    float *a_pack = scratch, *b_pack = scratch + MC * PACKED + SLACK, *decoded = b_pack + NC * PACKED + SLACK;
    const int64_t MB = block_size(m1 - m0, MC, TILE_ROWS), NB = block_size(n1 - n0, NC, TN), KB = p->span;
    p->begin();
    for (int64_t mc = m0; mc < m1; mc += MB) {
        int64_t m_end = mc + MB < m1 ? mc + MB : m1;
        for (int64_t k = 0; k < K || k == 0; k += KB) {  // a sum of nothing is stored too
            int64_t k_len = K - k < KB ? K - k : KB;
            int64_t packed = (k_len + p->steps - 1) / p->steps * p->steps * p->step_bytes / sizeof(float);  // floats of a row
            p->pack_a(a_pack, a, mc, m_end, k, k_len);
            for (int64_t nc = n0; nc < n1; nc += NB) {
                int64_t n_end = nc + NB < n1 ? nc + NB : n1;
                pack_stored(p, b_pack, packed, b, nc, n_end, k, k_len, decoded);
#define ROWS for (int64_t i = mc; i < m_end; i += TILE_ROWS)
#define COLUMNS for (int64_t j = nc; j < n_end; j += TN)
#define TILE_AT_IJ                                                                                             \
    p->tile(c + i * c_row + j, c_row, m_end - i < TILE_ROWS ? m_end - i : TILE_ROWS, n_end - j, k_len,         \
            a_pack + (i - mc) * packed, b_pack + (j - nc) * packed, add || k > 0, k == 0 && bias ? bias + j : NULL)
                if (B_STAYS) COLUMNS ROWS TILE_AT_IJ;
                else ROWS COLUMNS TILE_AT_IJ;
#undef ROWS
#undef COLUMNS
#undef TILE_AT_IJ
            }
        }
    }
    p->end();
}

// The grid of rectangles, rows x columns = threads, that packs least: each thread packs its share of A and of B.
static void choose_grid(int threads, int64_t M, int64_t N, int* rows, int* columns) {
    double best = 0;
    for (int r = 1; r <= threads; r++) {
        if (threads % r) continue;
        int64_t tiles_m = (M + TILE_ROWS - 1) / TILE_ROWS, tiles_n = (N + TN - 1) / TN, q = threads / r;
        double m = (tiles_m + r - 1) / r * TILE_ROWS, n = (tiles_n + q - 1) / q * TN;
        double cost = m * n + 16 * (m + n);  // packing an element costs about as much as 16 multiply-adds
        if (r == 1 || cost < best) best = cost, *rows = r, *columns = q;
    }
}

// c (M x N), its rows c_row apart
static void product(float* c, ptrdiff_t c_row, int64_t M, int64_t N, int64_t K, Operand a, Operand b, int add,
                    const float* bias, float* scratch) {
    int64_t work = 2 * M * N * K / FLOPS_PER_WORK;
    const Precision* p = gpt2c_matmul_bf16 ? &BF16 : &FLOAT32;
    int grid_m, grid_n;
    choose_grid(threads_for(work), M, N, &grid_m, &grid_n);
    int64_t tiles_m = (M + TILE_ROWS - 1) / TILE_ROWS, tiles_n = (N + TN - 1) / TN;
    PARALLEL_FOR(work)
    for (int t = 0; t < grid_m * grid_n; t++) {
        int64_t gm = t / grid_n, gn = t % grid_n;
        int64_t m0 = tiles_m * gm / grid_m * TILE_ROWS, m1 = tiles_m * (gm + 1) / grid_m * TILE_ROWS;
        int64_t n0 = tiles_n * gn / grid_n * TN, n1 = tiles_n * (gn + 1) / grid_n * TN;
        product_rectangle(p, c, c_row, m0, m1 < M ? m1 : M, n0, n1 < N ? n1 : N, K, a, b, add, bias,
                          scratch + thread_index() * FN(matmul_scratch)());
    }
}

void FN(matmul_forward)(float* out, const float* x, const void* w, const float* b, int64_t R, int64_t P, int64_t C, int64_t N,
                        int64_t at, int64_t w_type, float* scratch) {
    product(out + at, P, R, N, C, (Operand){x, C, 1}, (Operand){w, C, 1, w_type}, 0, b ? b + at : NULL, scratch);
}

void FN(matmul_backward_x)(float* dx, const float* dout, const void* w, int64_t R, int64_t C, int64_t P, int64_t N, int64_t at,
                           int64_t w_type, int64_t add, float* scratch) {
    product(dx, C, R, C, N, (Operand){dout + at, P, 1}, (Operand){w, C, 0, w_type}, add, NULL, scratch);
}

void FN(matmul_backward_w)(float* dw, float* db, const float* dout, const float* x,
                           int64_t R, int64_t C, int64_t N, int64_t add, float* scratch) {
    product(dw, C, N, C, R, (Operand){dout, N, 0}, (Operand){x, C, 0}, add, NULL, scratch);
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
