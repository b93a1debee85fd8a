// The minimal GRU: its gates, and the linear recurrence h_t = a_t h_{t-1} + b_t that they feed.
//
// Each of the B I recurrences is plainly
//   for t: h = a[t] * h + b[t];  out[t] = h
// VL neighbouring ones make a vector, which here is called a stream. A stream waits for its own last step: a multiply-add
// takes four cycles, in which four streams can do a step each. So a thread runs four streams side by side, neighbours in I
// or rows of the batch, each at an offset of its own.
//
// Where there are fewer than four streams and the sequence is long, threads share it: it is cut into STRETCHES of equal
// length. Every stretch is run from a state of 0; then the states at their starts follow, one after the other, from the
// products of a stretch's a; then each stretch receives what its start adds: h_t += (a_first ... a_t) h_start.
//
// The adjoint is the same recurrence backwards in time, on the a of the step after: delta_t = a_{t+1} delta_{t+1} + dh_t.
// Which form is taken depends on the sizes only, so the result has the same bits for any number of threads.
#include <math.h>

#include "gpt2c.h"
#include "parallel.h"
#include "simd.h"

enum {
    SIDE = 4,         // streams side by side
    STRETCHES = 16,
    LONG = 65536,     // steps from which cutting pays (measured: SPEED.md)
};

// Up to SIDE streams: how many, where each begins, and how many of its lanes count.
typedef struct {
    int count;
    ptrdiff_t at[SIDE];
    ptrdiff_t lanes[SIDE];
} Streams;

// out[t] = carry = a[t] carry + b[t] for n steps, `step` apart. `count` is a constant wherever this is inlined.
static inline __attribute__((always_inline)) void
run_streams(float* out, const float* a, const float* b, Streams s, int count, int whole, ptrdiff_t step, int64_t n, vf carry[]) {
    vf h[SIDE];
    for (int j = 0; j < count; j++) h[j] = carry[j];
    for (int64_t t = 0; t < n; t++)
#pragma GCC unroll 4
        for (int j = 0; j < count; j++) {
            ptrdiff_t at = s.at[j] + t * step, lanes = whole ? VL : s.lanes[j];
            h[j] = vf_load_n(a + at, lanes) * h[j] + vf_load_n(b + at, lanes);
            vf_store_n(out + at, h[j], lanes);
        }
    for (int j = 0; j < count; j++) carry[j] = h[j];
}

static void run(float* out, const float* a, const float* b, Streams s, ptrdiff_t step, int64_t n, vf carry[]) {
    int whole = 1;
    for (int j = 0; j < s.count; j++) whole &= s.lanes[j] >= VL;
    if (whole && s.count == SIDE) run_streams(out, a, b, s, SIDE, 1, step, n, carry);
    else if (s.count == SIDE) run_streams(out, a, b, s, SIDE, 0, step, n, carry);
    else
        for (int j = 0; j < s.count; j++)
            run_streams(out, a, b, (Streams){1, {s.at[j]}, {s.lanes[j]}}, 1, s.lanes[j] >= VL, step, n, carry + j);
}

// Streams first, first + 1, ... of the B * ceil(I / VL) that (B, T, I) has.
static Streams streams_from(int64_t first, int64_t B, int64_t T, int64_t I) {
    int64_t vectors = (I + VL - 1) / VL;
    Streams s = {.count = B * vectors - first < SIDE ? (int)(B * vectors - first) : SIDE};
    for (int j = 0; j < s.count; j++) {
        int64_t i = first + j, column = i % vectors * VL;
        s.at[j] = i / vectors * T * I + column;
        s.lanes[j] = I - column;
    }
    return s;
}

// The state of a stream in an array (B, I)
static vf load_state(const float* state, int64_t stream, int64_t I) {
    int64_t vectors = (I + VL - 1) / VL, column = stream % vectors * VL;
    return vf_load_n(state + stream / vectors * I + column, I - column);
}

static void store_state(float* state, vf value, int64_t stream, int64_t I) {
    int64_t vectors = (I + VL - 1) / VL, column = stream % vectors * VL;
    vf_store_n(state + stream / vectors * I + column, value, I - column);
}

// x without what is too small for a normal number. A product of many a ends there, where it would stick at the smallest
// number of all, and each step with such a number costs a CPU a hundred cycles.
static inline vf flushed(vf x) { return (vf)((vi)x & (vi)(vf_max(x, -x) >= 0x1p-126f)); }

static inline int any(vf x) { return vf_hmax(vf_max(x, -x)) > 0; }

// One stream, cut into stretches of n steps; carry is its state before the first step, and after the last. What a start
// adds is followed until nothing is left of it, SPAN steps at a time.
static void run_stretches(float* out, const float* a, const float* b, ptrdiff_t at, ptrdiff_t lanes, ptrdiff_t step, int64_t n,
                          vf* carry) {
    enum { SPAN = 16 };
    vf end[STRETCHES], product[STRETCHES], start[STRETCHES];
    PARALLEL_FOR(4 * n * STRETCHES * VL)
    for (int k = 0; k < STRETCHES; k++) {
        ptrdiff_t first = at + k * n * step;
        vf state = {0}, p = vf_splat(1.0f);
        run(out, a, b, (Streams){1, {first}, {lanes}}, step, n, &state);
        for (int64_t t = 0; t < n && any(p); p = flushed(p))
            for (int i = 0; i < SPAN && t < n; i++, t++) p *= vf_load_n(a + first + t * step, lanes);
        end[k] = state;
        product[k] = p;
    }
    for (int k = 0; k < STRETCHES; k++) {
        start[k] = *carry;
        *carry = product[k] * *carry + end[k];
    }
    PARALLEL_FOR(4 * n * STRETCHES * VL)
    for (int k = 0; k < STRETCHES; k++) {
        vf added = start[k];
        for (int64_t t = 0; t < n && any(added); added = flushed(added))
            for (int i = 0; i < SPAN && t < n; i++, t++) {
                ptrdiff_t now = at + (k * n + t) * step;
                added *= vf_load_n(a + now, lanes);
                vf_store_n(out + now, vf_load_n(out + now, lanes) + added, lanes);
            }
    }
}

// out_t = a_t out_{t-1} + b_t over n steps of every stream of (B, T, I), `step` apart, from the state `start`; the states
// after the last step go to `last`, if it is not NULL.
static void scan(float* out, float* last, const float* a, const float* b, const float* start, int64_t B, int64_t T, int64_t I,
                 ptrdiff_t step, int64_t n) {
    int64_t streams = B * ((I + VL - 1) / VL);
    int cut = streams < SIDE && I >= VL && n >= LONG;
    int64_t stretch = cut ? n / STRETCHES : 0;
    PARALLEL_FOR(cut ? 0 : 4 * n * streams * VL)
    for (int64_t i = 0; i < streams; i += SIDE) {
        Streams s = streams_from(i, B, T, I);
        vf carry[SIDE];
        for (int j = 0; j < s.count; j++) {
            carry[j] = load_state(start, i + j, I);
            if (cut) run_stretches(out, a, b, s.at[j], s.lanes[j], step, stretch, &carry[j]);
            s.at[j] += STRETCHES * stretch * step;
        }
        run(out, a, b, s, step, n - STRETCHES * stretch, carry);
        for (int j = 0; last && j < s.count; j++) store_state(last, carry[j], i + j, I);
    }
}

void FN(scan_forward)(float* out, float* last, const float* a, const float* b, const float* h0, int64_t B, int64_t T, int64_t I) {
    scan(out, last, a, b, h0, B, T, I, I, T);
}

void FN(scan_backward)(float* da, float* db, float* dh0, const float* dout, const float* dlast, const float* a, const float* out,
                       const float* h0, int64_t B, int64_t T, int64_t I) {
    // delta, which is db: at the last step what comes from outside, before that by the recurrence
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < I; i++) {
            int64_t at = (b * T + T - 1) * I + i;
            db[at] = dout[at] + (dlast ? dlast[b * I + i] : 0.0f);
        }
    int64_t end = (T - 1) * I;  // a is read one step later than dout
    float* next = dh0;          // the states that the backwards scan starts from, (B, I)
    for (int64_t b = 0; b < B; b++) memcpy(next + b * I, db + b * T * I + end, I * sizeof(float));
    if (T > 1) scan(db + end - I, NULL, a + end, dout + end - I, next, B, T, I, -I, T - 1);

    PARALLEL_FOR(4 * B * T * I)
    for (int64_t bt = 0; bt < B * T; bt++) {
        const float* before = bt % T ? out + (bt - 1) * I : h0 + bt / T * I;
        for (int64_t i = 0; i < I; i += VL)
            vf_store_n(da + bt * I + i, vf_load_n(db + bt * I + i, I - i) * vf_load_n(before + i, I - i), I - i);
    }
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < I; i++) dh0[b * I + i] = a[b * T * I + i] * db[b * T * I + i];
}

// Gates -----------------------------------------------------------------------------------------------------------

// The logistic function s of x, and 1 - s; neither by subtraction, which would lose the smaller one's digits.
typedef struct {
    vf s, rest;
} Logistic;

static inline Logistic logistic(vf x) {
    vf e = vf_exp(vf_min(x, -x)), large = 1.0f / (e + 1.0f), small = e * large;
    vi negative = x < 0.0f;
    return (Logistic){vf_select(negative, small, large), vf_select(negative, large, small)};
}

// g(x) = x + 1/2 where x >= 0, else the logistic function; and its slope.
static inline vf candidate(vf x, vf* slope) {
    Logistic l = logistic(x);
    vi negative = x < 0.0f;
    *slope = vf_select(negative, l.s * l.rest, vf_splat(1.0f));
    return vf_select(negative, l.s, x + 0.5f);
}

void FN(mingru_gates_forward)(float* a, float* b, const float* x, int64_t R, int64_t I) {
    PARALLEL_FOR(16 * R * I)
    for (int64_t r = 0; r < R; r++)
        for (int64_t i = 0; i < I; i += VL) {
            vf slope, g = candidate(vf_load_n(x + r * 2 * I + i, I - i), &slope);
            Logistic z = logistic(vf_load_n(x + r * 2 * I + I + i, I - i));
            vf_store_n(a + r * I + i, z.rest, I - i);
            vf_store_n(b + r * I + i, z.s * g, I - i);
        }
}

void FN(mingru_gates_backward)(float* dx, const float* da, const float* db, const float* x, int64_t R, int64_t I, int64_t add) {
    PARALLEL_FOR(20 * R * I)
    for (int64_t r = 0; r < R; r++)
        for (int64_t i = 0; i < I; i += VL) {
            vf slope, g = candidate(vf_load_n(x + r * 2 * I + i, I - i), &slope);
            Logistic z = logistic(vf_load_n(x + r * 2 * I + I + i, I - i));
            vf ga = vf_load_n(da + r * I + i, I - i), gb = vf_load_n(db + r * I + i, I - i);
            float *dc = dx + r * 2 * I + i, *dgate = dc + I;
            vf old_c = add ? vf_load_n(dc, I - i) : (vf){0}, old_gate = add ? vf_load_n(dgate, I - i) : (vf){0};
            vf_store_n(dc, old_c + gb * z.s * slope, I - i);
            vf_store_n(dgate, old_gate + (gb * g - ga) * (z.s * z.rest), I - i);
        }
}

// log (1 + e^x)
static double softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }

void FN(mingru_log_forward)(float* out, const float* x, const float* h0, int64_t B, int64_t T, int64_t I) {
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < I; i++) {
            double decay = 0, sum = log(fmax(h0[b * I + i], 1e-10));  // A_t; logarithm of the sum of exp(v_s - A_s)
            for (int64_t t = 0; t < T; t++) {
                double c = x[(b * T + t) * 2 * I + i], gate = x[(b * T + t) * 2 * I + I + i];
                double log_g = c >= 0 ? log(c + 0.5) : -softplus(-c);
                decay -= softplus(gate);
                double v = log_g - softplus(-gate) - decay;
                sum = fmax(sum, v) + log1p(exp(-fabs(sum - v)));
                out[(b * T + t) * I + i] = (float)exp(decay + sum);
            }
        }
}
