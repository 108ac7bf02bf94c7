/* Attention on vectors of 8. */
#include "attend.h"
#include "vectors.h"

namespace {

struct vector {
    typedef __m256 type;
    static const int width = 8;
    static __m256 load(const float *from) { return _mm256_loadu_ps(from); }
    static __m256 load(const uint16_t *from) { return load_bf16(from); }
    static __m256 set(float x) { return _mm256_set1_ps(x); }
    static __m256 zero() { return _mm256_setzero_ps(); }
    static __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
    static float total(__m256 x) {
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
    }
    static void store(float *to, __m256 x) { _mm256_storeu_ps(to, x); }
};

}  // namespace

MOELAB_ATTEND(avx2, vector)
