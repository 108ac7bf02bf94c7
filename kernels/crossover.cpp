/* "amx+avx512": each expert by the kernel that suits its number of tokens in the layer-step. In int8 mode both
 * give the same bits; with bf16 activations they round differently, so that a token's result depends on how many
 * share its experts.
 *
 * A library without AVX-512 has AVX2 beside AMX. CMake never makes one; the tests do, for a CPU that has neither
 * (tests/kernels/amx). */
#include "moelab_kernels.h"

#ifdef MOELAB_AMX
#ifdef MOELAB_AVX512
#define BESIDE(name, phase) moelab_avx512_##name##_##phase
extern "C" const char *moelab_beside_amx() { return "avx512"; }
#else
#define BESIDE(name, phase) moelab_avx2_##name##_##phase
extern "C" const char *moelab_beside_amx() { return "avx2"; }
#endif

static int64_t units_of(int64_t size, int64_t unit) { return (size + unit - 1) / unit; }

/* Units [start, stop), `each` of them an expert, by runs of one expert. */
template <moelab_phase_fn few, moelab_phase_fn many>
static int32_t by_expert(const moelab_moe_job *job, int64_t each, int64_t start, int64_t stop, uint64_t *bytes_read) {
    while (start < stop) {
        const int64_t expert = start / each, end = (expert + 1) * each < stop ? (expert + 1) * each : stop;
        const bool is_few = job->pair_start[expert + 1] - job->pair_start[expert] < MOELAB_AMX_MIN_TOKENS;
        const int32_t status = is_few ? few(job, start, end, bytes_read) : many(job, start, end, bytes_read);
        if (status) return status;
        start = end;
    }
    return MOELAB_OK;
}

#define PHASE(name, phase, each)                                                                                 \
    extern "C" int32_t BESIDE(name, phase)(const moelab_moe_job *, int64_t, int64_t, uint64_t *);                \
    extern "C" int32_t moelab_amx_##name##_##phase(const moelab_moe_job *, int64_t, int64_t, uint64_t *);        \
    extern "C" int32_t moelab_crossover_##name##_##phase(const moelab_moe_job *job, int64_t start, int64_t stop, \
                                                         uint64_t *bytes_read) {                                 \
        if (job->hidden_size < 1 || job->intermediate_size < 1) return MOELAB_BAD_SHAPE;                         \
        return by_expert<BESIDE(name, phase), moelab_amx_##name##_##phase>(job, each, start, stop, bytes_read);  \
    }
#define PHASES(name)                                         \
    PHASE(name, gate_up, units_of(job->intermediate_size, 32)) \
    PHASE(name, down, units_of(job->hidden_size, 16))          \
    PHASE(name, linear, units_of(job->intermediate_size, 16))

PHASES(bf16)
PHASES(int4_bf16)
PHASES(int4_int8)
PHASES(int8_bf16)
PHASES(int8_int8)

/* AMX has no float32. */
#define FLOAT32(phase)                                                                                          \
    extern "C" int32_t BESIDE(float32, phase)(const moelab_moe_job *, int64_t, int64_t, uint64_t *);            \
    extern "C" int32_t moelab_crossover_float32_##phase(const moelab_moe_job *job, int64_t start, int64_t stop, \
                                                        uint64_t *bytes_read) {                                 \
        return BESIDE(float32, phase)(job, start, stop, bytes_read);                                            \
    }
FLOAT32(gate_up)
FLOAT32(down)
FLOAT32(linear)
#endif
