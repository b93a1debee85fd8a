// This instruction set's kernels, for program.c to choose from.
#include "table.h"

#define KERNEL(name, door, scratch, arguments) SCRATCH(name)
#define SCRATCH(name) .name = K(name),

const Kernels K(kernels) = {KERNELS(KERNEL) SCRATCHES(SCRATCH)};
