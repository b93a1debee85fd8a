"""From a forward pass to something that runs: memory, tape, operations, and programs of recorded kernel calls."""

# Importing it chooses the threads and the instruction set. Without that, kernels run on one thread of the baseline.
from gpt2c import settings as settings
