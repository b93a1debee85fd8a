"""The speed of every kernel, most at the shapes of GPT-2 124M. A kernel whose result is wrong is not timed.

The cases are those of gpt2c bench (gpt2c.bench.kernel_cases).
"""

import gpt2c
from gpt2c import _core
from gpt2c.bench import kernel_cases, kernel_setups
from gpt2c.bench import measure as benchmarks

SMALL = {"B": 2, "lengths": (5, 67), "C": 96, "H": 3, "V": 1009, "P": 1024, "parameters": 100_003}


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption
    timed = option("benchmark_enable") or not option("benchmark_disable")
    cases = list(kernel_cases.gpt2_cases(**kernel_cases.GPT2_124M if timed else SMALL))
    metafunc.parametrize("isa", _core.isas() if option("--isas", None) == "all" else _core.isas()[-1:])
    metafunc.parametrize("case", cases, ids=[case.name for case in cases])


def test_kernel_speed(isa, case, machine, speeds, benchmark):
    gpt2c.set_isa(isa)
    program, _ = kernel_setups.prepare(case)
    benchmark(program.run)
    if benchmark.enabled:
        row = benchmarks.kernel_row(case, program, isa, machine(), benchmark.stats["median"])
        benchmark.extra_info.update(row)
        speeds.append(row)
