/* int8_g32 weights x int8 activations: exact integer sum per group, the float order of the header. */
#include "plain.h"

namespace {

struct int8_int8 : plain<int8_int8> {
    static const int32_t format = MOELAB_INT8_G32, mode = MOELAB_ACT_INT8;
    static const int64_t tile_bytes = 1088;

    static void dot_one(const uint8_t *weights, int64_t num_tiles, const activations &x, int64_t token, float *out) {
        const int8_t *q = (const int8_t *)x.q + token * num_tiles * 64;
        float sums[16] = {0};
        for (int64_t k = 0; k < num_tiles; k++) {
            const uint8_t *tile = weights + k * tile_bytes;
            const uint16_t *scales = (const uint16_t *)(tile + 1024);
            for (int group = 0; group < 2; group++) {
                const int64_t at = (token * num_tiles + k) * 2 + group;
                int32_t isum[16];
                for (int r = 0; r < 16; r++) isum[r] = 16 * x.offset[at];
                for (int line = 0; line < 8; line++) {
                    const uint8_t *bytes = tile + (group * 8 + line) * 64;
                    const int8_t *a = q + k * 64 + group * 32 + line * 4;
                    for (int r = 0; r < 16; r++)
                        for (int c = 0; c < 4; c++) isum[r] += bytes[r * 4 + c] * a[c];
                }
                for (int r = 0; r < 16; r++)
                    sums[r] += ((float)isum[r] * x.scale[at]) * bf16_to_float(scales[group * 16 + r]);
            }
        }
        for (int r = 0; r < 16; r++) out[r] = sums[r];
    }
};

}  // namespace

MOELAB_KERNEL(generic, int8_int8, int8_int8)
