// A library that takes the CPU for one without AVX512_BF16: which kernels does "avx512" have then?
#include <cstdio>
#include <cstring>

#include "moelab_kernels.h"

static moelab_kernel_table table_of(const char *isa, int32_t format, int32_t mode) {
    moelab_kernel_table table;
    std::memset(&table, 0, sizeof table);
    table.struct_bytes = sizeof table;
    table.abi_version = MOELAB_ABI_VERSION;
    if (moelab_kernels(isa, format, mode, &table) != MOELAB_OK) std::printf("%s has no kernel of %d\n", isa, format);
    return table;
}

static bool same(int32_t format, int32_t mode) {
    const moelab_kernel_table a = table_of("avx512", format, mode), b = table_of("avx2", format, mode);
    return a.gate_up == b.gate_up && a.down == b.down && a.linear == b.linear;
}

int main() {
    std::printf("supported %d, bf16 %d, of avx2: bf16 %d, int4 %d %d, int8 %d %d, float32 %d, peak %d\n",
                moelab_isa_supported("avx512"), moelab_avx512_bf16(), same(MOELAB_BF16, MOELAB_ACT_BF16),
                same(MOELAB_INT4_G32, MOELAB_ACT_INT8), same(MOELAB_INT4_G32, MOELAB_ACT_INT16),
                same(MOELAB_INT8_G32, MOELAB_ACT_INT8), same(MOELAB_INT8_G32, MOELAB_ACT_INT16),
                same(MOELAB_FLOAT32, MOELAB_ACT_F32), moelab_peak(nullptr, "avx512", MOELAB_ACT_BF16, 1) != 0);
}
