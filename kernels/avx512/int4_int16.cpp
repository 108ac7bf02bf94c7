/* int4_g32 weights x int16 activations. */
#include "int16.h"

namespace {

struct unpacked : nibbles {
    static inline void unpack(const uint8_t *tile, int g, __m512i (*line)(const void *), __m512i *quads) {
        const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const __m512i bytes = line(tile + (g * 4 + i) * 64);
            quads[2 * i] = _mm512_and_si512(bytes, low);
            quads[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
        }
    }
};

}  // namespace

MOELAB_KERNEL(avx512, int4_int16, int16<unpacked>)
