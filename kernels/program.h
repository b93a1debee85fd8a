// What the door (stream.pyx) needs of the C side: calls as data, and how to run them.
#ifndef GPT2C_PROGRAM_H
#define GPT2C_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

#include "calls.h"

// One call of a kernel: which one, its arrays, sizes followed by whole scalars, and real scalars, as kernels.def orders them.
typedef struct {
    int32_t kernel;
    void* p[MAX_ARRAYS];
    int64_t n[MAX_SIZES];
    float f[MAX_SCALARS];
} Call;

// Kernels by number, 0 .. gpt2c_num_kernels - 1.
extern const int gpt2c_num_kernels;
extern const char* const gpt2c_kernel_names[];
extern const char* const gpt2c_kernel_doors[];

// Instruction sets by number, best last; `usable` says whether this build has it and this CPU can run it.
extern const int gpt2c_num_isas;
const char* gpt2c_isa_name(int isa);
int gpt2c_isa_usable(int isa);

int gpt2c_has_openmp(void);
extern const char* const gpt2c_compiler;

// What is set for all kernels. A run has a copy, so that what is set meanwhile holds from the next one on.
typedef struct {
    int isa;  // by number
    int threads;
    int matmul_bf16;
} Settings;

// Memory for the kernels of one run at a time. It only grows: it is a few megabytes per thread.
typedef struct {
    float* memory;  // free() it at the end
    size_t floats;
} Scratch;

// Runs `count` calls in order. `seconds`, if not NULL, receives the time each took. Returns 0, or -1 if there was no
// memory for the kernels' scratch: then nothing has run. Any number of threads may be in here at once, each with a
// scratch of its own.
int gpt2c_run(const Call* calls, int64_t count, Settings settings, Scratch* scratch, double* seconds);

#endif
