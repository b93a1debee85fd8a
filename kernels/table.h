// The kernels of one instruction set as a table of function pointers, in the order of kernels.def.
#ifndef GPT2C_TABLE_H
#define GPT2C_TABLE_H

#include "gpt2c.h"

typedef struct {
#define KERNEL(name, door, scratch, arguments) __typeof__(&K(name)) name;
#include "kernels.def"
#undef KERNEL
#define SCRATCH(name) __typeof__(&K(name)) name;
#include "scratch.def"
#undef SCRATCH
} Kernels;

#endif
