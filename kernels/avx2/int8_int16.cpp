/* int8_g32 weights x int16 activations: bytes of columns 0, 2 and 1, 3 of a quad are widened by a mask and a shift, and
 * vpmaddwd multiplies them with activations that stand in the same order. Lines stay a loop, as in int4_int16.cpp. */
#include "int16.h"

namespace {

struct whole_activations : whole_bytes {
    struct prepared {
        alignas(32) int16_t in_order[64]; /* quads in the order 0 2 1 3 */
    };

    static inline void prepare(const int8_t *activations_of_tile, prepared &ready) {
        for (int i = 0; i < 64; i += 16) {
            const int8_t *bytes = activations_of_tile + i / 32 * 64 + i % 32;
            const __m256i high = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)bytes));
            const __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(bytes + 32)));
            const __m256i whole = _mm256_add_epi16(_mm256_slli_epi16(high, 8), low);
            _mm256_store_si256((__m256i *)(ready.in_order + i),
                               _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(whole, 0xd8), 0xd8));
        }
    }

    template <int M>
    static inline void sums(const uint8_t *tile, int g, const prepared *ready, __m256i (*isum)[2]) {
        const __m256i even = _mm256_set1_epi16(255);
        for (int t = 0; t < M; t++) isum[t][0] = isum[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 2
        for (int line = g * 8; line < g * 8 + 8; line++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                const __m256i bytes = stream_half_line(tile + line * 64 + half * 32);
                const __m256i first = _mm256_and_si256(bytes, even), second = _mm256_srli_epi16(bytes, 8);
                for (int t = 0; t < M; t++) {
                    const int16_t *a = ready[t].in_order + line * 4;
                    const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(first, broadcast32(a)),
                                                              _mm256_madd_epi16(second, broadcast32(a + 2)));
                    isum[t][half] = _mm256_add_epi32(isum[t][half], products);
                }
            }
    }
};

}  // namespace

MOELAB_KERNEL(avx2, int8_int16, int16<whole_activations>)
