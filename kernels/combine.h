/* The only place where experts meet: slots in rising order, one product and one sum each. */
#ifndef MOELAB_COMBINE_H
#define MOELAB_COMBINE_H

#include <cstdint>

/* y[0..count) of one token = sum over its slots k in rising order of gate_weight[k] * output[pair_of_slot[k]]; a
 * slot below 0 is unrouted. Rows of output are `stride` numbers apart. */
static inline void combine_slots(int64_t top_k, int64_t count, int64_t stride, const int64_t *pair_of_slot,
                                 const float *gate_weights, const float *output, float *y) {
    for (int64_t h = 0; h < count; h++) y[h] = 0.0f;
    for (int64_t k = 0; k < top_k; k++) {
        if (pair_of_slot[k] < 0) continue;
        const float weight = gate_weights[k], *values = output + pair_of_slot[k] * stride;
        for (int64_t h = 0; h < count; h++) y[h] = y[h] + weight * values[h];
    }
}

#endif
