/* AMX for a CPU that has none: a handler of SIGILL that decodes and executes the tile instructions, one state for each
 * thread.
 *
 * Written from the Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (LDTILECFG, STTILECFG,
 * TILELOADD, TILELOADDT1, TILESTORED, TILEZERO, TILERELEASE, TDPB[SU][SU]D, TDPBF16PS). Loading it installs it; on a
 * CPU with AMX it does nothing, and the same tests run on the hardware. An instruction that the hardware would refuse
 * (#UD, #GP), or that comes before the process asked for its permission, is named on stderr and ends the process by
 * SIGILL (the hardware says SIGSEGV to #GP). It does not know a restart after a fault (start_row other than 0),
 * prefixes before VEX, or how long anything takes. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dirent.h>
#include <errno.h>
#include <immintrin.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "moelab_kernels.h"

enum operation { LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILELOADDT1, TILESTORED, TDPBSSD, TDPBSUD,
                 TDPBUSD, TDPBUUD, TDPBF16PS, NUM_OPERATIONS };
static const char *const names[NUM_OPERATIONS] = {"LDTILECFG", "STTILECFG",   "TILERELEASE", "TILEZERO",
                                                  "TILELOADD", "TILELOADDT1", "TILESTORED",  "TDPBSSD",
                                                  "TDPBSUD",   "TDPBUSD",     "TDPBUUD",     "TDPBF16PS"};

struct configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
struct tiles {
    struct configuration shape; /* palette 0: not configured */
    union {
        uint8_t u8[64];
        int8_t s8[64];
        uint16_t bf16[32];
        int32_t s32[16];
        float f32[16];
    } row[8][16];
};

static __thread struct tiles *of_thread __attribute__((tls_model("initial-exec")));
static _Atomic uint64_t counts[NUM_OPERATIONS];
static _Atomic int permitted;
static int64_t answer_to_request;
static int active, num_requests, threads_at_request;
static struct sigaction before;

/* What an instruction says, decoded. */
struct instruction {
    int operation, length;
    int reg, rm, vvvv;         /* tile numbers: ModRM.reg, ModRM.rm, VEX.vvvv */
    const uint8_t *address;    /* of the memory operand, without the index */
    int64_t stride;            /* the index times its scale */
};

static int64_t general_register(const ucontext_t *context, int number) {
    static const int place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return context->uc_mcontext.gregs[place[number]];
}

/* The operation of a VEX.128.0F38.W0 opcode, or -1. */
static int operation_of(int opcode, int prefix, int mod, int reg, int rm) {
    enum { none, p66, pF3, pF2 };
    static const int by_prefix_5e[4] = {TDPBUUD, TDPBUSD, TDPBSUD, TDPBSSD},
                     by_prefix_4b[4] = {-1, TILELOADDT1, TILESTORED, TILELOADD};
    if (opcode == 0x49 && mod != 3) return reg != 0 ? -1 : prefix == none ? LDTILECFG : prefix == p66 ? STTILECFG : -1;
    if (opcode == 0x49)
        return prefix == none && reg == 0 && rm == 0 ? TILERELEASE : prefix == pF2 && rm == 0 ? TILEZERO : -1;
    if (opcode == 0x4b) return mod != 3 && rm == 4 ? by_prefix_4b[prefix] : -1;
    if (opcode == 0x5e) return mod == 3 ? by_prefix_5e[prefix] : -1;
    return opcode == 0x5c && mod == 3 && prefix == pF3 ? TDPBF16PS : -1;
}

/* 1 where the bytes at `code` are a tile instruction. */
static int decode(const ucontext_t *context, const uint8_t *code, struct instruction *found) {
    if (code[0] != 0xc4 || (code[1] & 31) != 2 || (code[2] & 0x84) != 0) return 0; /* VEX.128, map 0F38, W0 */
    const int extend_reg = (~code[1] >> 7 & 1) * 8, extend_index = (~code[1] >> 6 & 1) * 8,
              extend_base = (~code[1] >> 5 & 1) * 8;
    const int mod = code[4] >> 6, reg = code[4] >> 3 & 7, rm = code[4] & 7;
    found->operation = operation_of(code[3], code[2] & 3, mod, reg, rm);
    if (found->operation < 0) return 0;
    found->reg = reg + extend_reg;
    found->vvvv = ~code[2] >> 3 & 15;
    found->rm = rm + extend_base;
    found->length = 5;
    if (mod == 3) return 1;
    int64_t address = 0, index = 0;
    int base = rm, wide = mod == 2;
    if (rm == 4) {
        const int sib = code[found->length++], number = (sib >> 3 & 7) + extend_index;
        base = sib & 7;
        if (number != 4) index = general_register(context, number) << (sib >> 6);
    }
    if (mod == 0 && base == 5) { /* no base, or relative to the next instruction */
        wide = 1;
        if (rm == 5) address = (int64_t)(code + found->length + 4);
    } else {
        address = general_register(context, base + extend_base);
    }
    if (wide) {
        int32_t displacement;
        memcpy(&displacement, code + found->length, 4);
        address += displacement;
        found->length += 4;
    } else if (mod == 1) {
        address += (int8_t)code[found->length++];
    }
    if (rm != 4 || found->operation == LDTILECFG || found->operation == STTILECFG) address += index;
    found->address = (const uint8_t *)address;
    found->stride = index;
    return 1;
}

static const char *wrong_configuration(const struct configuration *c) {
    static const uint8_t zero[16];
    if (c->palette > 1) return "#GP palette is not 0 or 1";
    if (c->palette == 0) return NULL;
    if (memcmp(c->reserved, zero, 14) || memcmp(c->row_bytes + 8, zero, 16) || memcmp(c->rows + 8, zero, 8))
        return "#GP reserved bytes are not zero";
    for (int i = 0; i < 8; i++) {
        if (c->row_bytes[i] > 64) return "#GP bytes of a row > 64";
        if (c->rows[i] > 16) return "#GP rows > 16";
        if ((c->rows[i] == 0) != (c->row_bytes[i] == 0)) return "#GP rows or bytes of a row are 0, but not both";
    }
    return NULL;
}

static const char *wrong_tile(const struct tiles *t, int tile) {
    if (tile > 7) return "#UD there is no such tile";
    return t->shape.rows[tile] == 0 ? "#UD tile has no shape" : NULL;
}

static const char *wrong_dot(const struct tiles *t, const struct instruction *i) {
    const struct configuration *c = &t->shape;
    const char *wrong = wrong_tile(t, i->reg);
    if (!wrong) wrong = wrong_tile(t, i->rm);
    if (!wrong) wrong = wrong_tile(t, i->vvvv);
    if (wrong) return wrong;
    if (i->reg == i->rm || i->reg == i->vvvv || i->rm == i->vvvv) return "#UD operands are not three different tiles";
    if (c->row_bytes[i->reg] % 4 || c->row_bytes[i->rm] % 4 || c->row_bytes[i->vvvv] % 4)
        return "#UD bytes of a row are no multiple of 4";
    if (c->rows[i->reg] != c->rows[i->rm]) return "#UD dest.rows != src1.rows (M)";
    if (c->row_bytes[i->rm] / 4 != c->rows[i->vvvv]) return "#UD src1.row_bytes / 4 != src2.rows (K)";
    if (c->row_bytes[i->reg] != c->row_bytes[i->vvvv]) return "#UD dest.row_bytes != src2.row_bytes (N)";
    return NULL;
}

static void dot_integers(struct tiles *t, const struct instruction *i, int signed_a, int signed_b) {
    const int num_rows = t->shape.rows[i->reg], num_sums = t->shape.row_bytes[i->reg] / 4,
              num_quads = t->shape.rows[i->vvvv];
    for (int m = 0; m < num_rows; m++)
        for (int k = 0; k < num_quads; k++)
            for (int c = 0; c < 4; c++) {
                const int32_t a = signed_a ? t->row[i->rm][m].s8[4 * k + c] : t->row[i->rm][m].u8[4 * k + c];
                for (int n = 0; n < num_sums; n++) {
                    const int32_t b = signed_b ? t->row[i->vvvv][k].s8[4 * n + c] : t->row[i->vvvv][k].u8[4 * n + c];
                    t->row[i->reg][m].s32[n] = (int32_t)((uint32_t)t->row[i->reg][m].s32[n] + (uint32_t)(a * b));
                }
            }
}

static float from_bf16(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

/* Even and odd columns have sums of their own, by fused multiply-add, which meet before they are added to the tile. */
static void dot_bf16(struct tiles *t, const struct instruction *i) {
    const int num_rows = t->shape.rows[i->reg], num_sums = t->shape.row_bytes[i->reg] / 4,
              num_pairs = t->shape.rows[i->vvvv];
    /* To nearest even, denormals are zero on both sides, no traps; the return from the signal takes it back. */
    _mm_setcsr(0x9fc0);
    __asm__ volatile("" ::: "memory");
    for (int m = 0; m < num_rows; m++) {
        float sums[16][2] = {{0}};
        for (int k = 0; k < num_pairs; k++)
            for (int n = 0; n < num_sums; n++)
                for (int c = 0; c < 2; c++)
                    sums[n][c] = __builtin_fmaf(from_bf16(t->row[i->rm][m].bf16[2 * k + c]),
                                                from_bf16(t->row[i->vvvv][k].bf16[2 * n + c]), sums[n][c]);
        for (int n = 0; n < num_sums; n++) t->row[i->reg][m].f32[n] += sums[n][0] + sums[n][1];
    }
}

/* Does what the instruction says; returns why it cannot. */
static const char *execute(struct tiles *t, const struct instruction *i) {
    const char *wrong = NULL;
    if (!atomic_load(&permitted)) return "no permission: arch_prctl(ARCH_REQ_XCOMP_PERM, 18) comes first";
    if (i->operation == LDTILECFG) {
        struct configuration loaded;
        memcpy(&loaded, i->address, 64);
        if ((wrong = wrong_configuration(&loaded))) return wrong;
        memset(t, 0, sizeof(*t));
        if (loaded.palette) t->shape = loaded;
    } else if (i->operation == STTILECFG) {
        memcpy((void *)i->address, &t->shape, 64);
    } else if (i->operation == TILERELEASE) {
        memset(t, 0, sizeof(*t));
    } else if (t->shape.palette == 0) {
        return "#UD tiles are not configured";
    } else if (i->operation >= TDPBSSD) {
        if ((wrong = wrong_dot(t, i))) return wrong;
        if (i->operation == TDPBF16PS)
            dot_bf16(t, i);
        else
            dot_integers(t, i, i->operation == TDPBSSD || i->operation == TDPBSUD,
                         i->operation == TDPBSSD || i->operation == TDPBUSD);
    } else {
        if ((wrong = wrong_tile(t, i->reg))) return wrong;
        if (t->shape.start_row) return "start_row other than 0 is not emulated";
        const int row_bytes = t->shape.row_bytes[i->reg];
        if (i->operation != TILESTORED) memset(t->row[i->reg], 0, sizeof(t->row[i->reg]));
        for (int r = 0; r < t->shape.rows[i->reg] && i->operation != TILEZERO; r++) {
            const uint8_t *at = i->address + r * i->stride;
            if (i->operation == TILESTORED)
                memcpy((void *)at, t->row[i->reg][r].u8, row_bytes);
            else
                memcpy(t->row[i->reg][r].u8, at, row_bytes);
        }
    }
    atomic_fetch_add_explicit(&counts[i->operation], 1, memory_order_relaxed);
    return NULL;
}

static void refuse(const char *name, const char *reason) {
    char line[160];
    const int length = snprintf(line, sizeof(line), "AMX emulator: %s: %s\n", name, reason);
    if (write(2, line, length) < 0) _exit(132);
    signal(SIGILL, SIG_DFL); /* the instruction is tried again and ends the process */
}

static void on_illegal_instruction(int number, siginfo_t *info, void *pointer) {
    ucontext_t *context = pointer;
    greg_t *rip = &context->uc_mcontext.gregs[REG_RIP];
    struct instruction found = {0};
    int executed = 0;
    /* The next ones too: a trap takes longer than most of them. */
    while (decode(context, (const uint8_t *)*rip, &found)) {
        if (!of_thread) {
            void *memory = mmap(NULL, sizeof(struct tiles), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (memory == MAP_FAILED) return refuse(names[found.operation], "no memory for the tiles of a thread");
            of_thread = memory;
        }
        const char *wrong = execute(of_thread, &found);
        if (wrong) return refuse(names[found.operation], wrong);
        *rip += found.length;
        executed++;
    }
    if (executed) return;
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(number, info, pointer);
    else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN)
        refuse("not a tile instruction", "illegal for this CPU too");
    else
        before.sa_handler(number);
}

static void cpuid_with_amx(uint32_t leaf, uint32_t subleaf, uint32_t *registers) {
    __cpuid_count(leaf, subleaf, registers[0], registers[1], registers[2], registers[3]);
    if (leaf == 7 && subleaf == 0) registers[3] |= 1u << 22 | 1u << 24 | 1u << 25;
}

static uint64_t xcr0_with_tiles(uint32_t number) { return number == 0 ? 0x600e7 : 0; }

static int num_threads(void) {
    int num = 0;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *entry; tasks && (entry = readdir(tasks));) num += entry->d_name[0] != '.';
    if (tasks) closedir(tasks);
    return num;
}

static int64_t request_permission(int32_t feature) {
    num_requests++;
    threads_at_request = num_threads();
    if (feature != 18) return -EINVAL;
    if (answer_to_request == 0) atomic_store(&permitted, 1);
    return answer_to_request;
}

static const moelab_amx_questions emulated = {sizeof(moelab_amx_questions), MOELAB_ABI_VERSION, cpuid_with_amx,
                                              xcr0_with_tiles, request_permission};

/* Who answers kernels/amx_permission.cpp. */
const moelab_amx_questions *moelab_emulated_machine(const moelab_amx_questions *real) {
    return active ? &emulated : real;
}

MOELAB_API int amx_emulator_active(void) { return active; }
/* What the kernel answers to a request from now on: 0 or -errno. */
MOELAB_API void amx_emulator_answer(int64_t answer) { answer_to_request = answer; }
MOELAB_API int amx_emulator_num_requests(void) { return num_requests; }
MOELAB_API int amx_emulator_threads_at_request(void) { return threads_at_request; }
MOELAB_API int amx_emulator_num_operations(void) { return NUM_OPERATIONS; }
MOELAB_API const char *amx_emulator_name(int operation) { return names[operation]; }
MOELAB_API uint64_t amx_emulator_count(int operation) { return atomic_load(&counts[operation]); }

__attribute__((constructor)) static void install(void) {
    uint32_t a, b, c, d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1)) return;
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = on_illegal_instruction;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    active = sigaction(SIGILL, &action, &before) == 0;
}
