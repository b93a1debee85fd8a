// Every kernel: what it computes, and the shapes it computes it on.
//
// Conventions. Outputs first, then const inputs, sizes, scalars, `add`, scratch. A parameter is filled by its name, with what
// kernels.def has under that name. All arrays are contiguous float32 in the shape written above the prototype, tokens and
// positions are int32. R stands for all leading dimensions together. A backward *adds* into its gradients (d...), but for
// those that it says it stores. With `add` of 0 it stores its first gradient instead (add_a that of a, and so on; one that
// ends in _w all of its gradients), so that the first to write a gradient need not find zeros there. Nothing is allocated and
// nothing checked: the door (stream.pyx) has checked the sizes, and whoever takes token ids and positions in (model.py) their
// values. `scratch` is as large as kernels.def says, per thread.
//
// Each .c file is compiled once per instruction set; FN(name) gives every copy its own symbol.
#ifndef GPT2C_H
#define GPT2C_H

#include <stddef.h>
#include <stdint.h>

#define JOIN_(name, isa) name##_##isa
#define JOIN(name, isa) JOIN_(name, isa)
#define FN(name) JOIN(name, ISA)

// embedding.c ---------------------------------------------------------------------------------------------------
// out[b,t] = wte[tokens[b,t]] + wpe[pos[b] + t]        out (B,T,C)  tokens (B,T)  wte (V,C)  wpe (S,C)  pos (B)
// Without wpe (NULL), and dwpe in the backward, tokens alone.
void FN(embedding_forward)(float* out, const int32_t* tokens, const void* wte, const float* wpe, const int32_t* pos,
                           int64_t B, int64_t T, int64_t C, int64_t wte_type);
// dwte[tokens[b,t]] += dout[b,t];  dwpe[pos[b] + t] += dout[b,t]
void FN(embedding_backward)(float* dwte, float* dwpe, const float* dout, const int32_t* tokens, const int32_t* pos,
                            int64_t B, int64_t T, int64_t C);

// norm.c --------------------------------------------------------------------------------------------------------
// n = (x - mean) rstd,  out = n w + b                  out, x (R,C)  mean, rstd (R)  w, b (C)
// mean over C,  rstd = 1 / sqrt(variance + eps), the variance divided by C
void FN(layernorm_forward)(float* out, float* mean, float* rstd, const float* x, const float* w, const float* b,
                           int64_t R, int64_t C, float eps);
// d = dout w,  dx += rstd (d - mean(d) - n mean(d n)),  dw += sum_r dout n,  db += sum_r dout
void FN(layernorm_backward)(float* dx, float* dw, float* db, const float* dout, const float* x, const float* w,
                            const float* mean, const float* rstd, int64_t R, int64_t C, int64_t add);

// n = x rstd,  out = n w   (w may be NULL: 1)          out, x (R,C)  rstd (R)  w (C)
// rstd = 1 / sqrt(mean(x^2) + eps)
void FN(rmsnorm_forward)(float* out, float* rstd, const float* x, const float* w, int64_t R, int64_t C, float eps);
// d = dout w,  dx += rstd (d - n mean(d n)),  dw += sum_r dout n   (dw may be NULL)
void FN(rmsnorm_backward)(float* dx, float* dw, const float* dout, const float* x, const float* w, const float* rstd,
                          int64_t R, int64_t C, int64_t add);
// The same of single heads, width D, of queries and keys: the first H of G heads with gains qw, those before the N-th with kw.
// The others stay as they are.                         out, x (R,G,D)  rstd (R,N)  qw, kw (D)
void FN(head_norm_forward)(float* out, float* rstd, const float* x, const float* qw, const float* kw,
                           int64_t R, int64_t G, int64_t D, int64_t N, int64_t H, float eps);
void FN(head_norm_backward)(float* dx, float* dqw, float* dkw, const float* dout, const float* x, const float* qw,
                            const float* kw, const float* rstd, int64_t R, int64_t G, int64_t D, int64_t N, int64_t H,
                            int64_t add);

// rope.c --------------------------------------------------------------------------------------------------------
// Turns the first N of G heads, each a half a and a half b of width E, by the angles of position p = pos[b] + t:
// a <- a cos - b sin,  b <- a sin + b cos,  with `back` by the opposite angles, which is the backward
//                                                      x (B,T,G,D), D = 2 E  rotations (S,2,E): cosines, sines  pos (B)
void FN(rope)(float* x, const float* rotations, const int32_t* pos, int64_t B, int64_t T, int64_t G, int64_t D, int64_t E,
              int64_t N, int64_t back);

// matmul.c ------------------------------------------------------------------------------------------------------
size_t FN(matmul_scratch)(void);
// out = x w^T + b   (b may be NULL)                    out (R,P)  x (R,C)  w (N,C)  b (P)
// into columns `at` to at + N of out: a matrix may consist of several, which are stored in different types
void FN(matmul_forward)(float* out, const float* x, const void* w, const float* b, int64_t R, int64_t P, int64_t C, int64_t N,
                        int64_t at, int64_t w_type, float* scratch);
// dx += dout w   for those columns of dout
void FN(matmul_backward_x)(float* dx, const float* dout, const void* w, int64_t R, int64_t C, int64_t P, int64_t N, int64_t at,
                           int64_t w_type, int64_t add, float* scratch);
// dw += dout^T x,  db += sum_r dout   (db may be NULL)
void FN(matmul_backward_w)(float* dw, float* db, const float* dout, const float* x,
                           int64_t R, int64_t C, int64_t N, int64_t add, float* scratch);

// few_rows.c ----------------------------------------------------------------------------------------------------
// As matmul_forward, for the few rows of a decoding step: what a row gets depends neither on the others nor on their number.
// Blocks of integers are multiplied with x rounded to 16 bits, relative to the largest of each 32 neighbours.
size_t FN(few_rows_scratch)(int64_t R, int64_t C);
void FN(few_rows_forward)(float* out, const float* x, const void* w, const float* b, int64_t R, int64_t P, int64_t C, int64_t N,
                          int64_t at, int64_t w_type, float* scratch);
// a = x wa^T,  b = x wb^T                              a, b (R,N)  x (R,C)  wa, wb (N,C)
void FN(few_rows_pair_forward)(float* a, float* b, const float* x, const void* wa, const void* wb, int64_t R, int64_t N, int64_t C,
                               int64_t wa_type, int64_t wb_type, float* scratch);

// repack.c ------------------------------------------------------------------------------------------------------
// w = rows of a file, Y bytes each, laid out as kernels take them (stored.h); its memory is 0 before
void FN(repack)(void* w, const uint8_t* blocks, int64_t N, int64_t C, int64_t Y, int64_t w_type);

// attention.c ---------------------------------------------------------------------------------------------------
// Causal self-attention over H heads of queries and K of keys and values, all of width D; head h of the queries goes with head
// h K / H of the others. qkv holds the heads of q, of k, of v.
// s[i,j] = q_i k_j / sqrt(D),  a[i,j] = softmax over j <= i,  out_i = sum_j a[i,j] v_j
//                                                      out (B,T,H,D)  qkv (B,T,H+2K,D)  lse (B,H,T)
// Tiled: keeps only lse_i = log sum_j exp(s[i,j]).
size_t FN(attention_scratch)(int64_t T, int64_t D);
void FN(attention_forward)(float* out, float* lse, const float* qkv, int64_t B, int64_t T, int64_t H, int64_t D, int64_t K,
                           float* scratch);
// p = exp(s - lse),  ds[i,j] = p[i,j] (dout_i v_j - dout_i out_i)
// dv_j += sum_i p[i,j] dout_i,  dq_i += sum_j ds[i,j] k_j / sqrt(D),  dk_j += sum_i ds[i,j] q_i / sqrt(D)
size_t FN(attention_backward_scratch)(int64_t B, int64_t T, int64_t H, int64_t D, int64_t K);
void FN(attention_backward)(float* dqkv, const float* dout, const float* qkv, const float* out, const float* lse,
                            int64_t B, int64_t T, int64_t H, int64_t D, int64_t K, int64_t add, float* scratch);
// Materialised: the scaled scores and the probabilities stay to be looked at; entries j > i are 0.
//                                                      preatt, att (B,H,T,T)
void FN(attention_materialised_forward)(float* out, float* preatt, float* att, const float* qkv,
                                        int64_t B, int64_t T, int64_t H, int64_t D, int64_t K);
size_t FN(attention_materialised_scratch)(int64_t T);
void FN(attention_materialised_backward)(float* dqkv, const float* dout, const float* qkv, const float* att,
                                         int64_t B, int64_t T, int64_t H, int64_t D, int64_t K, int64_t add, float* scratch);
// A piece of a prompt: stores the keys and values of T new positions pos[b] .. pos[b] + T - 1 in row slot[b] of the caches and
// attends from those positions to all that this row has up to them.
// The caches hold numbers of the type kv (cache.h), Y bytes of them for a head, and all that is attended to is read from there.
//                                                      kcache, vcache (N,S,K,Y)  pos, slot (B)
size_t FN(attention_cached_scratch)(int64_t S, int64_t D);
void FN(attention_cached_forward)(float* out, uint8_t* kcache, uint8_t* vcache, const float* qkv, const int32_t* pos,
                                  const int32_t* slot, int64_t B, int64_t T, int64_t H, int64_t D, int64_t S, int64_t K,
                                  int64_t kv, float* scratch);
// A decoding step: the same of one position for each b. Several b may be successive positions of one slot: all keys are stored
// before any query looks at them.                      out (B,H,D)  qkv (B,H+2K,D)
size_t FN(attention_decode_scratch)(int64_t S);
void FN(attention_decode_forward)(float* out, uint8_t* kcache, uint8_t* vcache, const float* qkv, const int32_t* pos,
                                  const int32_t* slot, int64_t B, int64_t H, int64_t D, int64_t S, int64_t K, int64_t kv,
                                  float* scratch);

// activation.c --------------------------------------------------------------------------------------------------
// u = sqrt(2/pi) (x + 0.044715 x^3),  out = x (1 + tanh u) / 2 = x / (1 + exp(-2u))       out, x (R)
// Against the exact value of this formula: relative error at most (4 + 2 |2u|) 2^-23, that is 4 units in the last
// place, growing with |2u|; where exp(-2u) leaves float32's range (x below -10) the result may be 0. Tested.
void FN(gelu_forward)(float* out, const float* x, int64_t R);
// s = 1 / (1 + exp(-2u)),  dx += dout s (1 + x (1 - s) du2),  du2 = 2 sqrt(2/pi) (1 + 0.134145 x^2)
void FN(gelu_backward)(float* dx, const float* dout, const float* x, int64_t R, int64_t add);
// The same function one element at a time with libm's expf: a second opinion for the vector code.
void FN(gelu_forward_scalar)(float* out, const float* x, int64_t R);
// The exact form, Phi the normal distribution: out = x Phi(x) = x (1 + erf(x / sqrt 2)) / 2
// Relative error at most (6 + x^2 / 4) 2^-23; where exp(-x^2 / 2) leaves float32's range the result may be 0. Tested.
void FN(gelu_erf_forward)(float* out, const float* x, int64_t R);
// dx += dout (Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi))
void FN(gelu_erf_backward)(float* dx, const float* dout, const float* x, int64_t R, int64_t add);
// out = max(x, 0)^2
void FN(squared_relu_forward)(float* out, const float* x, int64_t R);
// dx += dout 2 max(x, 0)
void FN(squared_relu_backward)(float* dx, const float* dout, const float* x, int64_t R, int64_t add);
// s = 1 / (1 + exp(-a)),  out = a s b                                                     out, a, b (R)
// Relative error at most 6 2^-23; where exp(-a) leaves float32's range the result may be 0. Tested.
void FN(swiglu_forward)(float* out, const float* a, const float* b, int64_t R);
// da += dout b s (1 + a (1 - s)),  db += dout a s
void FN(swiglu_backward)(float* da, float* db, const float* dout, const float* a, const float* b, int64_t R,
                         int64_t add_a, int64_t add_b);

// dyt.c ---------------------------------------------------------------------------------------------------------
// t = tanh(a x),  out = t w + b                        out, x (R,C)  a (1)  w, b (C)
void FN(dyt_forward)(float* out, const float* x, const float* a, const float* w, const float* b, int64_t R, int64_t C);
// u = dout w (1 - t^2),  dx += a u,  da += sum_rc u x,  dw += sum_r dout t,  db += sum_r dout
size_t FN(dyt_scratch)(int64_t R, int64_t C);
void FN(dyt_backward)(float* dx, float* da, float* dw, float* db, const float* dout, const float* x, const float* a,
                      const float* w, int64_t R, int64_t C, int64_t add, float* scratch);

// cope.c --------------------------------------------------------------------------------------------------------
// Causal self-attention over H heads of width D with contextual positions, read from a table of M rows per head.
// r[i,j] = q_i k_j,  g[i,j] = logistic(r[i,j]),  p[i,j] = min(sum_{k=j..i} g[i,k], M - 1),  m = floor(p),  f = p - m
// s[i,j] = r[i,j] / sqrt(D) + (1 - f) q_i table_m + f q_i table_(m+1),  a[i,j] = softmax over j <= i,  out_i = sum_j a[i,j] v_j
//                                     out (B,T,C)  qkv (B,T,3C)  table (H,M,D)  lse (B,H,T)  preatt, att (B,H,T,T)
// lse_i = log sum_j exp(s[i,j]). Where preatt and att are not NULL they receive s and a, 0 for j > i.
size_t FN(cope_scratch)(int64_t T, int64_t M, int64_t D);
void FN(cope_forward)(float* out, float* lse, float* preatt, float* att, const float* qkv, const float* table,
                      int64_t B, int64_t T, int64_t C, int64_t H, int64_t M, float* scratch);
// ds[i,j] = a[i,j] (dout_i v_j - dout_i out_i),  dv_j += sum_i a[i,j] dout_i
// dp[i,j] = ds[i,j] q_i (table_(m+1) - table_m), 0 where the sum of gates is M - 1 or more,  dg[i,k] = sum_{j<=k} dp[i,j]
// dr = ds / sqrt(D) + dg g (1 - g),  dk_j += sum_i dr[i,j] q_i
// dz[i,m] = sum_j ds[i,j] max(0, 1 - |p[i,j] - m|),  dq_i += sum_j dr[i,j] k_j + sum_m dz[i,m] table_m
// dtable_m += sum_i dz[i,m] q_i
size_t FN(cope_backward_scratch)(int64_t B, int64_t T, int64_t H, int64_t M, int64_t D);
void FN(cope_backward)(float* dqkv, float* dtable, const float* dout, const float* qkv, const float* out, const float* lse,
                       const float* table, int64_t B, int64_t T, int64_t C, int64_t H, int64_t M, int64_t add, float* scratch);
// Against the caches of slots, as attention_cached_forward and, with T = 1, as attention_decode_forward.
//                                                      kcache, vcache (N,S,H,Y)  pos, slot (B)
void FN(cope_cached_forward)(float* out, uint8_t* kcache, uint8_t* vcache, const float* qkv, const int32_t* pos,
                             const int32_t* slot, const float* table, int64_t B, int64_t T, int64_t C, int64_t S, int64_t H,
                             int64_t M, int64_t kv, float* scratch);

// recursion.c ---------------------------------------------------------------------------------------------------
// out = x + scale y in rows with depth >= step, or in all where depth is NULL, else x
//                                                      out, x, y (R,C)  scale (1)  depth (R)
void FN(scaled_residual_forward)(float* out, const float* x, const float* y, const float* scale, const float* depth,
                                 int64_t R, int64_t C, int64_t step);
// dx += dout, and in those rows dy += scale dout,  dscale += sum_rc dout y
size_t FN(scaled_residual_scratch)(int64_t R);
void FN(scaled_residual_backward)(float* dx, float* dy, float* dscale, const float* dout, const float* y, const float* scale,
                                  const float* depth, int64_t R, int64_t C, int64_t step, int64_t add_x, int64_t add_y,
                                  float* scratch);
// Adaptive depth, after step 1, 2, ..., last: prob = logistic(x w + b). A row with depth >= step (at step 1 every row) halts
// here if this is the last step or total + prob >= threshold:
//   halts       weight = 1 - total,  depth = step
//   runs on     weight = prob,       depth = step + 1,  total += prob
//   has halted  weight = 0
// mixed += weight x. The first step takes total and mixed as 0, whatever is in them.
//                                                      prob, weight, total, depth (R)  mixed, x (R,C)  w (C)  b (1)
void FN(halting_forward)(float* prob, float* weight, float* total, float* depth, float* mixed, const float* x, const float* w,
                         const float* b, int64_t R, int64_t C, int64_t step, int64_t last, float threshold);
// For steps last, ..., 2, 1, with depth as the last step left it; dtotal (R) is carried from step to step.
// dweight = dmixed x;  rows that halted at this step: dtotal -= dweight;  rows that ran on: d = (dtotal + dweight) prob (1 - prob)
// dx += weight dmixed + d w,  dw += sum_r d x,  db += sum_r d
size_t FN(halting_scratch)(int64_t R, int64_t C);
void FN(halting_backward)(float* dx, float* dw, float* db, float* dtotal, const float* dmixed, const float* x, const float* w,
                          const float* prob, const float* weight, const float* depth, int64_t R, int64_t C, int64_t step,
                          int64_t add, float* scratch);
// Over the rows whose target is not -1, 0 if there are none: mean_depth = mean(depth),  ponder = mean(depth + 1 - total)
// count = how many they are                            ponder, mean_depth, count (1)  targets (R)
void FN(ponder_forward)(float* ponder, float* mean_depth, float* count, const float* depth, const float* total,
                        const int32_t* targets, int64_t R);
// Stores dtotal = -weight / count, 0 where the target is -1.
void FN(ponder_backward)(float* dtotal, const int32_t* targets, const float* count, int64_t R, float weight);
// scan.c --------------------------------------------------------------------------------------------------------
// out_t = a_t out_{t-1} + b_t with out_{-1} = h0, last = out_{T-1}
//                                                      out, a, b (B,T,I)  last, h0 (B,I)
void FN(scan_forward)(float* out, float* last, const float* a, const float* b, const float* h0, int64_t B, int64_t T, int64_t I);
// Stores delta_t = dout_t + a_{t+1} delta_{t+1}, where delta after the last step is dlast (NULL: 0) and its a is 1:
// db = delta,  da_t = delta_t out_{t-1},  dh0 = a_0 delta_0
void FN(scan_backward)(float* da, float* db, float* dh0, const float* dout, const float* dlast, const float* a, const float* out,
                       const float* h0, int64_t B, int64_t T, int64_t I);
// x = candidate c | gate,  z = 1 / (1 + exp(-gate)),  g(c) = c + 1/2 where c >= 0, else 1 / (1 + exp(-c))
// a = 1 - z,  b = z g(c)                               a, b (R,I)  x (R,2I)
void FN(mingru_gates_forward)(float* a, float* b, const float* x, int64_t R, int64_t I);
// dc += db z g'(c),  dgate += (db g(c) - da) z (1 - z)
void FN(mingru_gates_backward)(float* dx, const float* da, const float* db, const float* x, int64_t R, int64_t I, int64_t add);
// Gates and scan in one by sums of logarithms, in double and one element at a time: a second opinion on the others.
// A_t = sum_{s<=t} log a_s,  out_t = exp(A_t + log(h0 + sum_{s<=t} exp(log b_s - A_s))); an h0 below 1e-10 counts as that.
void FN(mingru_log_forward)(float* out, const float* x, const float* h0, int64_t B, int64_t T, int64_t I);

// dropout.c -----------------------------------------------------------------------------------------------------
// out = a + keep b / (1 - p)                           out, a, b (R)  noise (2): seed, counter
// keep is 0 with probability p (rounded to 24 bits), else 1: a function of seed, counter, stream and the element's index.
void FN(dropout_residual_forward)(float* out, const float* a, const float* b, const int32_t* noise, int64_t R,
                                  int64_t stream, float p);
// da += dout,  db += keep dout / (1 - p)
void FN(dropout_residual_backward)(float* da, float* db, const float* dout, const int32_t* noise, int64_t R,
                                   int64_t stream, float p, int64_t add_a, int64_t add_b);

// elementwise.c -------------------------------------------------------------------------------------------------
// out = a + scale b                                                                       out, a, b (R)
void FN(residual_forward)(float* out, const float* a, const float* b, int64_t R, float scale);
// da += dout,  db += scale dout
void FN(residual_backward)(float* da, float* db, const float* dout, int64_t R, float scale, int64_t add_a, int64_t add_b);
// out[b] = x[b, T-1]                                   out (B,C)  x (B,T,C)
void FN(last_position_forward)(float* out, const float* x, int64_t B, int64_t T, int64_t C);
// out[b] = x[slot[b]]                                  out (B,C)  x (N,C)  slot (B)
void FN(gather)(float* out, const float* x, const int32_t* slot, int64_t B, int64_t C);
// x[slot[b]] = rows[b]                                 x (N,C)  rows (B,C)
void FN(scatter)(float* x, const float* rows, const int32_t* slot, int64_t B, int64_t C);
// out = x                                                                                 out, x (R)
void FN(copy)(float* out, const float* x, int64_t R);
// x = 0
void FN(zero)(float* x, int64_t R);

// loss.c --------------------------------------------------------------------------------------------------------
// lse_r = log sum_{v<V} exp(logits[r,v]),  losses_r = lse_r - logits[r, targets_r], 0 where targets_r = -1
//                                                                      logits (R,P), P >= V  targets, losses, lse (R)
void FN(crossentropy_forward)(float* losses, float* lse, const float* logits, const int32_t* targets,
                              int64_t R, int64_t P, int64_t V);
// Stores dlogits = scale weights_r / count (exp(logits - lse) - 1[v = target]), every weight 1 where there are none; 0 in
// ignored rows and in columns V..P-1. dlogits may be logits itself.                                       weights (R)
void FN(crossentropy_backward)(float* dlogits, const float* logits, const float* lse, const int32_t* targets,
                               const float* count, const float* weights, int64_t R, int64_t P, int64_t V, float scale);
// count = number of targets that are not -1                                                    count (1)  targets (R)
void FN(count_targets)(float* count, const int32_t* targets, int64_t R);
// loss = sum_r losses_r / count, 0 if count is                                            loss, count (1)  losses (R)
void FN(mean_loss)(float* loss, const float* losses, const float* count, int64_t R);

// optim.c -------------------------------------------------------------------------------------------------------
// g = scale grads,  m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
// params -= lr (m / bias1 / (sqrt(v / bias2) + eps) + decay params),  bias_i = 1 - beta_i^t            all (R)
void FN(adamw)(float* params, float* m, float* v, const float* grads, int64_t R,
               float lr, float beta1, float beta2, float eps, float decay, float bias1, float bias2, float scale);
// d = scale grads + decay params,  m = momentum m + (1 - dampening) d, or d the first time
// params -= lr (d without m,  m,  or with nesterov d + momentum m)                                      all (R)
void FN(sgd)(float* params, float* m, const float* grads, int64_t R,
             float lr, float momentum, float dampening, float decay, float scale, int64_t nesterov, int64_t first);
// y += a x                                             y, x (R)
void FN(add_scaled)(float* y, const float* x, int64_t R, float a);
// x = min(max(x, -limit), limit)                       x (R)
void FN(clamp)(float* x, int64_t R, float limit);
// norm = sqrt(sum x^2)                                 norm (1)  x (R)
size_t FN(global_norm_scratch)(int64_t R);
void FN(global_norm)(float* norm, const float* x, int64_t R, float* scratch);

// moe.c ---------------------------------------------------------------------------------------------------------
// A mixture of experts, expert 0 always on:  e_j = (silu(n g_j^T) (n u_j^T)) d_j^T,  p = softmax(n router^T) over experts
// 1 .. M.  Slot 0 of a row holds expert 0, slots 1 .. S-1 the others that it chose, the likeliest first and of equal
// ones the lowest number.  W = sum of their p,  w_0 = 1 / (1 + W),  w_s = p_chosen[s] / (1 + W)
// out = sum_s w_s y_s,  y_s = e_chosen[s]
//      out, n (B,T,H)  gates (S,B,T,4H): n g^T | n u^T  y (S,B,T,H)  probs (B,T,M)  weights, chosen (B,T,S)
//      expert_g, expert_u (N,2H,H)  expert_d (N,H,2H)  router (M,H), N = M + 1; NULL where M = 0
// R below is B T. Experts that no row chose cost nothing.
size_t FN(moe_scratch)(int64_t H);
void FN(moe_forward)(float* out, float* gates, float* y, float* probs, float* weights, int32_t* chosen, const float* n,
                     const float* expert_g, const float* expert_u, const float* expert_d, const float* router,
                     int64_t B, int64_t T, int64_t H, int64_t S, int64_t M, int64_t N, float* scratch);
// dp_chosen[s] = (dout y_s - dout out) w_0, 0 for experts not chosen; + balance M fraction / (B (T - first_new)) where
// fraction is given, from position first_new on
// dlogits = p (dp - sum p dp),  dy_s = w_s dout,  dhidden = dy_s d,  dgates = dhidden u silu'(g) | dhidden silu(g)
// Stores dn = dlogits router + sum_s dgates (g | u)                 dn (B,T,H)  dgates (S,B,T,4H)  dlogits (B,T,M)
void FN(moe_backward)(float* dn, float* dgates, float* dlogits, const float* dout, const float* gates, const float* y,
                      const float* probs, const float* weights, const int32_t* chosen, const float* expert_g,
                      const float* expert_u, const float* expert_d, const float* router, const float* fraction,
                      int64_t B, int64_t T, int64_t H, int64_t S, int64_t M, int64_t N, float balance, int64_t first_new,
                      float* scratch);
// dg_j += sum dgates_g^T n,  du_j += sum dgates_u^T n,  dd_j += sum (w_s dout)^T (silu(g) u), over the rows that chose j
size_t FN(moe_backward_w_scratch)(int64_t H);
void FN(moe_backward_w)(float* dexpert_g, float* dexpert_u, float* dexpert_d, const float* dout, const float* dgates,
                        const float* gates, const float* n, const float* weights, const int32_t* chosen,
                        int64_t B, int64_t T, int64_t H, int64_t S, int64_t N, int64_t add, float* scratch);
// Over the rows from position first_new on: fraction_j = share of those that chose expert 1 + j,
// balance = M sum_j fraction_j mean(p_j)                balance (1)  fraction (M)  probs (B,T,M)  chosen (B,T,S)
void FN(balance_forward)(float* balance, float* fraction, const float* probs, const int32_t* chosen, int64_t B, int64_t T,
                         int64_t M, int64_t S, int64_t first_new);

// gru.c ---------------------------------------------------------------------------------------------------------
// The recurrent layer of the hybrid. What comes from the layer's input is ready: az, ar, ah = x_n w^T + b and xr. From
// step to step it carries h, its own result, and with time mixing num, den and xprev. rms(x) = x / sqrt(mean(x^2) + eps)
//   hn = hid_norm rms(h),  z = s(az + hn uz^T),  r = s(ar + hn ur^T),  c = tanh(ah + (r hn) uh^T)        s: logistic
//   time mixing, where wk is given:
//     k = clamp((xprev + mu_k (c - xprev)) wk^T, -10, 10),  v likewise with mu_v and wv,  q = s(xprev + mu_r (c - xprev))
//     w = time_decay + 0.5 tanh(c wdecay^T),  u = time_first + 0.3 tanh(c wfirst^T),  d = exp(-exp(w))
//     wkv = (exp(u + k) v + num) / (exp(u + k) + den + 1e-8),  c2 = c + (q wkv) wo^T
//     num <- d num + exp(k) v,  den <- d den + exp(k),  xprev <- c
//   blend = h + z (c2 - h) + xr,  out = blend + moe(n) + skip xr,  n = moe_norm rms(blend)      xr, the experts: if given
// all (B,T,H): out, az, ar, ah, xr, n    per sequence (B,H): h0, num0, den0, xprev0 and, after the last step, h1, num1, ...
// acts (6,B,T,H): hn, r hn, z, r, c, blend    mixed (11,B,T,H): the inputs of wk and wv, q, k, v, tanh(c wdecay^T),
// tanh(c wfirst^T), num and den after the step, q wkv, c2
// weights (H,H), vectors (H); the experts and what they keep as in moe.c
typedef struct {
    float *out, *acts, *mixed, *n, *gates, *y, *probs, *weights;
    int32_t* chosen;
    float *h1, *num1, *den1, *xprev1;
    const float *az, *ar, *ah, *xr, *h0, *num0, *den0, *xprev0, *hid_norm, *uz, *ur, *uh;
    const float *wk, *wv, *wo, *wdecay, *wfirst, *time_decay, *time_first, *mu_k, *mu_v, *mu_r;
    const float *moe_norm, *expert_g, *expert_u, *expert_d, *router;
    int64_t B, T, H, S, M, N;
    float eps, skip;
} GruForward;
size_t FN(gru_scratch)(int64_t H);
void FN(gru_forward)(const GruForward* a, float* scratch);
// Through all steps, last to first. dh1 and so on: what flows back from later steps into the state, where given; dh0 and so
// on: what goes on to earlier ones. The products' weights get their gradients outside, from
//   deltas (3,B,T,H): of az, ar, ah    mixed_deltas (5,B,T,H): of k, v, the two products in tanh, c2
//   dtotal (B,T,H): of out, what later steps send back included, and as in moe.c dgates, dlogits
// Vectors have theirs added here. dxr += dblend + skip dtotal
// With d the gradient of wkv, D its denominator, dnum and dden those of the state after the step:
//   dN = d / D,  dk = (dnum v + dden) exp(k) + du where k is not clamped,  dv = dN exp(u + k) + dnum exp(k)
//   du = dN exp(u + k) (v - wkv),  dw = -(dnum num + dden den) d exp(w),  dnum <- dN + dnum d,  dden <- dden d - dN wkv
typedef struct {
    float *dxr, *deltas, *mixed_deltas, *dtotal, *dgates, *dlogits, *dh0, *dnum0, *dden0, *dxprev0;
    float *dhid_norm, *dtime_decay, *dtime_first, *dmu_k, *dmu_v, *dmu_r, *dmoe_norm;
    const float *dout, *dh1, *dnum1, *dden1, *dxprev1, *out, *acts, *mixed, *gates, *y, *probs, *weights;
    const int32_t* chosen;
    const float *h0, *num0, *den0, *xprev0, *hid_norm, *uz, *ur, *uh;
    const float *wk, *wv, *wo, *wdecay, *wfirst, *time_decay, *time_first, *mu_k, *mu_v, *mu_r;
    const float *moe_norm, *expert_g, *expert_u, *expert_d, *router, *fraction;
    int64_t B, T, H, S, M, N;
    float eps, skip, balance;
    int64_t first_new, add;
} GruBackward;
size_t FN(gru_backward_scratch)(int64_t B, int64_t H);
void FN(gru_backward)(const GruBackward* a, float* scratch);

// peak.c --------------------------------------------------------------------------------------------------------
// R times: `steps` rounds of 12 vector multiply-adds; flops (1) = floating-point operations done        sink (R)
void FN(peak)(float* sink, float* flops, int64_t R, int64_t steps);

#endif
