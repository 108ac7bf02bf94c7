/* Which kernels this library has, by ISA, weight format and activation mode: one table. */
#include <cstring>

#include "moelab_kernels.h"

#define PHASES(isa, name)                                                                            \
    extern "C" int32_t moelab_##isa##_##name##_gate_up(const moelab_moe_job *, int64_t, int64_t, uint64_t *); \
    extern "C" int32_t moelab_##isa##_##name##_down(const moelab_moe_job *, int64_t, int64_t, uint64_t *);
PHASES(generic, float32)
PHASES(generic, bf16)
PHASES(generic, int4_bf16)
PHASES(generic, int4_int8)

struct kernel_row {
    const char *isa;
    int32_t weight_format, activation_mode;
    moelab_phase_fn gate_up, down;
};

#define ROW(isa, format, mode, name) {#isa, format, mode, moelab_##isa##_##name##_gate_up, moelab_##isa##_##name##_down}
static const kernel_row kernel_rows[] = {
    ROW(generic, MOELAB_FLOAT32, MOELAB_ACT_F32, float32),
    ROW(generic, MOELAB_BF16, MOELAB_ACT_BF16, bf16),
    ROW(generic, MOELAB_INT4_G32, MOELAB_ACT_BF16, int4_bf16),
    ROW(generic, MOELAB_INT4_G32, MOELAB_ACT_INT8, int4_int8),
};

extern "C" MOELAB_API uint32_t moelab_abi_version(void) { return MOELAB_ABI_VERSION; }

extern "C" MOELAB_API int32_t moelab_isa_built(const char *isa) {
    for (const kernel_row &row : kernel_rows)
        if (std::strcmp(row.isa, isa) == 0) return 1;
    return 0;
}

extern "C" MOELAB_API int32_t moelab_isa_supported(const char *isa) {
    return std::strcmp(isa, "generic") == 0; /* every CPU; others ask the CPU here */
}

extern "C" MOELAB_API int32_t moelab_kernels(const char *isa, int32_t weight_format, int32_t activation_mode,
                                             moelab_kernel_table *table) {
    if (table->struct_bytes != sizeof(moelab_kernel_table) || table->abi_version != MOELAB_ABI_VERSION)
        return MOELAB_BAD_STRUCT;
    for (const kernel_row &row : kernel_rows) {
        if (std::strcmp(row.isa, isa) != 0) continue;
        if (row.weight_format != weight_format || row.activation_mode != activation_mode) continue;
        table->gate_up = row.gate_up;
        table->down = row.down;
        return MOELAB_OK;
    }
    return MOELAB_UNSUPPORTED;
}
