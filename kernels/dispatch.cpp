/* Which kernels this library has, by ISA, weight format and activation mode: one table, and what each ISA asks of
 * the CPU. */
#include <cstring>

#include "fits.h"

#define PHASES(isa, name)                                                                                        \
    extern "C" int32_t moelab_##isa##_##name##_gate_up(const moelab_moe_job *, int64_t, int64_t, uint64_t *);    \
    extern "C" int32_t moelab_##isa##_##name##_down(const moelab_moe_job *, int64_t, int64_t, uint64_t *);       \
    extern "C" int32_t moelab_##isa##_##name##_linear(const moelab_moe_job *, int64_t, int64_t, uint64_t *);
#define ALL_PHASES(isa)       \
    PHASES(isa, float32)      \
    PHASES(isa, bf16)         \
    PHASES(isa, int4_int16)   \
    PHASES(isa, int4_int8)    \
    PHASES(isa, int8_int16)   \
    PHASES(isa, int8_int8)    \
    extern "C" void moelab_##isa##_attend_float32(const moelab_attention *, int64_t, int64_t, int64_t, int64_t);     \
    extern "C" void moelab_##isa##_attend_bf16(const moelab_attention *, int64_t, int64_t, int64_t, int64_t);

ALL_PHASES(generic)
#ifdef MOELAB_AVX2
ALL_PHASES(avx2)
#endif
#ifdef MOELAB_AVX512
ALL_PHASES(avx512)
#endif
#ifdef MOELAB_AMX
#define TILES(name)                               \
    PHASES(amx, name)                             \
    extern "C" void moelab_amx_##name##_begin();  \
    extern "C" void moelab_amx_##name##_end();
extern "C" const char *moelab_beside_amx();
TILES(bf16)
TILES(int4_bf16)
TILES(int4_int8)
TILES(int8_bf16)
TILES(int8_int8)
PHASES(crossover, float32)
PHASES(crossover, bf16)
PHASES(crossover, int4_int16)
PHASES(crossover, int4_int8)
PHASES(crossover, int8_int16)
PHASES(crossover, int8_int8)
#endif

struct kernel_row {
    const char *isa;
    int32_t weight_format, activation_mode;
    moelab_phase_fn gate_up, down, linear;
    void (*begin)(), (*end)();
};

#define ROW_OF(isa, format, mode, prefix, begin, end) \
    {isa, format, mode, prefix##_gate_up, prefix##_down, prefix##_linear, begin, end}
#define ROW(isa, format, mode, name) ROW_OF(#isa, format, mode, moelab_##isa##_##name, nullptr, nullptr)
#define ALL_ROWS(isa)                                           \
    ROW(isa, MOELAB_FLOAT32, MOELAB_ACT_F32, float32),          \
    ROW(isa, MOELAB_BF16, MOELAB_ACT_BF16, bf16),               \
    ROW(isa, MOELAB_INT4_G32, MOELAB_ACT_INT16, int4_int16),    \
    ROW(isa, MOELAB_INT4_G32, MOELAB_ACT_INT8, int4_int8),      \
    ROW(isa, MOELAB_INT8_G32, MOELAB_ACT_INT16, int8_int16),    \
    ROW(isa, MOELAB_INT8_G32, MOELAB_ACT_INT8, int8_int8)

#define TILE_ROW(isa, prefix, format, mode, name) \
    ROW_OF(isa, format, mode, moelab_##prefix##_##name, moelab_amx_##name##_begin, moelab_amx_##name##_end)
#define TILE_ROWS(isa, prefix)                                               \
    TILE_ROW(isa, prefix, MOELAB_BF16, MOELAB_ACT_BF16, bf16),               \
    TILE_ROW(isa, prefix, MOELAB_INT4_G32, MOELAB_ACT_INT8, int4_int8),      \
    TILE_ROW(isa, prefix, MOELAB_INT8_G32, MOELAB_ACT_INT8, int8_int8)
#define BESIDE_ROW(format, mode, name) ROW_OF("amx+avx512", format, mode, moelab_crossover_##name, nullptr, nullptr)

static const kernel_row kernel_rows[] = {
    ALL_ROWS(generic),
#ifdef MOELAB_AVX2
    ALL_ROWS(avx2),
#endif
#ifdef MOELAB_AVX512
    ALL_ROWS(avx512),
#ifdef MOELAB_AVX2 /* where the CPU has no vdpbf16ps */
    ROW_OF("avx512", MOELAB_BF16, MOELAB_ACT_BF16, moelab_avx2_bf16, nullptr, nullptr),
#endif
#endif
#ifdef MOELAB_AMX
    TILE_ROWS("amx", amx),
    TILE_ROW("amx", amx, MOELAB_INT4_G32, MOELAB_ACT_BF16, int4_bf16),
    TILE_ROW("amx", amx, MOELAB_INT8_G32, MOELAB_ACT_BF16, int8_bf16),
    TILE_ROWS("amx+avx512", crossover),
    BESIDE_ROW(MOELAB_FLOAT32, MOELAB_ACT_F32, float32),
    BESIDE_ROW(MOELAB_INT4_G32, MOELAB_ACT_INT16, int4_int16),
    BESIDE_ROW(MOELAB_INT8_G32, MOELAB_ACT_INT16, int8_int16),
#endif
};

/* VNNI without BF16: Cascade Lake, Ice Lake, Rocket and Tiger Lake. MOELAB_WITHOUT_AVX512_BF16 is for the tests. */
extern "C" MOELAB_API int32_t moelab_avx512_bf16(void) {
#if defined(MOELAB_AVX512) && !defined(MOELAB_WITHOUT_AVX512_BF16)
    return moelab_isa_supported("avx512") && __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}

extern "C" MOELAB_API uint32_t moelab_abi_version(void) { return MOELAB_ABI_VERSION; }

extern "C" MOELAB_API int32_t moelab_isa_built(const char *isa) {
    for (const kernel_row &row : kernel_rows)
        if (std::strcmp(row.isa, isa) == 0) return 1;
    return 0;
}

/* The compiler's check asks the operating system too (XCR0): without its support of the registers the answer is no. */
extern "C" MOELAB_API int32_t moelab_isa_supported(const char *isa) {
    if (std::strcmp(isa, "generic") == 0) return 1;
#ifdef MOELAB_AVX2
    if (std::strcmp(isa, "avx2") == 0) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#ifdef MOELAB_AVX512
    if (std::strcmp(isa, "avx512") == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
#endif
#ifdef MOELAB_AMX
    if (std::strcmp(isa, "amx") == 0 || std::strcmp(isa, "amx+avx512") == 0)
        return moelab_isa_supported(moelab_beside_amx()) && moelab_amx(nullptr) == MOELAB_AMX_USABLE;
#endif
    return 0;
}

static bool row_runs(const kernel_row &row) {
#ifdef MOELAB_AVX512
    if (row.gate_up == moelab_avx512_bf16_gate_up) return moelab_avx512_bf16() != 0;
#endif
    (void)row;
    return true;
}

extern "C" MOELAB_API int32_t moelab_kernels(const char *isa, int32_t weight_format, int32_t activation_mode,
                                             moelab_kernel_table *table) {
    if (!fits(table)) return MOELAB_BAD_STRUCT;
    for (const kernel_row &row : kernel_rows) {
        if (std::strcmp(row.isa, isa) != 0) continue;
        if (row.weight_format != weight_format || row.activation_mode != activation_mode) continue;
        if (!row_runs(row)) continue;
        table->gate_up = row.gate_up;
        table->down = row.down;
        table->linear = row.linear;
        table->begin = row.begin;
        table->end = row.end;
        return MOELAB_OK;
    }
    return MOELAB_UNSUPPORTED;
}

extern "C" MOELAB_API void *moelab_attend(const char *isa, int32_t cache_bf16) {
#ifdef MOELAB_AMX
    if (std::strncmp(isa, "amx", 3) == 0) isa = moelab_beside_amx(); /* tiles gain nothing at one token of a head */
#endif
#define ATTEND(name)              \
    if (std::strcmp(isa, #name) == 0) \
        return (void *)(cache_bf16 ? moelab_##name##_attend_bf16 : moelab_##name##_attend_float32);
    ATTEND(generic)
#ifdef MOELAB_AVX2
    ATTEND(avx2)
#endif
#ifdef MOELAB_AVX512
    ATTEND(avx512)
#endif
    return nullptr;
}
