/* Register-only loop of vpdpbusd: what computing alone could reach. */
#include <immintrin.h>

#include <cstdint>

/* Twelve independent sums hide the latency. Return the number of operations (2 for each product). */
extern "C" uint64_t moelab_avx512_peak_int8(int64_t iterations) {
    const __m512i w = _mm512_set1_epi8(3), a = _mm512_set1_epi8(5);
    __m512i sums[12];

#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sums[j] = _mm512_setzero_si512();
    for (int64_t i = 0; i < iterations; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) sums[j] = _mm512_dpbusd_epi32(sums[j], w, a);
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) __asm__ volatile("" : "+v"(sums[j])); /* the compiler must not fold the loop */
    }
    return (uint64_t)iterations * 12 * 128;
}
