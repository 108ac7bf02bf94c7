/* Attention on vectors of 16. */
#include "attend.h"
#include "vectors.h"

namespace {

struct vector {
    typedef __m512 type;
    static const int width = 16, scored_keys = 8, mixed_heads = 8, mixed_vectors = 2;
    static __m512 load(const float *from) { return _mm512_loadu_ps(from); }
    static __m512 load(const uint16_t *from) { return load_bf16(from); }
    static __m512 set(float x) { return _mm512_set1_ps(x); }
    static __m512 zero() { return _mm512_setzero_ps(); }
    static __m512 fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
    static void store(float *to, __m512 x) { _mm512_storeu_ps(to, x); }
};

}  // namespace

MOELAB_ATTEND(avx512, vector)
