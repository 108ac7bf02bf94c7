/* int4_g32 weights x int16 activations: exact integer sum per group, the float order of the header. */
#include "int16_tile.h"
#include "plain.h"

namespace {

struct int4_int16 : nibbles, plain<int4_int16> {
    static const int32_t mode = MOELAB_ACT_INT16;

    static void dot_one(const uint8_t *weights, int64_t num_tiles, const activations &x, int64_t token, float *out) {
        for (int r = 0; r < 16; r++) out[r] = 0.0f;
        for (int64_t k = 0; k < num_tiles; k++)
            add_tile<nibbles>(weights + k * tile_bytes, x, (token * num_tiles + k) * 2, out);
    }
};

}  // namespace

MOELAB_KERNEL(generic, int4_int16, int4_int16)
