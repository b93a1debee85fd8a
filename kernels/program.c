// The replay loop, the kernels' scratch, and what is set for all kernels: threads, precision. Compiled once, without instruction set flags.
#include "program.h"

#include <stdlib.h>
#include <time.h>

#include "parallel.h"
#include "table.h"

int gpt2c_num_threads = 1;
void gpt2c_set_num_threads(int n) { gpt2c_num_threads = n; }

int gpt2c_matmul_bf16 = 0;
void gpt2c_set_matmul_bf16(int on) { gpt2c_matmul_bf16 = on; }

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
#define KERNEL(name, door, scratch, arguments) KERNEL_##name,
#include "kernels.def"
#undef KERNEL
    NUM_KERNELS
};
const int gpt2c_num_kernels = NUM_KERNELS;

const char* const gpt2c_kernel_names[] = {
#define KERNEL(name, door, scratch, arguments) #name,
#include "kernels.def"
#undef KERNEL
};

const char* const gpt2c_kernel_doors[] = {
#define KERNEL(name, door, scratch, arguments) door,
#include "kernels.def"
#undef KERNEL
};

extern const Kernels* gpt2c_kernels;  // isa.c

static size_t scratch_floats(const Kernels* k, const Call* call) {
    const int64_t* n = call->n;
    (void)n;
    switch (call->kernel) {
#define KERNEL(name, door, scratch, arguments) case KERNEL_##name: return scratch;
#include "kernels.def"
#undef KERNEL
    }
    return 0;
}

static void run_one(const Kernels* k, const Call* call, float* scratch) {
    void* const* p = call->p;
    const int64_t* n = call->n;
    const float* f = call->f;
    (void)f;
    switch (call->kernel) {
#define KERNEL(name, door, scratch, arguments) case KERNEL_##name: k->name arguments; break;
#include "kernels.def"
#undef KERNEL
    }
}

// Scratch is kept between runs and only grows: it is a few megabytes per thread.
static float* scratch_memory;
static size_t scratch_size;

static int reserve_scratch(size_t floats) {
    if (floats <= scratch_size) return 0;
    float* larger = aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
    if (!larger) return -1;
    free(scratch_memory);
    scratch_memory = larger;
    scratch_size = floats;
    return 0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

int gpt2c_run(const Call* calls, int64_t count, double* seconds) {
    const Kernels* k = gpt2c_kernels;
    size_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        size_t floats = scratch_floats(k, &calls[i]);
        if (floats > most) most = floats;
    }
    if (reserve_scratch(most * gpt2c_num_threads)) return -1;
    double start = seconds ? now() : 0;
    for (int64_t i = 0; i < count; i++) {
        run_one(k, &calls[i], scratch_memory);
        if (!seconds) continue;
        double end = now();
        seconds[i] = end - start;
        start = end;
    }
    return 0;
}
