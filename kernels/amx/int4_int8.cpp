/* int4_g32 weights x int8 activations. */
#include "grouped.h"

namespace {

struct nibbles {
    static const int32_t format = MOELAB_INT4_G32;
    static const int64_t tile_bytes = 576;
    static const int scales = 512, zero = 8;

    /* A line of nibbles is two of bytes. */
    static const uint8_t *lines(const uint8_t *tile, int group, uint8_t *buffer) {
        for (int line = 0; line < 4; line++) {
            const bytes both = *(const bytes *)(tile + (group * 4 + line) * 64);
            *(bytes *)(buffer + 2 * line * 64) = both & (uint8_t)15;
            *(bytes *)(buffer + (2 * line + 1) * 64) = both >> 4;
        }
        return buffer;
    }
};

}  // namespace

MOELAB_AMX_KERNEL(int4_int8, grouped<nibbles>)
