"""Builds gpt2c._core: the kernels once per instruction set, linked with the door (kernels/stream.pyx).

Environment:
    CC                     the compiler
    GPT2C_NO_OPENMP=1      build without threads (otherwise a compiler without OpenMP is an error)
    GPT2C_SANITIZE=LIST    e.g. address,undefined: instrument the kernels (run with the sanitizer's library preloaded)
"""

import os
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = [
    f"kernels/{name}.c"
    for name in (
        "activation",
        "attention",
        "attention_materialised",
        "cope",
        "dropout",
        "dyt",
        "elementwise",
        "embedding",
        "few_rows",
        "gru",
        "loss",
        "matmul",
        "moe",
        "norm",
        "optim",
        "peak",
        "recursion",
        "repack",
        "rope",
        "scan",
        "table",
    )
]
ONCE = ["kernels/isa.c", "kernels/program.c"]  # without instruction set flags
NEEDED = [str(path) for path in sorted(Path("kernels").iterdir()) if path.suffix in (".c", ".h", ".def", ".py", ".pyx")]
GENERATED = "build/kernels"  # calls.h (kernels/generate.py), and stream.pyx in C

# No -ffast-math: it breaks NaN checks and changes how the whole process treats subnormals. The two flags that are
# set only say that nobody reads errno or floating-point exception flags. -g0: Python was often built with -g, which would
# make the wheel three times as large. Loops that begin where a cache line does: else products are up to 4 % slower, or not,
# as chance has it.
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-falign-loops=64",
    "-g0",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-Wall",
]

ISAS = {"baseline": []}
if sysconfig.get_platform().endswith("x86_64"):  # what is built for, which need not be where it is built
    AVX2 = ["-mavx2", "-mfma", "-mf16c"]
    AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
    AVX512BF16 = [*AVX512, "-mavx512bf16", "-mavx512vnni"]
    ISAS = {
        "baseline": ["-march=x86-64-v2"],
        "avx2": AVX2,
        "avx512": AVX512,
        "avx512bf16": AVX512BF16,
        "amx": [*AVX512BF16, "-mamx-tile", "-mamx-bf16"],
    }


class BuildKernels(build_ext):
    """Compiles each kernel file once per instruction set, each set into a folder of its own."""

    def build_extension(self, ext):
        self.force = True  # setuptools does not look at the kernels' objects when it decides whether to link again
        self.spawn([sys.executable, "kernels/generate.py", f"{GENERATED}/calls.h"])
        flags = FLAGS + self.openmp_flags(ext) + self.sanitizer_flags(ext)
        folder = Path(self.build_temp) / "-".join(["kernels", *os.environ.get("GPT2C_SANITIZE", "").split(",")])
        isas = {isa: isa_flags for isa, isa_flags in ISAS.items() if isa != "amx" or self.compiler_knows(isa_flags)}
        has_amx = [("GPT2C_AMX", "1")] if "amx" in isas else []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = [
                pool.submit(
                    self.compiler.compile,
                    [source],
                    output_dir=str(folder / (isa or "once")),
                    include_dirs=[GENERATED],
                    depends=NEEDED,
                    macros=[("ISA", isa or "baseline"), *has_amx],
                    extra_postargs=flags + isa_flags,
                )
                for isa, isa_flags in {**isas, None: []}.items()
                for source in (KERNELS if isa else ONCE)
            ]
        ext.extra_objects += [path for done in compiled for path in done.result()]
        super().build_extension(ext)

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        for old in set(Path("gpt2c").glob("_core.*.so")) - {Path("gpt2c") / self.get_ext_filename("_core")}:
            old.unlink()  # built for one version of Python only, it would be taken before this one

    def compiler_knows(self, flags):
        """Older compilers know all instruction sets but AMX."""
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.c"
            probe.write_text("#include <immintrin.h>\nvoid probe(void) { _tile_dpbf16ps(0, 1, 2); }\n")
            try:
                self.compiler.compile([str(probe)], output_dir=folder, extra_postargs=flags)
            except CompileError:
                return False
        return True

    def openmp_flags(self, ext):
        if os.environ.get("GPT2C_NO_OPENMP", "0") not in ("", "0"):
            return []
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.c"
            probe.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([str(probe)], output_dir=folder, extra_postargs=["-fopenmp"])
                self.compiler.link_executable(objects, str(Path(folder) / "probe"), extra_postargs=["-fopenmp"])
            except Exception as error:
                raise CompileError(
                    "the C compiler has no OpenMP, so gpt2c would use one core only. Install it (Debian: gcc brings it; "
                    "macOS: brew install libomp, and a compiler that finds it in CC), or set GPT2C_NO_OPENMP=1 to build "
                    f"for one thread. ({error})"
                ) from None
        ext.extra_link_args.append("-fopenmp")
        return ["-fopenmp"]

    def sanitizer_flags(self, ext):
        sanitizers = os.environ.get("GPT2C_SANITIZE")
        if not sanitizers:
            return []
        ext.extra_link_args.append(f"-fsanitize={sanitizers}")
        return [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined", "-g", "-O1"]


if sys.byteorder != "little":
    raise SystemExit("gpt2c reads and writes little-endian files in place: a big-endian machine is not supported.")

# CPython's stable interface: one binary serves every version from the oldest supported one on.
core = Extension(
    "gpt2c._core",
    ["kernels/stream.pyx"],
    include_dirs=["kernels", GENERATED],
    depends=NEEDED,  # and so a part of a source distribution
    py_limited_api=True,
    extra_compile_args=["-g0"],
    define_macros=[("ISA", "baseline"), ("Py_LIMITED_API", "0x030B0000")],
)
# gpt2c.shipped: what a first run trains on.
setup(
    packages=[*find_packages(include=["gpt2c*"]), "gpt2c.shipped"],
    package_dir={"gpt2c.shipped": "data"},
    ext_modules=cythonize([core], build_dir="build"),
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
