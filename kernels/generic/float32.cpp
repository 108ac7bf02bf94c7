/* float32 weights x float32 activations, one plain sum per row. */
#include "plain.h"

namespace {

struct float32 : plain<float32> {
    static const int32_t format = MOELAB_FLOAT32, mode = MOELAB_ACT_F32;
    static const int64_t tile_bytes = 4096;

    static void dot_one(const uint8_t *weights, int64_t num_tiles, const activations &x, int64_t token, float *out) {
        const float *tile = (const float *)weights, *a = (const float *)x.q + token * num_tiles * 64;
        float sums[16] = {0};
        for (int64_t column = 0; column < num_tiles * 64; column++)
            for (int r = 0; r < 16; r++) sums[r] += tile[column * 16 + r] * a[column];
        for (int r = 0; r < 16; r++) out[r] = sums[r];
    }
};

}  // namespace

MOELAB_KERNEL(generic, float32, float32)
