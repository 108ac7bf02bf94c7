/* int4_g32 weights x int8 activations: exact integer sum per group, the float order of the header. */
#include "phases.h"

static void dot_int4_int8(const moelab_moe_job *job, const uint8_t *weights, int64_t row, bool hidden,
                          int64_t num_tiles, float *out) {
    const int8_t *q = (const int8_t *)(hidden ? job->hidden_q : job->tokens_q) + row * num_tiles * 64;
    const float *scale = (hidden ? job->hidden_scale : job->tokens_scale) + row * num_tiles * 2;
    const int32_t *offset = (hidden ? job->hidden_offset : job->tokens_offset) + row * num_tiles * 2;
    float sums[16] = {0};
    for (int64_t k = 0; k < num_tiles; k++) {
        const uint8_t *tile = weights + k * 576;
        const uint16_t *scales = (const uint16_t *)(tile + 512);
        for (int group = 0; group < 2; group++) {
            int32_t isum[16];
            for (int r = 0; r < 16; r++) isum[r] = offset[k * 2 + group];
            for (int line = 0; line < 4; line++) {
                const uint8_t *bytes = tile + (group * 4 + line) * 64;
                const int8_t *a = q + k * 64 + group * 32 + line * 8;
                for (int r = 0; r < 16; r++)
                    for (int c = 0; c < 4; c++)
                        isum[r] += (bytes[r * 4 + c] & 15) * a[c] + (bytes[r * 4 + c] >> 4) * a[4 + c];
            }
            const float activation_scale = scale[k * 2 + group];
            for (int r = 0; r < 16; r++)
                sums[r] += ((float)isum[r] * activation_scale) * bf16_to_float(scales[group * 16 + r]);
        }
    }
    for (int r = 0; r < 16; r++) out[r] = sums[r];
}

MOELAB_GENERIC_KERNEL(int4_int8, MOELAB_INT4_G32, MOELAB_ACT_INT8, dot_int4_int8, 576)
