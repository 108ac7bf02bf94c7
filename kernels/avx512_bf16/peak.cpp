/* Register-only loop of vdpbf16ps: what computing alone could reach. */
#include <immintrin.h>

#include <cstdint>

/* As the loop of int8 in ../avx512/peak.cpp. */
extern "C" uint64_t moelab_avx512_peak_bf16(int64_t iterations) {
    const __m512bh w = (__m512bh)_mm512_set1_epi16(0x3f80), a = (__m512bh)_mm512_set1_epi16(0x3f80);
    __m512 sums[12];

#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sums[j] = _mm512_setzero_ps();
    for (int64_t i = 0; i < iterations; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) sums[j] = _mm512_dpbf16_ps(sums[j], w, a);
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) __asm__ volatile("" : "+v"(sums[j]));
    }
    return (uint64_t)iterations * 12 * 64;
}
