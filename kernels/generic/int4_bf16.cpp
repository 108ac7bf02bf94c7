/* int4_g32 weights x bf16 activations: float32 sum per group, then times the scale of the weights. */
#include "phases.h"

static void dot_int4_bf16(const moelab_moe_job *job, const uint8_t *weights, int64_t row, bool hidden,
                          int64_t num_tiles, float *out) {
    const uint16_t *x = (const uint16_t *)(hidden ? job->hidden_q : job->tokens_q) + row * num_tiles * 64;
    float sums[16] = {0};
    for (int64_t k = 0; k < num_tiles; k++) {
        const uint8_t *tile = weights + k * 576;
        const uint16_t *scales = (const uint16_t *)(tile + 512);
        for (int group = 0; group < 2; group++) {
            float part[16] = {0};
            for (int c = 0; c < 32; c++) {
                const float a = bf16_to_float(x[k * 64 + group * 32 + c]);
                const uint8_t *line = tile + (group * 4 + c / 8) * 64;
                const int shift = c % 8 < 4 ? 0 : 4;
                for (int r = 0; r < 16; r++) part[r] += (float)(((line[r * 4 + c % 4] >> shift) & 15) - 8) * a;
            }
            for (int r = 0; r < 16; r++) sums[r] += part[r] * bf16_to_float(scales[group * 16 + r]);
        }
    }
    for (int r = 0; r < 16; r++) out[r] = sums[r];
}

MOELAB_GENERIC_KERNEL(int4_bf16, MOELAB_INT4_G32, MOELAB_ACT_BF16, dot_int4_bf16, 576)
