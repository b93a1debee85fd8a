// This instruction set's kernels, for program.c to choose from.
#include "table.h"

const Kernels K(kernels) = {
#define KERNEL(name, door, scratch, arguments) .name = K(name),
#include "kernels.def"
#undef KERNEL
#define SCRATCH(name) .name = K(name),
#include "scratch.def"
#undef SCRATCH
};
