/* bf16 weights x bf16 activations: tiles are loaded from the weights themselves. */
#include "folded.h"

namespace {

struct pairs {
    static const int32_t format = MOELAB_BF16;
    static const int64_t tile_bytes = 2048;

    static const uint8_t *lines(const uint8_t *tile, int group, uint8_t *) { return tile + group * 1024; }
};

}  // namespace

MOELAB_AMX_KERNEL(bf16, folded<pairs>)
