// One vector type for every instruction set. The only file that asks which set it is compiled for.
//
// `vf` holds VL floats and `vi` VL ints; arithmetic on them is the compiler's own (GNU C vectors), so kernels read
// like scalar code. A row that is not a multiple of VL ends in a zero-padded vector that runs through the same
// code (vf_load_n, vf_store_n): a value never depends on its position in the row.
#ifndef GPT2C_SIMD_H
#define GPT2C_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define VL 16
#define VF_MAX(a, b) _mm512_max_ps(a, b)
#define VF_MIN(a, b) _mm512_min_ps(a, b)
#elif defined(__AVX__)
#include <immintrin.h>
#define VL 8
#define VF_MAX(a, b) _mm256_max_ps(a, b)
#define VF_MIN(a, b) _mm256_min_ps(a, b)
#else
#define VL 4
#define VF_MAX(a, b) vf_select((a) > (b), a, b)
#define VF_MIN(a, b) vf_select((a) < (b), a, b)
#endif

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));  // for arithmetic modulo 2^32
typedef float vf_unaligned __attribute__((vector_size(4 * VL), aligned(4), may_alias));

typedef uint32_t vu_unaligned __attribute__((vector_size(4 * VL), aligned(1), may_alias));

static inline vu vu_load(const void* p) { return *(const vu_unaligned*)p; }
static inline vf vf_load(const float* p) { return *(const vf_unaligned*)p; }
static inline void vf_store(float* p, vf v) { *(vf_unaligned*)p = v; }
static inline vf vf_splat(float x) { return x - (vf){0}; }  // x - 0 keeps the sign of a zero, 0 + x does not

// Lane numbers as a vector: LANES(f, s) is f(0, s), f(1, s), ...
#define LANES4(f, s, i) f(i, s), f(i + 1, s), f(i + 2, s), f(i + 3, s)
#if VL == 16
#define LANE_LIST(f, s) LANES4(f, s, 0), LANES4(f, s, 4), LANES4(f, s, 8), LANES4(f, s, 12)
#elif VL == 8
#define LANE_LIST(f, s) LANES4(f, s, 0), LANES4(f, s, 4)
#else
#define LANE_LIST(f, s) LANES4(f, s, 0)
#endif
#define LANES(f, s) (vi){LANE_LIST(f, s)}

// Lane i is lane f(i, s) of a, or of b from VL on.
#ifdef __clang__
#define VF_SHUFFLE(a, b, f, s) __builtin_shufflevector(a, b, LANE_LIST(f, s))
#else
#define VF_SHUFFLE(a, b, f, s) __builtin_shuffle(a, b, LANES(f, s))
#endif

// The first n lanes only, where n < VL.
#if VL == 16
static inline vf load_first(const float* p, ptrdiff_t n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
static inline void store_first(float* p, vf v, ptrdiff_t n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v); }
#elif VL == 8
#define LANE_NUMBER(i, s) (i)
static inline __m256i first_lanes(ptrdiff_t n) { return (__m256i)(LANES(LANE_NUMBER, 0) < (int32_t)n); }
static inline vf load_first(const float* p, ptrdiff_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
static inline void store_first(float* p, vf v, ptrdiff_t n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
#else
static inline vf load_first(const float* p, ptrdiff_t n) {
    vf v = {0};
    memcpy(&v, p, n * sizeof(float));
    return v;
}
static inline void store_first(float* p, vf v, ptrdiff_t n) { memcpy(p, &v, n * sizeof(float)); }
#endif

static inline vf vf_load_n(const float* p, ptrdiff_t n) { return n >= VL ? vf_load(p) : load_first(p, n); }

static inline void vf_store_n(float* p, vf v, ptrdiff_t n) {
    if (n >= VL) vf_store(p, v);
    else store_first(p, v, n);
}

// Lanes of a where the mask is all ones, of b where it is zero (?: on vectors exists only in C++).
static inline vf vf_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

// A NaN in the second operand is kept, as the x86 instructions do.
static inline vf vf_max(vf a, vf b) { return VF_MAX(a, b); }
static inline vf vf_min(vf a, vf b) { return VF_MIN(a, b); }

// Rounded to bf16, the upper half of a float32: to nearest, ties to even; a NaN stays one.
static inline vf vf_round_bf16(vf x) {
    vi bits = (vi)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000;
    return vf_select(x == x, (vf)rounded, x);
}

// VL numbers of 16 or 8 bits, or whole numbers, as float32. Float16 as the CPU's instruction does it, subnormals included.
static inline vf vf_from_i32(vi v) { return __builtin_convertvector(v, vf); }

typedef uint16_t half_vector __attribute__((vector_size(2 * VL), aligned(1), may_alias));
typedef uint8_t byte_vector __attribute__((vector_size(VL), aligned(1), may_alias));
typedef int8_t signed_byte_vector __attribute__((vector_size(VL), aligned(1), may_alias));
static inline vf vf_from_u8(const void* p) { return vf_from_i32(__builtin_convertvector(*(const byte_vector*)p, vi)); }
static inline vf vf_from_i8(const void* p) { return vf_from_i32(__builtin_convertvector(*(const signed_byte_vector*)p, vi)); }
static inline vf vf_from_bf16(const void* p) { return (vf)(__builtin_convertvector(*(const half_vector*)p, vu) << 16); }

#if VL == 16
static inline vf vf_from_f16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
#elif defined(__F16C__)
static inline vf vf_from_f16(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
#else
static inline vf vf_from_f16(const void* p) {
    vu half = __builtin_convertvector(*(const half_vector*)p, vu), size = half & 0x7fff;
    vf tiny = vf_from_i32((vi)size) * 0x1p-24f;  // below 2^-14 the bits count steps of 2^-24
    vu normal = (size << 13) + ((vu)((vi)(size >= 0x7c00)) & (112u << 23)) + (112u << 23);  // exponents of infinity, NaN: twice
    return (vf)((vu)vf_select((vi)(size < 0x400), tiny, (vf)normal) | (half & 0x8000) << 16);
}
#endif

// The nearest bf16 numbers, and float16 ones, ties to even: their bits.
static inline half_vector vf_to_bf16(vf x) { return __builtin_convertvector((vu)vf_round_bf16(x) >> 16, half_vector); }

#if VL == 16
static inline half_vector vf_to_f16(vf x) { return (half_vector)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__F16C__)
static inline half_vector vf_to_f16(vf x) { return (half_vector)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
#else
static inline half_vector vf_to_f16(vf x) {
    const vi sign = (vi)x & (int32_t)0x80000000, size = (vi)x ^ sign;
    vi normal = (size + 0xfff + ((size >> 13) & 1) - (112 << 23)) >> 13;       // rounded, then the exponent's other offset
    vi tiny = (vi)((vf)size + 0.5f) - 0x3f000000;                              // below 2^-14 in steps of 2^-24, as 0.5 has them
    vi half = (vi)vf_select(size < 0x38800000, (vf)tiny, (vf)normal);
    half = (vi)vf_select(size >= 0x477ff000, (vf)(0x7c00 + (vi){0}), (vf)half);  // rounds to 65536 or more: infinity
    half = (vi)vf_select(size > 0x7f800000, (vf)(0x7e00 + (vi){0}), (vf)half);
    return __builtin_convertvector((vu)(half | ((sign >> 16) & 0x8000)), half_vector);
}
#endif

// Dot products of bytes, codes from 0 to 255, with whole numbers of 16 bits, exactly: four of each in a lane. The numbers are
// prepared (quads) as two parts for which there are instructions; their sums are kept apart until the end.
typedef struct { vi a, b; } QuadSums;
enum { QUAD_MOST = 127 * 256 };  // the most that a number may be in size
#define LANE_SECOND_NEXT(i, s) (((i) + 2) % VL)

// a, b = the parts of VL numbers, one of each for every four
static inline void quads(int32_t* a, int32_t* b, vi x) {
#ifdef __AVX512VNNI__
    _mm_storeu_si128((__m128i*)a, _mm512_cvtepi32_epi8((__m512i)((x + 128) >> 8)));  // x = 256 a + b, in signed bytes
    _mm_storeu_si128((__m128i*)b, _mm512_cvtepi32_epi8((__m512i)x));
#else
    vi pairs = (vi)VF_SHUFFLE((vf)x, (vf)x, LANE_SECOND_NEXT, 0) << 16 | (x & 0xffff);  // a: the first and the third, b: the others
    for (int i = 0; i < VL; i += 4) a[i / 4] = pairs[i], b[i / 4] = pairs[i + 1];
#endif
}

#if VL == 16
#define MULTIPLY_PAIRS(x, y) (vi)_mm512_madd_epi16((__m512i)(x), _mm512_set1_epi32(y))
#elif VL == 8
#define MULTIPLY_PAIRS(x, y) (vi)_mm256_madd_epi16((__m256i)(x), _mm256_set1_epi32(y))
#elif defined(__SSE2__)
#include <emmintrin.h>
#define MULTIPLY_PAIRS(x, y) (vi)_mm_madd_epi16((__m128i)(x), _mm_set1_epi32(y))
#else
#define MULTIPLY_PAIRS(x, y) ((vi)((x) & 0xffff) * (int16_t)(y) + (vi)((x) >> 16) * ((y) >> 16))
#endif

static inline __attribute__((always_inline)) void quad_dot(QuadSums* sums, vu codes, int32_t a, int32_t b) {
#ifdef __AVX512VNNI__
    sums->a = (vi)_mm512_dpbusd_epi32((__m512i)sums->a, (__m512i)codes, _mm512_set1_epi32(a));
    sums->b = (vi)_mm512_dpbusd_epi32((__m512i)sums->b, (__m512i)codes, _mm512_set1_epi32(b));
#else
    sums->a += MULTIPLY_PAIRS(codes & 0x00ff00ff, a);
    sums->b += MULTIPLY_PAIRS(codes >> 8 & 0x00ff00ff, b);
#endif
}

static inline vi quad_total(QuadSums sums) {
#ifdef __AVX512VNNI__
    return (sums.a << 8) + sums.b;
#else
    return sums.a + sums.b;
#endif
}

// Sum and maximum over the lanes: each round adds the vector to itself, turned by half of what is left.
#define LANE_TURNED(i, s) (((i) + (s)) % VL)
#define TURNED(v, s) VF_SHUFFLE(v, v, LANE_TURNED, s)

static inline float vf_sum(vf v) {
#if VL == 16
    v += TURNED(v, 8);
#endif
#if VL >= 8
    v += TURNED(v, 4);
#endif
    v += TURNED(v, 2);
    v += TURNED(v, 1);
    return v[0];
}

static inline float vf_hmax(vf v) {
#if VL == 16
    v = vf_max(v, TURNED(v, 8));
#endif
#if VL >= 8
    v = vf_max(v, TURNED(v, 4));
#endif
    v = vf_max(v, TURNED(v, 2));
    v = vf_max(v, TURNED(v, 1));
    return v[0];
}

// e^x within 1.5 ulp; 0 below -104, inf above 89, NaN stays NaN.
// x = n ln2 + r with |r| <= ln2 / 2; e^r = 1 + r + r^2 P(r), P of degree 4 fitted to a relative error of 3.1e-9;
// 2^n is applied in two halves so that it may overflow or become subnormal the way the true value does. What becomes 0
// is computed as e^0 and masked: a product that underflows costs a CPU a hundred cycles.
static inline vf vf_exp(vf x) {
    const vf magic = vf_splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
    const vi not_zero = ~(vi)(x < -104.0f);
    x = vf_min(vf_splat(89.0f), (vf)((vi)x & not_zero));
    vf t = x * 1.44269504f + magic;
    vi n = (vi)t - (vi)magic;
    vf k = t - magic;
    vf r = x - k * 0.693359375f;  // ln2 = 0.693359375 - 2.12194440e-4: the first product is exact
    r = r + k * 2.12194440e-4f;
    vf p = r * 1.381445419e-03f + 8.368780266e-03f;
    p = p * r + 4.166839437e-02f;
    p = p * r + 1.666652011e-01f;
    p = p * r + 4.999999341e-01f;
    p = p * (r * r) + r + 1.0f;
    vi half = n >> 1;
    p = p * (vf)((half + 127) << 23) * (vf)((n - half + 127) << 23);
    return (vf)((vi)p & not_zero);
}

// 1 / (1 + e^-x), 0 below -89
static inline vf vf_logistic(vf x) { return 1.0f / (vf_exp(-x) + 1.0f); }

// tanh x within 4 ulp; NaN stays NaN.
// Below 0.55: x + x^3 Q(x^2), Q of degree 4 fitted to a relative error of 3e-9. Above: 1 - 2 / (e^2|x| + 1), where what
// is subtracted is no longer close to 1.
static inline vf vf_tanh(vf x) {
    const vi sign = (vi)x & (int32_t)0x80000000;
    vf size = (vf)((vi)x ^ sign), z = x * x;
    vf q = z * -6.381121464e-03f + 2.115393430e-02f;
    q = q * z + -5.387445167e-02f;
    q = q * z + 1.333282590e-01f;
    q = q * z + -3.333332539e-01f;
    vf large = 1.0f - 2.0f / (vf_exp(size + size) + 1.0f);
    return vf_select(size < 0.55f, q * z * x + x, (vf)((vi)large | sign));
}

// Lane i is, or goes to, base[index[i]]; in the scatter, no two lanes may have the same index.
static inline vf vf_gather(const float* base, vi index) {
#if VL == 16
    return (vf)_mm512_i32gather_ps((__m512i)index, base, 4);
#elif defined(__AVX2__)
    return (vf)_mm256_i32gather_ps(base, (__m256i)index, 4);
#else
    vf v;
    for (int i = 0; i < VL; i++) v[i] = base[index[i]];
    return v;
#endif
}

static inline void vf_scatter(float* base, vi index, vf v) {
#if VL == 16
    _mm512_i32scatter_ps(base, (__m512i)index, (__m512)v, 4);
#else
    for (int i = 0; i < VL; i++) base[index[i]] = v[i];
#endif
}

// Transposes a square of VL rows: log2(VL) rounds, each exchanging the off-diagonal halves of ever smaller blocks.
#define LANE_UPPER(i, s) ((i) & (s) ? VL + (i) - (s) : (i))
#define LANE_LOWER(i, s) ((i) & (s) ? VL + (i) : (i) + (s))
#define EXCHANGE_BLOCKS(r, s)                                             \
    _Pragma("GCC unroll 16") for (int i = 0; i < VL; i++) if (!(i & (s))) { \
        vf upper = r[i], lower = r[i + (s)];                              \
        r[i] = VF_SHUFFLE(upper, lower, LANE_UPPER, s);          \
        r[i + (s)] = VF_SHUFFLE(upper, lower, LANE_LOWER, s);    \
    }

static inline __attribute__((always_inline)) void vf_transpose(vf r[VL]) {
#if VL == 16
    EXCHANGE_BLOCKS(r, 8)
#endif
#if VL >= 8
    EXCHANGE_BLOCKS(r, 4)
#endif
    EXCHANGE_BLOCKS(r, 2)
    EXCHANGE_BLOCKS(r, 1)
}

// Lane i of the result is the sum over the lanes of r[i].
static inline __attribute__((always_inline)) vf vf_sums(vf r[VL]) {
    vf_transpose(r);
    vf sum = r[0];
    for (int i = 1; i < VL; i++) sum += r[i];
    return sum;
}

#endif
