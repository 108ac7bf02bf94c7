/* Attention on vectors of 8. */
#include "attend.h"
#include "vectors.h"

namespace {

struct vector {
    typedef __m256 type;
    static const int width = 8, scored_keys = 6, mixed_heads = 4, mixed_vectors = 3;
    static __m256 load(const float *from) { return _mm256_loadu_ps(from); }
    static __m256 load(const uint16_t *from) { return load_bf16(from); }
    static __m256 set(float x) { return _mm256_set1_ps(x); }
    static __m256 zero() { return _mm256_setzero_ps(); }
    static __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
    static void store(float *to, __m256 x) { _mm256_storeu_ps(to, x); }
};

}  // namespace

MOELAB_ATTEND(avx2, vector)
