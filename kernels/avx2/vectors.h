/* What the AVX2 kernels share: a row of tiles has 16 rows, a vector 8 of them. */
#ifndef MOELAB_AVX2_VECTORS_H
#define MOELAB_AVX2_VECTORS_H

#include <immintrin.h>

#include "blocks.h"

static inline __m256 load_bf16(const void *from) { /* 8 bf16 -> float32 */
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16));
}

/* In the order of the program: hardware prefetchers follow a stream only while its lines come in rising order and
 * once each (docs/log.md, 2026-11-23, native kernels), and compilers move ordinary loads. */
static inline __m256i stream_half_line(const void *from) { return *(const volatile __m256i *)from; }

/* Of half the last line of an int4 or int8 tile, 16 scales: those of rows 8 * half .. of one group. */
static inline __m256 scales_of_rows(__m256i scales, int half) {
    const __m128i eight = half ? _mm256_extracti128_si256(scales, 1) : _mm256_castsi256_si128(scales);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
}

/* The sum stays where it is. GCC would make a tree of a chain of integer additions, for which 16 registers are too few:
 * a third of its instructions were moves to the stack and back (docs/log.md, 2026-11-26, what streams of weights
 * lose). */
static inline void keep_chain(__m256i &sum) { __asm__("" : "+x"(sum)); }

static inline __m256i broadcast32(const void *from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
}

template <int N>
static inline void widen_bf16(const uint16_t *from, float *to) { /* N bf16 -> float32 */
    for (int i = 0; i < N; i += 8) _mm256_store_ps(to + i, load_bf16(from + i));
}

#endif
