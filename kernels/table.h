// The kernels of one instruction set as a table of function pointers, in the order of kernels.def.
#ifndef GPT2C_TABLE_H
#define GPT2C_TABLE_H

#include "calls.h"
#include "gpt2c.h"

#define KERNEL_POINTER(name, door, scratch, arguments) SCRATCH_POINTER(name)
#define SCRATCH_POINTER(name) __typeof__(&FN(name)) name;

typedef struct {
    KERNELS(KERNEL_POINTER)
    SCRATCHES(SCRATCH_POINTER)
} Kernels;

#endif
