/* "amx+avx512": each expert by the kernel that suits its number of tokens in the layer-step. In int8 mode both
 * give the same bits; bf16 weights are summed in another order. What AMX cannot compute as exactly is left to the
 * ISA beside it: quantised weights with activations of 16 bits, which its tiles round (docs/amx.md), and float32.
 *
 * A library without AVX-512 has AVX2 beside AMX. CMake never makes one; the tests do, for a CPU that has neither
 * (tests/kernels/amx). */
#include "parts.h"

#ifdef MOELAB_AMX
#ifdef MOELAB_AVX512
#define BESIDE(name, phase) moelab_avx512_##name##_##phase
extern "C" const char *moelab_beside_amx() { return "avx512"; }
#else
#define BESIDE(name, phase) moelab_avx2_##name##_##phase
extern "C" const char *moelab_beside_amx() { return "avx2"; }
#endif

/* Units [start, stop), `each` of them a whole expert, by runs of one expert. */
template <moelab_phase_fn few, moelab_phase_fn many>
static int32_t by_expert(const moelab_moe_job *job, bool is_down, int64_t each, int64_t start, int64_t stop,
                         uint64_t *bytes_read) {
    while (start < stop) {
        const part p = part_at(job, is_down, each, start, stop);
        const int64_t end = start + p.count;
        const bool is_few = job->pair_start[p.expert + 1] - job->pair_start[p.expert] < MOELAB_AMX_MIN_TOKENS;
        const int32_t status = is_few ? few(job, start, end, bytes_read) : many(job, start, end, bytes_read);
        if (status) return status;
        start = end;
    }
    return MOELAB_OK;
}

#define PHASE(name, phase, is_down, each)                                                                        \
    extern "C" int32_t BESIDE(name, phase)(const moelab_moe_job *, int64_t, int64_t, uint64_t *);                \
    extern "C" int32_t moelab_amx_##name##_##phase(const moelab_moe_job *, int64_t, int64_t, uint64_t *);        \
    extern "C" int32_t moelab_crossover_##name##_##phase(const moelab_moe_job *job, int64_t start, int64_t stop, \
                                                         uint64_t *bytes_read) {                                 \
        if (job->hidden_size < 1 || job->intermediate_size < 1) return MOELAB_BAD_SHAPE;                         \
        return by_expert<BESIDE(name, phase), moelab_amx_##name##_##phase>(job, is_down, each, start, stop,      \
                                                                           bytes_read);                          \
    }
#define PHASES(name)                                                  \
    PHASE(name, gate_up, false, tiles_of(job->intermediate_size, 32)) \
    PHASE(name, down, true, tiles_of(job->hidden_size, 16))           \
    PHASE(name, linear, false, tiles_of(job->intermediate_size, 16))

PHASES(bf16)
PHASES(int4_int8)
PHASES(int8_int8)

#define BESIDE_ONLY(name, phase)                                                                                 \
    extern "C" int32_t BESIDE(name, phase)(const moelab_moe_job *, int64_t, int64_t, uint64_t *);                \
    extern "C" int32_t moelab_crossover_##name##_##phase(const moelab_moe_job *job, int64_t start, int64_t stop, \
                                                         uint64_t *bytes_read) {                                 \
        return BESIDE(name, phase)(job, start, stop, bytes_read);                                                \
    }
#define PHASES_BESIDE_ONLY(name) \
    BESIDE_ONLY(name, gate_up)   \
    BESIDE_ONLY(name, down)      \
    BESIDE_ONLY(name, linear)

PHASES_BESIDE_ONLY(int4_int16)
PHASES_BESIDE_ONLY(int8_int16)
PHASES_BESIDE_ONLY(float32)
#endif
