// One step of RWKV's time mixing, elementwise along a row of H channels, forward and backward side by side. The products
// between its parts are gru.c's; the formulas are in gpt2c.h.
//
// k is clamped and the decay below 1, so num and den stay finite without a running maximum. Only exp(u + k) could leave
// float32's range: numerator and denominator are both divided by exp(m), m = max(u + k, 0).
#ifndef GPT2C_WKV_H
#define GPT2C_WKV_H

#include "simd.h"

#define WKV_EPS 1e-8f
#define WKV_CLAMP 10.0f

#define FOR_CHANNELS(c, H) for (int64_t c = 0, left = (H); c < (H); c += VL, left -= VL)

// Rows of one step. In the forward, k, decay and first hold products on entry: of the shifted and the plain candidate.
typedef struct {
    const float *time_decay, *time_first, *num0, *den0;  // the state before this step
    float *k, *v, *decay, *first, *q, *num, *den, *gated;
} Mixing;

// w = time_decay + 0.5 decay (decay = tanh of a product);  returns exp(w), at most exp(80): beyond, nothing is left anyway
static inline vf decay_rate(vf time_decay, vf decay) {
    return vf_exp(vf_min(decay * 0.5f + time_decay, vf_splat(80.0f)));
}

// The two shares of wkv = fresh v + stale num0, and the reciprocal of exp(m) times the denominator.
typedef struct {
    vf fresh, stale, wkv;
} Shares;

static inline Shares wkv_shares(vf uk, vf v, vf num0, vf den0) {
    vf m = vf_max(uk, (vf){0}), a = vf_exp(uk - m), b = vf_exp(-m);
    vf inverse = 1.0f / (a + b * (den0 + WKV_EPS));
    Shares s = {a * inverse, b * inverse};
    s.wkv = s.fresh * v + s.stale * num0;
    return s;
}

static void wkv_forward(Mixing x, int64_t H) {
    FOR_CHANNELS(c, H) {
        vf k = vf_max(vf_splat(-WKV_CLAMP), vf_min(vf_splat(WKV_CLAMP), vf_load_n(x.k + c, left)));
        vf v = vf_load_n(x.v + c, left), num0 = vf_load_n(x.num0 + c, left), den0 = vf_load_n(x.den0 + c, left);
        vf decay = vf_tanh(vf_load_n(x.decay + c, left)), first = vf_tanh(vf_load_n(x.first + c, left));
        vf u = first * 0.3f + vf_load_n(x.time_first + c, left);
        vf d = vf_exp(-decay_rate(vf_load_n(x.time_decay + c, left), decay)), ek = vf_exp(k);
        vf_store_n(x.gated + c, vf_load_n(x.q + c, left) * wkv_shares(u + k, v, num0, den0).wkv, left);
        vf_store_n(x.k + c, k, left);
        vf_store_n(x.decay + c, decay, left);
        vf_store_n(x.first + c, first, left);
        vf_store_n(x.num + c, d * num0 + ek * v, left);
        vf_store_n(x.den + c, d * den0 + ek, left);
    }
}

// Gradients of one step. On entry num and den hold those of the state after the step, on return those of the state before.
typedef struct {
    const float* gated;
    float *q, *k, *v, *decay, *first, *num, *den, *time_decay, *time_first;  // q, decay, first: of the functions' arguments
} MixingGrad;

static void wkv_backward(MixingGrad g, Mixing x, int64_t H) {
    FOR_CHANNELS(c, H) {
        vf k = vf_load_n(x.k + c, left), v = vf_load_n(x.v + c, left), q = vf_load_n(x.q + c, left);
        vf num0 = vf_load_n(x.num0 + c, left), den0 = vf_load_n(x.den0 + c, left);
        vf decay = vf_load_n(x.decay + c, left), first = vf_load_n(x.first + c, left);
        vf u = first * 0.3f + vf_load_n(x.time_first + c, left), ek = vf_exp(k);
        vf rate = decay_rate(vf_load_n(x.time_decay + c, left), decay), d = vf_exp(-rate);
        Shares s = wkv_shares(u + k, v, num0, den0);

        vf dgated = vf_load_n(g.gated + c, left), dnum = vf_load_n(g.num + c, left), dden = vf_load_n(g.den + c, left);
        vf dwkv = dgated * q, du = dwkv * s.fresh * (v - s.wkv);
        vf dk = du + (dnum * v + dden) * ek;
        vi inside = (vi)((k > -WKV_CLAMP) & (k < WKV_CLAMP));
        vf dw = -(dnum * num0 + dden * den0) * d * rate;
        vf_store_n(g.q + c, dgated * s.wkv * q * (1.0f - q), left);
        vf_store_n(g.k + c, (vf)((vi)dk & inside), left);
        vf_store_n(g.v + c, dwkv * s.fresh + dnum * ek, left);
        vf_store_n(g.decay + c, dw * 0.5f * (1.0f - decay * decay), left);
        vf_store_n(g.first + c, du * 0.3f * (1.0f - first * first), left);
        vf_store_n(g.num + c, dwkv * s.stale + dnum * d, left);
        vf_store_n(g.den + c, dden * d - dwkv * s.stale * s.wkv, left);
        vf_store_n(g.time_decay + c, vf_load_n(g.time_decay + c, left) + dw, left);
        vf_store_n(g.time_first + c, vf_load_n(g.time_first + c, left) + du, left);
    }
}

#endif
