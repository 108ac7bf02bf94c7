/* bf16 weights x bf16 activations, products and sums in float32. */
#include "plain.h"

namespace {

struct bf16 : plain<bf16> {
    static const int32_t format = MOELAB_BF16, mode = MOELAB_ACT_BF16;
    static const int64_t tile_bytes = 2048;

    static void dot_one(const uint8_t *weights, int64_t num_tiles, const activations &x, int64_t token, float *out) {
        const uint16_t *lines = (const uint16_t *)weights, *a = (const uint16_t *)x.q + token * num_tiles * 64;
        float sums[16] = {0};
        for (int64_t column = 0; column < num_tiles * 64; column++) {
            const float value = bf16_to_float(a[column]);
            for (int r = 0; r < 16; r++) sums[r] += bf16_to_float(lines[column / 2 * 32 + r * 2 + column % 2]) * value;
        }
        for (int r = 0; r < 16; r++) out[r] = sums[r];
    }
};

}  // namespace

MOELAB_KERNEL(generic, bf16, bf16)
