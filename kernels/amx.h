// The register tile of AMX: bf16 products on tiles of 16 rows of 64 bytes.
//
// One instruction multiplies 16 rows of 32 bf16 numbers by 16 columns of as many and adds them to 16 x 16 float32 sums. Two
// tiles of rows and two of columns are held against each other, four tiles of sums: each tile loaded is used twice.
//
// Rows of a lie as [k/32][32 rows][32 steps], columns of b as pairs of steps, [k/2][32 columns] (tile.h), both filled up with
// zeros to whole 32 steps of k. Sums run over k in order, whatever the borders. Subnormal numbers count as zero.
#ifndef GPT2C_AMX_H
#define GPT2C_AMX_H
#ifdef __AMX_BF16__

#include "tile.h"

enum { AMX_ROWS = 32, AMX_STEPS = 32, AMX_ROW_BYTES = 64 };

// The compiler does not know that these instructions read and write memory.
#define MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

// Before the first product of a thread; until then, and after amx_end, the system need not save its tiles.
static inline void amx_begin(void) {
    struct { uint8_t palette, start, zeros[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.row_bytes[i] = AMX_ROW_BYTES, shape.rows[i] = 16;
    MEMORY_BARRIER();
    _tile_loadconfig(&shape);
}

static inline void amx_end(void) { _tile_release(); }

// c (32 x 32, rows c_row apart) = first + a b, where first has its rows first_row apart: c itself, or one row again and again
static inline void amx_tile(float* c, ptrdiff_t c_row, const float* first, ptrdiff_t first_row, int64_t K,
                            const float* a, const float* b) {
    enum { ROW = AMX_ROW_BYTES / sizeof(float) };
    ptrdiff_t c_stride = c_row * sizeof(float), first_stride = first_row * sizeof(float);
    MEMORY_BARRIER();
    _tile_loadd(0, first, first_stride);
    _tile_loadd(1, first + 16, first_stride);
    _tile_loadd(2, first + 16 * first_row, first_stride);
    _tile_loadd(3, first + 16 * first_row + 16, first_stride);
    for (int64_t k = 0; k < K; k += AMX_STEPS) {
        _tile_loadd(4, a, AMX_ROW_BYTES);
        _tile_loadd(6, b, 2 * AMX_ROW_BYTES);
        _tile_loadd(7, b + ROW, 2 * AMX_ROW_BYTES);
        _tile_loadd(5, a + 16 * ROW, AMX_ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        a += AMX_ROWS * ROW;
        b += AMX_ROWS * ROW;
    }
    _tile_stored(0, c, c_stride);
    _tile_stored(1, c + 16, c_stride);
    _tile_stored(2, c + 16 * c_row, c_stride);
    _tile_stored(3, c + 16 * c_row + 16, c_stride);
    MEMORY_BARRIER();
}

// dst[k/32][i][k%32] = src[i][k] for i < rows; rows up to 32 and steps up to `steps` are zero
static inline void amx_pack_rows(float* dst, const float* src, ptrdiff_t src_row, int64_t rows, int64_t K, int64_t steps) {
    for (int64_t i = 0; i < AMX_ROWS; i++)
        for (int64_t k = 0; k < steps; k += AMX_STEPS) {
            const float* row = src + i * src_row + k;
            vf low = i < rows ? vf_load_n(row, K - k) : (vf){0};
            vf high = i < rows && K - k > VL ? vf_load_n(row + VL, K - k - VL) : (vf){0};
            vf_store(dst + (k * AMX_ROWS + i * AMX_STEPS) / 2, (vf)_mm512_cvtne2ps_pbh(high, low));
        }
}

// The same of a matrix that lies the other way, all its rows: dst[i/32][k/32][i%32][k%32] = src[k][i]
static inline void amx_pack_columns(float* dst, const float* src, ptrdiff_t src_row, int64_t rows, int64_t K, int64_t steps) {
    for (int64_t k = 0; k < steps; k += AMX_STEPS)
        for (int64_t i = 0; i < (rows + AMX_ROWS - 1) / AMX_ROWS * AMX_ROWS; i += VL) {
            vf r[VL];
            for (int j = 0; j < VL; j++) r[j] = vf_bf16_pairs(src + (k + 2 * j) * src_row + i, src_row, K - k - 2 * j, rows - i);
            vf_transpose(r);
            float* tile = dst + (i / AMX_ROWS * steps * AMX_ROWS + k * AMX_ROWS + i % AMX_ROWS * AMX_STEPS) / 2;
            for (int j = 0; j < VL; j++) vf_store(tile + j * AMX_STEPS / 2, r[j]);
        }
}

#endif
#endif
