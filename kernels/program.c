// The replay loop, and what is set while it runs: threads, precision. Compiled once, without instruction set flags.
#include "program.h"

#include <stdlib.h>
#include <time.h>

#include "parallel.h"
#include "table.h"

// Of the run that the calling thread is in: runs of several threads have each their own.
_Thread_local int gpt2c_num_threads;
_Thread_local int gpt2c_matmul_bf16;

int gpt2c_has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

#ifdef __clang__
const char* const gpt2c_compiler = __VERSION__;
#else
const char* const gpt2c_compiler = "gcc " __VERSION__;
#endif

enum {
#define NUMBER(name, door, scratch, arguments) KERNEL_##name,
    KERNELS(NUMBER) NUM_KERNELS
};
const int gpt2c_num_kernels = NUM_KERNELS;

#define NAME(name, door, scratch, arguments) #name,
const char* const gpt2c_kernel_names[] = {KERNELS(NAME)};

#define DOOR(name, door, scratch, arguments) door,
const char* const gpt2c_kernel_doors[] = {KERNELS(DOOR)};

const Kernels* gpt2c_isa_kernels(int isa);  // isa.c

static size_t scratch_floats(const Kernels* k, const Call* call) {
    const int64_t* n = call->n;
    switch (call->kernel) {
#define SIZE(name, door, scratch, arguments) case KERNEL_##name: return scratch;
        KERNELS(SIZE)
    }
    return 0;
}

static void run_one(const Kernels* k, const Call* call, float* scratch) {
    void* const* p = call->p;
    const int64_t* n = call->n;
    const float* f = call->f;
    switch (call->kernel) {
#define RUN(name, door, scratch, arguments) case KERNEL_##name: k->name arguments; break;
        KERNELS(RUN)
    }
}

static int reserve(Scratch* scratch, size_t floats) {
    if (floats <= scratch->floats) return 0;
    float* larger = aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
    if (!larger) return -1;
    free(scratch->memory);
    *scratch = (Scratch){larger, floats};
    return 0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

// While kernels run, numbers below 2^-126 count as zero, in what is read and in what is stored. A processor takes a
// hundred times as long over one of them, and training is full of them: a gradient that fades through a thousand steps of
// a recurrence, moments of tokens that have not been seen for a while. Elsewhere in the process nothing changes.
#if defined(__x86_64__)
#include <immintrin.h>
typedef unsigned Rounding;
static Rounding rounding(void) { return _mm_getcsr(); }
static void set_rounding(Rounding r) { _mm_setcsr(r); }
enum { NO_SUBNORMALS = 0x8040 };  // flush to zero, denormals are zero
#elif defined(__aarch64__)
typedef uint64_t Rounding;
static Rounding rounding(void) { Rounding r; __asm__ volatile("mrs %0, fpcr" : "=r"(r)); return r; }
static void set_rounding(Rounding r) { __asm__ volatile("msr fpcr, %0" : : "r"(r)); }
enum { NO_SUBNORMALS = 1 << 24 };  // flush to zero
#else
typedef int Rounding;
static Rounding rounding(void) { return 0; }
static void set_rounding(Rounding r) { (void)r; }
enum { NO_SUBNORMALS = 0 };
#endif

// Threads that are started while the caller runs like this inherit it; those that were there before are told.
static Rounding without_subnormals(void) {
    static _Thread_local int told;
    Rounding before = rounding();
    set_rounding(before | NO_SUBNORMALS);
    if (told < gpt2c_num_threads) {
        const int threads = told = gpt2c_num_threads;  // each thread has a `told` of its own
        PARALLEL_FOR((int64_t)threads * WORK_PER_THREAD)
        for (int i = 0; i < threads; i++) set_rounding(rounding() | NO_SUBNORMALS);
    }
    return before;
}

int gpt2c_run(const Call* calls, int64_t count, Settings settings, Scratch* scratch, double* seconds) {
    const Kernels* k = gpt2c_isa_kernels(settings.isa);
    gpt2c_num_threads = settings.threads;
    gpt2c_matmul_bf16 = settings.matmul_bf16;
    size_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        size_t floats = scratch_floats(k, &calls[i]);
        if (floats > most) most = floats;
    }
    if (reserve(scratch, most * settings.threads)) return -1;
    const Rounding before = without_subnormals();
    double start = seconds ? now() : 0;
    for (int64_t i = 0; i < count; i++) {
        run_one(k, &calls[i], scratch->memory);
        if (!seconds) continue;
        double end = now();
        seconds[i] = end - start;
        start = end;
    }
    set_rounding(before);
    return 0;
}
