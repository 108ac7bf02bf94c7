/* int8_g32 weights x bf16 activations: float32 sum per group, then times the scale of the weights. */
#include "plain.h"

namespace {

struct int8_bf16 : plain<int8_bf16> {
    static const int32_t format = MOELAB_INT8_G32, mode = MOELAB_ACT_BF16;
    static const int64_t tile_bytes = 1088;

    static void dot_one(const uint8_t *weights, int64_t num_tiles, const activations &x, int64_t token, float *out) {
        const uint16_t *a = (const uint16_t *)x.q + token * num_tiles * 64;
        float sums[16] = {0};
        for (int64_t k = 0; k < num_tiles; k++) {
            const uint8_t *tile = weights + k * tile_bytes;
            const uint16_t *scales = (const uint16_t *)(tile + 1024);
            for (int group = 0; group < 2; group++) {
                float part[16] = {0};
                for (int c = 0; c < 32; c++) {
                    const float value = bf16_to_float(a[k * 64 + group * 32 + c]);
                    const uint8_t *line = tile + (group * 8 + c / 4) * 64;
                    for (int r = 0; r < 16; r++) part[r] += (float)(line[r * 4 + c % 4] - 128) * value;
                }
                for (int r = 0; r < 16; r++) sums[r] += part[r] * bf16_to_float(scales[group * 16 + r]);
            }
        }
        for (int r = 0; r < 16; r++) out[r] = sums[r];
    }
};

}  // namespace

MOELAB_KERNEL(generic, int8_bf16, int8_bf16)
