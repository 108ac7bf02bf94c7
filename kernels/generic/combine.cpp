/* The only place where experts meet: slots in rising order, one product and one sum each. */
#include "moelab_kernels.h"

extern "C" MOELAB_API int32_t moelab_combine(int64_t num_tokens, int64_t top_k, int64_t hidden_size,
                                             int64_t output_stride, const int64_t *pair_of_slot,
                                             const float *gate_weights, const float *output, float *y) {
    if (output_stride < hidden_size) return MOELAB_BAD_SHAPE;
    for (int64_t t = 0; t < num_tokens; t++) {
        float *row = y + t * hidden_size;
        for (int64_t h = 0; h < hidden_size; h++) row[h] = 0.0f;
        for (int64_t k = 0; k < top_k; k++) {
            const int64_t pair = pair_of_slot[t * top_k + k];
            if (pair < 0) continue;
            const float weight = gate_weights[t * top_k + k];
            const float *values = output + pair * output_stride;
            for (int64_t h = 0; h < hidden_size; h++) row[h] = row[h] + weight * values[h];
        }
    }
    return MOELAB_OK;
}
