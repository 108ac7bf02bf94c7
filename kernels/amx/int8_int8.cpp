/* int8_g32 weights x int8 activations: tiles are loaded from the weights themselves. */
#include "grouped.h"

namespace {

struct whole_bytes {
    static const int32_t format = MOELAB_INT8_G32;
    static const int64_t tile_bytes = 1088;
    static const int scales = 1024, zero = 128;

    static const uint8_t *lines(const uint8_t *tile, int group, uint8_t *) { return tile + group * 512; }
};

}  // namespace

MOELAB_AMX_KERNEL(int8_int8, grouped<whole_bytes>)
