// The recurrent layer: a GRU with normed gates, and inside the recurrence, where they are given, RWKV's time mixing
// (wkv.h) and a mixture of experts (moe.h).
//
// What does not wait for the step before is done for all steps at once, outside: the products with the layer's input
// before, and after the backward the products that give the weights' gradients. Here, forward and backward walk through
// time with products of a few rows (rows.h), a row for each sequence. Sequences are independent, so they are divided
// among the threads; each sum is in the order of its own sequence whatever rows go with it.
#include "moe.h"
#include "parallel.h"
#include "wkv.h"

// What the forward keeps: planes of B x T rows. The products whose weights' gradients are taken outside read
// HN, RH, SHIFT_K, SHIFT_V, GATED and C.
enum { HN, RH, GATE_Z, GATE_R, C, BLEND };
enum { SHIFT_K, SHIFT_V, Q, KEY, VALUE, DECAY, FIRST, NUM, DEN, GATED, C2 };
// The gradients of those products' results.
enum { D_Z, D_R, D_C };
enum { D_KEY, D_VALUE, D_DECAY, D_FIRST, D_C2 };
// Vectors of parameters whose gradients each sequence sums up by itself.
enum { V_HID_NORM, V_MOE_NORM, V_DECAY, V_FIRST, V_MU_K, V_MU_V, V_MU_R, VECTORS };

typedef struct {
    int64_t b[MOST_ROWS], at[MOST_ROWS], t;  // the sequences of this task; their rows at this step; the step
    int rows;
} Step;

#define FOR_ROWS(i, step) for (int i = 0; i < (step)->rows; i++)

// The threads' tasks: sequences first to last, at most MOST_ROWS
static int64_t num_tasks(int64_t B, int64_t work) {
    int64_t threads = threads_for(work), fewest = (B + MOST_ROWS - 1) / MOST_ROWS;
    int64_t tasks = B < threads ? B : threads;
    return tasks < fewest ? fewest : tasks;
}

static Step task_rows(int64_t task, int64_t tasks, int64_t B) {
    Step s = {.rows = 0};
    for (int64_t b = B * task / tasks; b < B * (task + 1) / tasks; b++) s.b[s.rows++] = b;
    return s;
}

static void go_to(Step* s, int64_t t, int64_t T) {
    s->t = t;
    FOR_ROWS(i, s) s->at[i] = s->b[i] * T + t;
}

// Floating-point operations of all steps, for parallel.h
static int64_t work_of(int64_t B, int64_t T, int64_t H, int64_t S, int wkv) {
    return B * T * H * H * (2 * (3 + (wkv ? 5 : 0)) + 12 * S);
}

// Row r of a plane
static inline float* plane(const float* planes, int p, int64_t R, int64_t r, int64_t H) {
    return (float*)planes + (p * R + r) * H;
}

// A plane's row one step earlier; before the first step, the state that came in
static inline const float* before(const float* planes, int p, int64_t R, const Step* s, int i, int64_t H, const float* first) {
    return s->t ? plane(planes, p, R, s->at[i] - 1, H) : first + s->b[i] * H;
}

static inline float rstd_of(const float* x, int64_t H, float eps) {
    vf squares = {0};
    FOR_CHANNELS(c, H) {
        vf v = vf_load_n(x + c, left);
        squares += v * v;
    }
    return 1.0f / sqrtf(vf_sum(squares) / H + eps);
}

static void norm_forward(float* out, const float* x, const float* w, int64_t H, float eps) {
    float rstd = rstd_of(x, H, eps);
    FOR_CHANNELS(c, H) vf_store_n(out + c, vf_load_n(x + c, left) * rstd * vf_load_n(w + c, left), left);
}

// dx = base + what goes through the norm, dw += its part
static void norm_backward(float* dx, float* dw, const float* base, const float* dout, const float* x, const float* w, int64_t H,
                          float eps) {
    float rstd = rstd_of(x, H, eps);
    vf sum = {0};
    FOR_CHANNELS(c, H) sum += vf_load_n(dout + c, left) * vf_load_n(w + c, left) * (vf_load_n(x + c, left) * rstd);
    float mean = vf_sum(sum) / H;
    FOR_CHANNELS(c, H) {
        vf n = vf_load_n(x + c, left) * rstd, g = vf_load_n(dout + c, left);
        vf_store_n(dx + c, vf_load_n(base + c, left) + (g * vf_load_n(w + c, left) - n * mean) * rstd, left);
        vf_store_n(dw + c, vf_load_n(dw + c, left) + g * n, left);
    }
}

// out[i] = or += w x[i], each a row of a plane
static void product(float* out, int p_out, const float* x, int p_x, const Step* s, int64_t R, int64_t H, const float* w) {
    float* o[MOST_ROWS];
    const float* in[MOST_ROWS];
    FOR_ROWS(i, s) {
        o[i] = plane(out, p_out, R, s->at[i], H);
        in[i] = plane(x, p_x, R, s->at[i], H);
    }
    rows_forward(o, in, s->rows, w, H, H, 0);
}

static Mixing mixing_of(const float* mixed, const Step* s, int i, int64_t R, int64_t H, const float* num0, const float* den0,
                        const float* time_decay, const float* time_first) {
    int64_t r = s->at[i];
    return (Mixing){time_decay, time_first, before(mixed, NUM, R, s, i, H, num0), before(mixed, DEN, R, s, i, H, den0),
                    plane(mixed, KEY, R, r, H), plane(mixed, VALUE, R, r, H), plane(mixed, DECAY, R, r, H),
                    plane(mixed, FIRST, R, r, H), plane(mixed, Q, R, r, H), plane(mixed, NUM, R, r, H),
                    plane(mixed, DEN, R, r, H), plane(mixed, GATED, R, r, H)};
}

// C2 = C + (Q wkv) wo^T
static void mix(const GruForward* a, const Step* s) {
    const int64_t H = a->H, R = a->B * a->T;
    FOR_ROWS(i, s) {
        const float *now = plane(a->acts, C, R, s->at[i], H), *last = before(a->acts, C, R, s, i, H, a->xprev0);
        float *k = plane(a->mixed, SHIFT_K, R, s->at[i], H), *v = plane(a->mixed, SHIFT_V, R, s->at[i], H);
        float* q = plane(a->mixed, Q, R, s->at[i], H);
        FOR_CHANNELS(c, H) {
            vf x = vf_load_n(last + c, left), step = vf_load_n(now + c, left) - x;
            vf_store_n(k + c, vf_load_n(a->mu_k + c, left) * step + x, left);
            vf_store_n(v + c, vf_load_n(a->mu_v + c, left) * step + x, left);
            vf_store_n(q + c, vf_logistic(vf_load_n(a->mu_r + c, left) * step + x), left);
        }
    }
    product(a->mixed, KEY, a->mixed, SHIFT_K, s, R, H, a->wk);
    product(a->mixed, VALUE, a->mixed, SHIFT_V, s, R, H, a->wv);
    product(a->mixed, DECAY, a->acts, C, s, R, H, a->wdecay);
    product(a->mixed, FIRST, a->acts, C, s, R, H, a->wfirst);
    FOR_ROWS(i, s) wkv_forward(mixing_of(a->mixed, s, i, R, H, a->num0, a->den0, a->time_decay, a->time_first), H);
    product(a->mixed, C2, a->mixed, GATED, s, R, H, a->wo);
    FOR_ROWS(i, s) {
        float *c2 = plane(a->mixed, C2, R, s->at[i], H), *now = plane(a->acts, C, R, s->at[i], H);
        FOR_CHANNELS(c, H) vf_store_n(c2 + c, vf_load_n(c2 + c, left) + vf_load_n(now + c, left), left);
    }
}

static void forward_step(const GruForward* a, const Experts* e, const Kept* kept, const Step* s, float* scratch) {
    const int64_t H = a->H, R = a->B * a->T;
    FOR_ROWS(i, s)
        norm_forward(plane(a->acts, HN, R, s->at[i], H), before(a->out, 0, R, s, i, H, a->h0), a->hid_norm, H, a->eps);
    product(a->acts, GATE_Z, a->acts, HN, s, R, H, a->uz);
    product(a->acts, GATE_R, a->acts, HN, s, R, H, a->ur);
    FOR_ROWS(i, s) {
        int64_t r = s->at[i];
        float *z = plane(a->acts, GATE_Z, R, r, H), *g = plane(a->acts, GATE_R, R, r, H), *hn = plane(a->acts, HN, R, r, H);
        float* rh = plane(a->acts, RH, R, r, H);
        FOR_CHANNELS(c, H) {
            vf_store_n(z + c, vf_logistic(vf_load_n(z + c, left) + vf_load_n(a->az + r * H + c, left)), left);
            vf reset = vf_logistic(vf_load_n(g + c, left) + vf_load_n(a->ar + r * H + c, left));
            vf_store_n(g + c, reset, left);
            vf_store_n(rh + c, reset * vf_load_n(hn + c, left), left);
        }
    }
    product(a->acts, C, a->acts, RH, s, R, H, a->uh);
    FOR_ROWS(i, s) {
        float* now = plane(a->acts, C, R, s->at[i], H);
        const float* ah = a->ah + s->at[i] * H;
        FOR_CHANNELS(c, H) vf_store_n(now + c, vf_tanh(vf_load_n(now + c, left) + vf_load_n(ah + c, left)), left);
    }
    if (a->wk) mix(a, s);

    float *out[MOST_ROWS], *n[MOST_ROWS];
    FOR_ROWS(i, s) {
        int64_t r = s->at[i];
        const float *h = before(a->out, 0, R, s, i, H, a->h0), *z = plane(a->acts, GATE_Z, R, r, H);
        const float* c2 = a->wk ? plane(a->mixed, C2, R, r, H) : plane(a->acts, C, R, r, H);
        float* blend = plane(a->acts, BLEND, R, r, H);
        out[i] = a->out + r * H;
        FOR_CHANNELS(c, H) {
            vf hc = vf_load_n(h + c, left), x = a->xr ? vf_load_n(a->xr + r * H + c, left) : (vf){0};
            vf blended = (vf_load_n(c2 + c, left) - hc) * vf_load_n(z + c, left) + hc + x;
            vf_store_n(blend + c, blended, left);
            vf_store_n(out[i] + c, x * a->skip + blended, left);
        }
        if (!e->N) continue;
        n[i] = a->n + r * H;
        norm_forward(n[i], blend, a->moe_norm, H, a->eps);
    }
    if (e->N) experts_forward(out, (const float* const*)n, s->at, s->rows, e, kept, scratch);
}

static void take_last(float* last, const float* planes, int p, const float* first, int64_t B, int64_t T, int64_t H) {
    for (int64_t b = 0; b < B; b++)
        memcpy(last + b * H, T ? plane(planes, p, B * T, (b + 1) * T - 1, H) : first + b * H, H * sizeof(float));
}

size_t FN(gru_scratch)(int64_t H) { return experts_scratch(H); }

void FN(gru_forward)(const GruForward* a, float* scratch) {
    const Experts e = {a->expert_g, a->expert_u, a->expert_d, a->router, a->N, a->S, a->M, a->H};
    const Kept kept = {a->gates, a->y, a->probs, a->weights, a->chosen, a->B * a->T};
    const int64_t work = work_of(a->B, a->T, a->H, a->S, a->wk != NULL), tasks = num_tasks(a->B, work);
    PARALLEL_FOR(work)
    for (int64_t task = 0; task < tasks; task++) {
        Step s = task_rows(task, tasks, a->B);
        for (int64_t t = 0; t < a->T; t++) {
            go_to(&s, t, a->T);
            forward_step(a, &e, &kept, &s, scratch + thread_index() * FN(gru_scratch)(a->H));
        }
    }
    take_last(a->h1, a->out, 0, a->h0, a->B, a->T, a->H);
    if (!a->wk) return;
    take_last(a->num1, a->mixed, NUM, a->num0, a->B, a->T, a->H);
    take_last(a->den1, a->mixed, DEN, a->den0, a->B, a->T, a->H);
    take_last(a->xprev1, a->acts, C, a->xprev0, a->B, a->T, a->H);
}

// Backward ----------------------------------------------------------------------------------------------------------

// Rows of one thread that live through the steps (the gradients of the state) or through one.
enum { DH, DNUM, DDEN, DXPREV, DOUT, DBLEND, DCAND, DGATED, DQ, DSHIFT_K, DSHIFT_V, DRH, DHN, DN, TEMPORARIES };

typedef struct {
    const GruBackward* a;
    Experts e;
    Kept kept;
    float *vectors, *rows, *experts;  // (B, VECTORS, H); (MOST_ROWS, TEMPORARIES, H); scratch of moe.h
} Work;

static inline float* temporary(const Work* w, int i, int which) { return w->rows + (i * TEMPORARIES + which) * w->a->H; }
static inline float* vector(const Work* w, int64_t b, int which) { return w->vectors + (b * VECTORS + which) * w->a->H; }

// A temporary = or += weight^T times a plane's row
static void product_back(const Work* w, int which, const float* d, int p, const Step* s, const float* weight, int add) {
    const int64_t H = w->a->H, R = w->a->B * w->a->T;
    float* dx[MOST_ROWS];
    const float* in[MOST_ROWS];
    FOR_ROWS(i, s) {
        dx[i] = temporary(w, i, which);
        in[i] = plane(d, p, R, s->at[i], H);
    }
    rows_backward(dx, in, s->rows, weight, H, H, add);
}

// From D_C2 to the gradients of the candidate (added to DCAND), of the state before, and of the parts of the mixing.
static void mix_back(const Work* w, const Step* s) {
    const GruBackward* a = w->a;
    const int64_t H = a->H, R = a->B * a->T;
    product_back(w, DGATED, a->mixed_deltas, D_C2, s, a->wo, 0);
    FOR_ROWS(i, s) {
        int64_t r = s->at[i], b = s->b[i];
        MixingGrad g = {temporary(w, i, DGATED), temporary(w, i, DQ),
                        plane(a->mixed_deltas, D_KEY, R, r, H), plane(a->mixed_deltas, D_VALUE, R, r, H),
                        plane(a->mixed_deltas, D_DECAY, R, r, H), plane(a->mixed_deltas, D_FIRST, R, r, H),
                        temporary(w, i, DNUM), temporary(w, i, DDEN), vector(w, b, V_DECAY), vector(w, b, V_FIRST)};
        wkv_backward(g, mixing_of(a->mixed, s, i, R, H, a->num0, a->den0, a->time_decay, a->time_first), H);
    }
    product_back(w, DSHIFT_K, a->mixed_deltas, D_KEY, s, a->wk, 0);
    product_back(w, DSHIFT_V, a->mixed_deltas, D_VALUE, s, a->wv, 0);
    product_back(w, DCAND, a->mixed_deltas, D_DECAY, s, a->wdecay, 1);
    product_back(w, DCAND, a->mixed_deltas, D_FIRST, s, a->wfirst, 1);
    FOR_ROWS(i, s) {
        const float *now = plane(a->acts, C, R, s->at[i], H), *last = before(a->acts, C, R, s, i, H, a->xprev0);
        const float *dk = temporary(w, i, DSHIFT_K), *dv = temporary(w, i, DSHIFT_V), *dq = temporary(w, i, DQ);
        float *dc = temporary(w, i, DCAND), *dlast = temporary(w, i, DXPREV), *mu = vector(w, s->b[i], V_MU_K);
        FOR_CHANNELS(c, H) {
            vf step = vf_load_n(now + c, left) - vf_load_n(last + c, left);
            vf k = vf_load_n(dk + c, left), v = vf_load_n(dv + c, left), q = vf_load_n(dq + c, left);
            vf fresh = vf_load_n(a->mu_k + c, left) * k + vf_load_n(a->mu_v + c, left) * v + vf_load_n(a->mu_r + c, left) * q;
            vf_store_n(dc + c, vf_load_n(dc + c, left) + vf_load_n(dlast + c, left) + fresh, left);
            vf_store_n(dlast + c, k + v + q - fresh, left);
            vf_store_n(mu + c, vf_load_n(mu + c, left) + k * step, left);
            vf_store_n(mu + H + c, vf_load_n(mu + H + c, left) + v * step, left);
            vf_store_n(mu + 2 * H + c, vf_load_n(mu + 2 * H + c, left) + q * step, left);
        }
    }
}

// From the gradient of out to that of what went into the experts, and of xr
static void blend_back(const Work* w, const Step* s) {
    const GruBackward* a = w->a;
    const int64_t H = a->H, R = a->B * a->T;
    float *dn[MOST_ROWS], *dout[MOST_ROWS];
    FOR_ROWS(i, s) {
        dn[i] = temporary(w, i, DN);
        dout[i] = a->dtotal ? a->dtotal + s->at[i] * H : temporary(w, i, DOUT);
        FOR_CHANNELS(c, H)
            vf_store_n(dout[i] + c, vf_load_n(a->dout + s->at[i] * H + c, left) + vf_load_n(temporary(w, i, DH) + c, left), left);
    }
    if (w->e.N)
        experts_backward(dn, a->dgates, a->dlogits, (const float* const*)dout, s->at, s->rows, &w->e, &w->kept,
                         (Balance){a->fraction, a->balance, a->T, a->first_new}, w->experts);
    FOR_ROWS(i, s) {
        float* dblend = temporary(w, i, DBLEND);
        if (w->e.N)
            norm_backward(dblend, vector(w, s->b[i], V_MOE_NORM), dout[i], dn[i], plane(a->acts, BLEND, R, s->at[i], H),
                          a->moe_norm, H, a->eps);
        else memcpy(dblend, dout[i], H * sizeof(float));
        if (!a->dxr) continue;
        float* dxr = a->dxr + s->at[i] * H;
        FOR_CHANNELS(c, H) {
            vf d = vf_load_n(dout[i] + c, left) * a->skip + vf_load_n(dblend + c, left);
            vf_store_n(dxr + c, a->add ? vf_load_n(dxr + c, left) + d : d, left);
        }
    }
}

static void backward_step(const Work* w, const Step* s) {
    const GruBackward* a = w->a;
    const int64_t H = a->H, R = a->B * a->T;
    blend_back(w, s);
    FOR_ROWS(i, s) {
        int64_t r = s->at[i];
        const float *h = before(a->out, 0, R, s, i, H, a->h0), *z = plane(a->acts, GATE_Z, R, r, H);
        const float* c2 = a->wk ? plane(a->mixed, C2, R, r, H) : plane(a->acts, C, R, r, H);
        const float* dblend = temporary(w, i, DBLEND);
        float *dz = plane(a->deltas, D_Z, R, r, H), *dh = temporary(w, i, DH), *dc = temporary(w, i, DCAND);
        FOR_CHANNELS(c, H) {
            vf d = vf_load_n(dblend + c, left), zc = vf_load_n(z + c, left);
            vf_store_n(dz + c, d * (vf_load_n(c2 + c, left) - vf_load_n(h + c, left)) * zc * (1.0f - zc), left);
            vf_store_n(dc + c, d * zc, left);
            vf_store_n(dh + c, d * (1.0f - zc), left);
        }
        if (a->wk) memcpy(plane(a->mixed_deltas, D_C2, R, r, H), dc, H * sizeof(float));
    }
    if (a->wk) mix_back(w, s);
    FOR_ROWS(i, s) {
        const float *now = plane(a->acts, C, R, s->at[i], H), *dcand = temporary(w, i, DCAND);
        float* dc = plane(a->deltas, D_C, R, s->at[i], H);
        FOR_CHANNELS(c, H) {
            vf x = vf_load_n(now + c, left);
            vf_store_n(dc + c, vf_load_n(dcand + c, left) * (1.0f - x * x), left);
        }
    }
    product_back(w, DRH, a->deltas, D_C, s, a->uh, 0);
    FOR_ROWS(i, s) {
        int64_t r = s->at[i];
        const float *g = plane(a->acts, GATE_R, R, r, H), *hn = plane(a->acts, HN, R, r, H), *drh = temporary(w, i, DRH);
        float *dr = plane(a->deltas, D_R, R, r, H), *dhn = temporary(w, i, DHN);
        FOR_CHANNELS(c, H) {
            vf d = vf_load_n(drh + c, left), reset = vf_load_n(g + c, left);
            vf_store_n(dr + c, d * vf_load_n(hn + c, left) * reset * (1.0f - reset), left);
            vf_store_n(dhn + c, d * reset, left);
        }
    }
    product_back(w, DHN, a->deltas, D_Z, s, a->uz, 1);
    product_back(w, DHN, a->deltas, D_R, s, a->ur, 1);
    FOR_ROWS(i, s) {
        float* dh = temporary(w, i, DH);
        norm_backward(dh, vector(w, s->b[i], V_HID_NORM), dh, temporary(w, i, DHN), before(a->out, 0, R, s, i, H, a->h0),
                      a->hid_norm, H, a->eps);
    }
}

// The gradients of the state of a task's sequences: from what flows back from later chunks, if anything, to what goes on.
static void start(const Work* w, const Step* s, int which, const float* flow) {
    const int64_t H = w->a->H;
    FOR_ROWS(i, s) {
        if (flow) memcpy(temporary(w, i, which), flow + s->b[i] * H, H * sizeof(float));
        else memset(temporary(w, i, which), 0, H * sizeof(float));
    }
}

static void finish(const Work* w, const Step* s, int which, float* flow) {
    FOR_ROWS(i, s) memcpy(flow + s->b[i] * w->a->H, temporary(w, i, which), w->a->H * sizeof(float));
}

// d += the sum over the sequences, in order
static void add_vectors(const Work* w, float* d, int which) {
    const int64_t H = w->a->H;
    for (int64_t b = 0; b < w->a->B; b++)
        FOR_CHANNELS(c, H) vf_store_n(d + c, vf_load_n(d + c, left) + vf_load_n(vector(w, b, which) + c, left), left);
}

static size_t task_scratch(int64_t H) { return MOST_ROWS * TEMPORARIES * H + experts_scratch(H); }
size_t FN(gru_backward_scratch)(int64_t B, int64_t H) { return B * VECTORS * H + task_scratch(H); }

void FN(gru_backward)(const GruBackward* a, float* scratch) {
    const int64_t H = a->H, B = a->B;
    const Experts e = {a->expert_g, a->expert_u, a->expert_d, a->router, a->N, a->S, a->M, H};
    const Kept kept = {(float*)a->gates, (float*)a->y, (float*)a->probs, (float*)a->weights, (int32_t*)a->chosen, B * a->T};
    const Work common = {a, e, kept, scratch, NULL, NULL};
    memset(common.vectors, 0, B * VECTORS * H * sizeof(float));
    const int64_t work = work_of(B, a->T, H, a->S, a->wk != NULL), tasks = num_tasks(B, work);
    PARALLEL_FOR(work)
    for (int64_t task = 0; task < tasks; task++) {
        Work w = common;
        w.rows = scratch + B * VECTORS * H + thread_index() * task_scratch(H);
        w.experts = w.rows + MOST_ROWS * TEMPORARIES * H;
        Step s = task_rows(task, tasks, B);
        start(&w, &s, DH, a->dh1);
        start(&w, &s, DNUM, a->dnum1);
        start(&w, &s, DDEN, a->dden1);
        start(&w, &s, DXPREV, a->dxprev1);
        for (int64_t t = a->T - 1; t >= 0; t--) {
            go_to(&s, t, a->T);
            backward_step(&w, &s);
        }
        finish(&w, &s, DH, a->dh0);
        if (!a->wk) continue;
        finish(&w, &s, DNUM, a->dnum0);
        finish(&w, &s, DDEN, a->dden0);
        finish(&w, &s, DXPREV, a->dxprev0);
    }
    float* const sums[VECTORS] = {
        [V_HID_NORM] = a->dhid_norm, [V_MOE_NORM] = a->dmoe_norm, [V_DECAY] = a->dtime_decay, [V_FIRST] = a->dtime_first,
        [V_MU_K] = a->dmu_k, [V_MU_V] = a->dmu_v, [V_MU_R] = a->dmu_r};
    for (int which = 0; which < VECTORS; which++)
        if (sums[which]) add_vectors(&common, sums[which], which);
}
