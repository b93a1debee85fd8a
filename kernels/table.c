// This instruction set's kernels, for program.c to choose from.
#include "table.h"

#define KERNEL(name, door, scratch, arguments) SCRATCH(name)
#define SCRATCH(name) .name = FN(name),

const Kernels FN(kernels) = {KERNELS(KERNEL) SCRATCHES(SCRATCH)};
