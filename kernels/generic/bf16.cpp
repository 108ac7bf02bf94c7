/* bf16 weights x bf16 activations, products and sums in float32. */
#include "phases.h"

static void dot_bf16(const moelab_moe_job *job, const uint8_t *weights, int64_t row, bool hidden, int64_t num_tiles,
                     float *out) {
    const uint16_t *lines = (const uint16_t *)weights;
    const uint16_t *x = (const uint16_t *)(hidden ? job->hidden_q : job->tokens_q) + row * num_tiles * 64;
    float sums[16] = {0};
    for (int64_t column = 0; column < num_tiles * 64; column++) {
        const float a = bf16_to_float(x[column]);
        for (int r = 0; r < 16; r++) sums[r] += bf16_to_float(lines[column / 2 * 32 + r * 2 + column % 2]) * a;
    }
    for (int r = 0; r < 16; r++) out[r] = sums[r];
}

MOELAB_GENERIC_KERNEL(bf16, MOELAB_BF16, MOELAB_ACT_BF16, dot_bf16, 2048)
