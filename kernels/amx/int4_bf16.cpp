/* int4_g32 weights x bf16 activations. */
#include "folded.h"

namespace {

struct nibbles {
    static const int32_t format = MOELAB_INT4_G32;
    static const int64_t tile_bytes = 576;

    static const uint8_t *lines(const uint8_t *tile, int group, uint8_t *buffer) {
        expand_group<2, 8, 512>(tile, group, buffer);
        return buffer;
    }
};

}  // namespace

MOELAB_AMX_KERNEL(int4_bf16, folded<nibbles>)
