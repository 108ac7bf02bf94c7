/* Rows of activations in the three modes. */
#include "moelab_kernels.h"

#include "quantise.h"

extern "C" MOELAB_API int32_t moelab_quantise(int32_t mode, int64_t rows, int64_t columns, int64_t padded_columns,
                                              const float *x, int64_t x_stride, void *q, float *scale, int32_t *offset) {
    if (mode < MOELAB_ACT_F32 || mode > MOELAB_ACT_INT8) return MOELAB_UNSUPPORTED;
    if (columns < 0 || columns > padded_columns || padded_columns % 64 != 0) return MOELAB_BAD_SHAPE;
    const int64_t number_bytes = mode == MOELAB_ACT_INT8 ? 1 : mode == MOELAB_ACT_BF16 ? 2 : 4;
    for (int64_t row = 0; row < rows; row++) {
        void *q_row = (uint8_t *)q + row * padded_columns * number_bytes;
        const int64_t first = row * (padded_columns / 32);
        for (int64_t g = 0; g < padded_columns / 32; g++) {
            int64_t count = columns - g * 32;
            count = count < 0 ? 0 : count > 32 ? 32 : count;
            quantise_group(mode, x + row * x_stride + g * 32, count, g, q_row, scale + first, offset + first);
        }
    }
    return MOELAB_OK;
}
