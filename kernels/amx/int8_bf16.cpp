/* int8_g32 weights x bf16 activations. */
#include "folded.h"

namespace {

struct whole_bytes {
    static const int32_t format = MOELAB_INT8_G32;
    static const int64_t tile_bytes = 1088;

    static const uint8_t *lines(const uint8_t *tile, int group, uint8_t *buffer) {
        expand_group<1, 128, 1024>(tile, group, buffer);
        return buffer;
    }
};

}  // namespace

MOELAB_AMX_KERNEL(int8_bf16, folded<whole_bytes>)
