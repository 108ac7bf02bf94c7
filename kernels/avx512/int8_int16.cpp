/* int8_g32 weights x int16 activations. */
#include "int16.h"

namespace {

struct unpacked : whole_bytes {
    static inline void unpack(const uint8_t *tile, int g, __m512i (*line)(const void *), __m512i *quads) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) quads[i] = line(tile + (g * 8 + i) * 64);
    }
};

}  // namespace

MOELAB_KERNEL(avx512, int8_int16, int16<unpacked>)
