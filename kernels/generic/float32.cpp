/* float32 weights x float32 activations, one plain sum per row. */
#include "phases.h"

static void dot_float32(const moelab_moe_job *job, const uint8_t *weights, int64_t row, bool hidden, int64_t num_tiles,
                        float *out) {
    const float *tile = (const float *)weights;
    const float *x = (const float *)(hidden ? job->hidden_q : job->tokens_q) + row * num_tiles * 64;
    float sums[16] = {0};
    for (int64_t column = 0; column < num_tiles * 64; column++)
        for (int r = 0; r < 16; r++) sums[r] += tile[column * 16 + r] * x[column];
    for (int r = 0; r < 16; r++) out[r] = sums[r];
}

MOELAB_GENERIC_KERNEL(float32, MOELAB_FLOAT32, MOELAB_ACT_F32, dot_float32, 4096)
