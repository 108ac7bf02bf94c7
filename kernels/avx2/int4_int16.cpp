/* int4_g32 weights x int16 activations: vpmaddubsw of nibbles with the high bytes and with the low bytes; each sum of
 * 16 columns stays below 16 * 15 * 128 = 30,720 in int16. Lines stay a loop: unrolled, GCC 12 spills half of all
 * registers, at one and a half times the time (docs/log.md, 2026-11-26, quantised weights x activations of 16 bits). */
#include "int16.h"

namespace {

struct bytes_of_activations : nibbles {
    typedef const int8_t *prepared;

    static inline void prepare(const int8_t *activations_of_tile, prepared &ready) { ready = activations_of_tile; }

    template <int M>
    static inline void sums(const uint8_t *tile, int g, const prepared *ready, __m256i (*isum)[2]) {
        const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), steps = _mm256_set1_epi16(256);
        __m256i high[M][2], low[M][2];
        for (int t = 0; t < M; t++)
            high[t][0] = high[t][1] = low[t][0] = low[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
        for (int line = 0; line < 4; line++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                const __m256i bytes = stream_half_line(tile + (g * 4 + line) * 64 + half * 32);
                const __m256i first = _mm256_and_si256(bytes, nibble);
                const __m256i second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
                for (int t = 0; t < M; t++) {
                    const int8_t *a = ready[t] + g * 64 + line * 8;
                    const __m256i of_high = _mm256_add_epi16(_mm256_maddubs_epi16(first, broadcast32(a)),
                                                             _mm256_maddubs_epi16(second, broadcast32(a + 4)));
                    const __m256i of_low = _mm256_add_epi16(_mm256_maddubs_epi16(first, broadcast32(a + 32)),
                                                            _mm256_maddubs_epi16(second, broadcast32(a + 36)));
                    high[t][half] = _mm256_add_epi16(high[t][half], of_high);
                    low[t][half] = _mm256_add_epi16(low[t][half], of_low);
                }
            }
        for (int t = 0; t < M; t++)
            for (int half = 0; half < 2; half++)
                isum[t][half] = _mm256_add_epi32(_mm256_madd_epi16(high[t][half], steps),
                                                 _mm256_madd_epi16(low[t][half], ones));
    }
};

}  // namespace

MOELAB_KERNEL(avx2, int4_int16, int16<bytes_of_activations>)
