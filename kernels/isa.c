// Which instruction sets this build has, which of them this CPU and its operating system can run, and its kernels.
// Compiled without instruction set flags: nothing here may itself need what it asks about.
#include "program.h"
#include "table.h"

typedef struct {
    const char* name;
    const Kernels* kernels;
    int (*usable)(void);
} Isa;

extern const Kernels kernels_baseline;
static int always(void) { return 1; }

#if defined(__x86_64__)
#include <cpuid.h>
extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512bf16;

// The registers that the operating system saves (XCR0); 0 where it cannot say.
static uint64_t saved_registers(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return 0;  // OSXSAVE
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int has_avx2(void) {
    unsigned a, b, c, d;
    if ((saved_registers() & 0x6) != 0x6) return 0;  // XMM, YMM
    const unsigned fma = 1u << 12, avx = 1u << 28, f16c = 1u << 29;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (fma | avx | f16c)) != (fma | avx | f16c)) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 5));                        // AVX2
}

static int has_avx512(void) {
    unsigned a, b, c, d;
    if (!has_avx2() || (saved_registers() & 0xe6) != 0xe6) return 0;  // and opmask, ZMM
    const unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (f | dq | bw | vl)) == (f | dq | bw | vl);
}

static int has_avx512bf16(void) {
    unsigned a, b, c, d;
    if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(c & (1u << 11))) return 0;  // VNNI, which all of them have
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
}

#if defined(GPT2C_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
extern const Kernels kernels_amx;

// Linux lets a process use the tiles, 8 KB that each switch between threads must save, only after it has asked for them.
static int has_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    if (!has_avx512bf16() || (saved_registers() & 0x60000) != 0x60000) return 0;  // tile configuration, tile data
    const unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & amx_bf16) && (d & amx_tile) &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}
#endif
#endif

static const Isa isas[] = {
    {"baseline", &kernels_baseline, always},
#if defined(__x86_64__)
    {"avx2", &kernels_avx2, has_avx2},
    {"avx512", &kernels_avx512, has_avx512},
    {"avx512bf16", &kernels_avx512bf16, has_avx512bf16},
#if defined(GPT2C_AMX) && defined(__linux__)
    {"amx", &kernels_amx, has_amx},
#endif
#endif
};

enum { NUM_ISAS = sizeof isas / sizeof isas[0] };
const int gpt2c_num_isas = NUM_ISAS;

const char* gpt2c_isa_name(int isa) { return isas[isa].name; }
int gpt2c_isa_usable(int isa) { return isas[isa].usable(); }
const Kernels* gpt2c_isa_kernels(int isa) { return isas[isa].kernels; }
