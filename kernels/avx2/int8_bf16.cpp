/* int8_g32 weights x bf16 activations. */
#include "exact.h"

namespace {

struct int8_bf16 {
    static const int32_t format = MOELAB_INT8_G32, mode = MOELAB_ACT_BF16;
    static const int64_t tile_bytes = 1088;
    static const int scales = 1024, lines = 8, parts = 1, zero = 128;

    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        run_blocks<exact<int8_bf16>>(rows, num_rows, num_tiles, x, token, num_tokens, out);
    }
};

}  // namespace

MOELAB_KERNEL(avx2, int8_bf16, int8_bf16)
