/* What the AVX-512 kernels share: loads of scales, lines and activations. */
#ifndef MOELAB_AVX512_VECTORS_H
#define MOELAB_AVX512_VECTORS_H

#include <immintrin.h>

#include "blocks.h"

static inline __m512 load_bf16(const void *from) { /* 16 bf16 -> float32 */
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

static inline __m512i load_line(const void *from) { return _mm512_load_si512(from); }

/* The same, in the order of the program: hardware prefetchers follow a stream only while its lines come in rising
 * order and once each (docs/log.md, 2026-11-23, native kernels), and compilers move ordinary loads. */
static inline __m512i stream_line(const void *from) { return *(const volatile __m512i *)from; }

static inline void prefetch(const void *from) { _mm_prefetch((const char *)from, _MM_HINT_T0); }

/* Of the last line of an int4 or int8 tile: the scales of group g. */
static inline __m512 scales_of_group(__m512i scales, int g) {
    const __m256i half = g ? _mm512_extracti64x4_epi64(scales, 1) : _mm512_castsi512_si256(scales);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* Four neighbouring int8, or two bf16, for all 16 rows. */
static inline __m512i broadcast32(const void *from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
}

#endif
