/* What the AVX2 kernels share: a row of tiles has 16 rows, a vector 8 of them. */
#ifndef MOELAB_AVX2_VECTORS_H
#define MOELAB_AVX2_VECTORS_H

#include <immintrin.h>

#include "blocks.h"

static inline __m256 load_bf16(const void *from) { /* 8 bf16 -> float32 */
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16));
}

static inline __m256i load_half_line(const void *from) { return _mm256_load_si256((const __m256i *)from); }

static inline __m256i broadcast32(const void *from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
}

static inline __m256i broadcast64(const void *from) {
    int64_t eight;
    std::memcpy(&eight, from, 8);
    return _mm256_set1_epi64x(eight);
}

template <int N>
static inline void widen_bf16(const uint16_t *from, float *to) { /* N bf16 -> float32 */
    for (int i = 0; i < N; i += 8) _mm256_store_ps(to + i, load_bf16(from + i));
}

#endif
