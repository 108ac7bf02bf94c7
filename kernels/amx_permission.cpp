/* May this process use AMX: three questions in a fixed order, each with its own answer. */
#include "fits.h"

static int32_t answer(const moelab_amx_questions *ask) {
    uint32_t registers[4] = {0, 0, 0, 0};
    ask->cpuid(0, 0, registers);
    if (registers[0] < 7) return MOELAB_AMX_NOT_IN_CPU;
    ask->cpuid(7, 0, registers);
    const uint32_t amx = 1u << 22 | 1u << 24 | 1u << 25; /* AMX-BF16, AMX-TILE, AMX-INT8 */
    if ((registers[3] & amx) != amx) return MOELAB_AMX_NOT_IN_CPU;
    ask->cpuid(1, 0, registers);
    const uint64_t tiles = 1u << 17 | 1u << 18;                             /* shapes and contents */
    if (!(registers[2] & 1u << 27)) return MOELAB_AMX_NOT_SAVED;            /* OSXSAVE: there is no XGETBV */
    if ((ask->xgetbv(0) & tiles) != tiles) return MOELAB_AMX_NOT_SAVED;
    return ask->request_permission(18) == 0 ? MOELAB_AMX_USABLE : MOELAB_AMX_NOT_PERMITTED;
}

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

static void ask_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *registers) {
    __cpuid_count(leaf, subleaf, registers[0], registers[1], registers[2], registers[3]);
}

static uint64_t ask_xgetbv(uint32_t number) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(number));
    return (uint64_t)high << 32 | low;
}

static int64_t ask_kernel(int32_t feature) {
    const int request = 0x1023; /* ARCH_REQ_XCOMP_PERM */
    return syscall(SYS_arch_prctl, request, (long)feature) == 0 ? 0 : -errno;
}

static const moelab_amx_questions machine = {sizeof(moelab_amx_questions), MOELAB_ABI_VERSION, ask_cpuid, ask_xgetbv,
                                             ask_kernel};

#ifdef MOELAB_AMX_EMULATED /* the tests' build: tests/kernels/amx/emulator.c answers, for the machine that it plays */
extern "C" const moelab_amx_questions *moelab_emulated_machine(const moelab_amx_questions *real);
static int32_t answer_of_machine() { return answer(moelab_emulated_machine(&machine)); }
#else
static int32_t answer_of_machine() { return answer(&machine); }
#endif
#else
static int32_t answer_of_machine() { return MOELAB_AMX_NOT_IN_CPU; }
#endif

extern "C" MOELAB_API int32_t moelab_amx(const moelab_amx_questions *questions) {
    if (!questions) {
        static const int32_t answered = answer_of_machine();
        return answered;
    }
    if (!fits(questions)) return MOELAB_BAD_STRUCT;
    return answer(questions);
}
