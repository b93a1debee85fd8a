// Threads. The only file that names OpenMP.
//
//   PARALLEL_FOR(work) for (int64_t i = 0; i < n; i++) ...
//
// runs the loop on as many threads as `work` (roughly: floating-point operations, or bytes moved) is worth. Each
// iteration must write its own outputs and must not care which thread runs it: results then have the same bits for
// any number of threads.
#ifndef GPT2C_PARALLEL_H
#define GPT2C_PARALLEL_H

#include <stdint.h>

// Of this run (program.c). Only the thread that called the kernel has it: what depends on it is asked for before a loop, not in one.
extern _Thread_local int gpt2c_num_threads;

// Waking a thread costs a few microseconds: below this much work per thread it does not pay (measured: SPEED.md).
enum { WORK_PER_THREAD = 1 << 15 };

static inline int threads_for(int64_t work) {
    int64_t worth = work / WORK_PER_THREAD;
    return worth < 1 ? 1 : worth < gpt2c_num_threads ? (int)worth : gpt2c_num_threads;
}

// Sums over R rows into one result: each chunk of rows has a partial sum, and those are added up in order. How many
// chunks there are depends on R alone, so that the bits do not depend on the threads.
enum { MAX_CHUNKS = 64, CHUNK_ROWS = 32 };

static inline int64_t rows_per_chunk(int64_t R) {
    int64_t even = (R + MAX_CHUNKS - 1) / MAX_CHUNKS;
    return even < CHUNK_ROWS ? CHUNK_ROWS : even;
}
static inline int64_t num_chunks(int64_t R) { return (R + rows_per_chunk(R) - 1) / rows_per_chunk(R); }

#ifdef _OPENMP
#include <omp.h>
#define GPT2C_PRAGMA(text) _Pragma(#text)
#define PARALLEL_FOR(work) GPT2C_PRAGMA(omp parallel for num_threads(threads_for(work)) schedule(static))
static inline int thread_index(void) { return omp_get_thread_num(); }
#else
#define PARALLEL_FOR(work)
static inline int thread_index(void) { return 0; }
#endif

#endif
