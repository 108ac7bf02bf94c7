/* The peak of computing on all workers of a pool, for the ISAs that have a dot-product instruction. */
#include <atomic>
#include <cstring>

#include "moelab_kernels.h"
#include "pool.h"

extern "C" {
uint64_t moelab_avx512_peak_int8(int64_t);
uint64_t moelab_avx512_peak_bf16(int64_t);
uint64_t moelab_amx_peak_int8(int64_t);
uint64_t moelab_amx_peak_bf16(int64_t);
}

struct peak_run {
    uint64_t (*loop)(int64_t);
    int64_t iterations;
    std::atomic<uint64_t> operations{0};
};

static void run_loop(void *context, int32_t, int32_t) {
    peak_run *run = (peak_run *)context;
    run->operations.fetch_add(run->loop(run->iterations), std::memory_order_relaxed);
}

extern "C" MOELAB_API uint64_t moelab_peak(moelab_pool *pool, const char *isa, int32_t activation_mode,
                                           int64_t iterations) {
    peak_run run;
    run.loop = nullptr;
    run.iterations = iterations;
#ifdef MOELAB_AVX512
    if (std::strcmp(isa, "avx512") == 0 && moelab_isa_supported(isa)) {
        if (activation_mode == MOELAB_ACT_INT8) run.loop = moelab_avx512_peak_int8;
        if (activation_mode == MOELAB_ACT_BF16 && moelab_avx512_bf16()) run.loop = moelab_avx512_peak_bf16;
    }
#endif
#ifdef MOELAB_AMX
    if (std::strncmp(isa, "amx", 3) == 0 && moelab_isa_supported(isa)) {
        if (activation_mode == MOELAB_ACT_INT8) run.loop = moelab_amx_peak_int8;
        if (activation_mode == MOELAB_ACT_BF16) run.loop = moelab_amx_peak_bf16;
    }
#endif
    (void)isa;
    (void)activation_mode;
    if (!run.loop) return 0;
    if (pool)
        pool->run(run_loop, &run);
    else
        run_loop(&run, 0, 1);
    return run.operations.load();
}
