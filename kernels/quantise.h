/* Activations of one group of 32 columns in the four modes (see moelab_kernels.h). */
#ifndef MOELAB_QUANTISE_H
#define MOELAB_QUANTISE_H

#include <limits>

#include "moelab_kernels.h"
#include "numbers.h"

static const float SMALLEST_ABSMAX = 0x1p-100f; /* of a group that has a scale */
static const int32_t INFINITE = 0x7f800000;     /* bits; a NaN has more */

/* 32 numbers of x. Plain loops of 32, which every compiler makes into vectors. */
static inline void quantise_group_int8(const float *x, int8_t *q, float *scale, int32_t *offset) {
    int32_t bits[32], largest = 0;
    std::memcpy(bits, x, sizeof(bits));
    for (int c = 0; c < 32; c++) bits[c] &= 0x7fffffff;
    for (int c = 0; c < 32; c++) largest = bits[c] > largest ? bits[c] : largest;
    float absmax;
    std::memcpy(&absmax, &largest, 4);
    *offset = 0;
    if (largest >= INFINITE || absmax < SMALLEST_ABSMAX) {
        std::memset(q, 0, 32);
        /* A NaN or infinity in the group must reach the output. */
        *scale = largest >= INFINITE ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
        return;
    }
    const float inverse = 127.0f / absmax, rounding = 12582912.0f;
    int32_t rounded[32], total = 0;
    for (int c = 0; c < 32; c++) rounded[c] = (int32_t)((x[c] * inverse + rounding) - rounding);
    for (int c = 0; c < 32; c++) q[c] = (int8_t)rounded[c];
    for (int c = 0; c < 32; c++) total += rounded[c];
    *scale = absmax / 127.0f;
    *offset = -8 * total;
}

/* Offset of a group that int16 mode keeps in bf16. */
static const int32_t KEPT_BF16 = std::numeric_limits<int32_t>::min();

/* 32 numbers of x into 64 B: their high bytes and their low bytes, or bf16. See moelab_kernels.h. */
static inline void quantise_group_int16(const float *x, int8_t *q, float *scale, int32_t *offset) {
    int32_t bits[32], largest = 0;
    std::memcpy(bits, x, sizeof(bits));
    for (int c = 0; c < 32; c++) bits[c] &= 0x7fffffff;
    for (int c = 0; c < 32; c++) largest = bits[c] > largest ? bits[c] : largest;
    float absmax;
    std::memcpy(&absmax, &largest, 4);
    int32_t rounded[32] = {0}, total = 0, num_large = 0, num_not_zero = 0;
    for (int c = 0; c < 32; c++) num_not_zero += bits[c] != 0;
    if (largest < INFINITE && absmax >= SMALLEST_ABSMAX) {
        const float inverse = 32639.0f / absmax, rounding = 12582912.0f;
        for (int c = 0; c < 32; c++) rounded[c] = (int32_t)((x[c] * inverse + rounding) - rounding);
        for (int c = 0; c < 32; c++) num_large += rounded[c] >= 512 || rounded[c] <= -512;
    }
    if (4 * num_large < num_not_zero) {
        uint16_t half[32];
        for (int c = 0; c < 32; c++) half[c] = float_to_bf16(x[c]);
        std::memcpy(q, half, sizeof(half));
        *scale = 1.0f;
        *offset = KEPT_BF16;
        return;
    }
    for (int c = 0; c < 32; c++) q[c] = (int8_t)((rounded[c] + 128) >> 8);
    for (int c = 0; c < 32; c++) q[32 + c] = (int8_t)rounded[c];
    for (int c = 0; c < 32; c++) total += rounded[c];
    *scale = absmax / 32639.0f;
    *offset = -8 * total;
}

/* Group number g of a row of activations, `count` numbers and zeros: q, scale, offset are those of the row. */
static inline void quantise_group(int32_t mode, const float *x, int64_t count, int64_t g, void *q, float *scale,
                                  int32_t *offset) {
    float padded[32];
    if (count < 32) {
        for (int64_t c = 0; c < 32; c++) padded[c] = c < count ? x[c] : 0.0f;
        x = padded;
    }
    if (mode == MOELAB_ACT_INT8) {
        quantise_group_int8(x, (int8_t *)q + g * 32, scale + g, offset + g);
    } else if (mode == MOELAB_ACT_INT16) {
        quantise_group_int16(x, (int8_t *)q + g * 64, scale + g, offset + g);
    } else if (mode == MOELAB_ACT_BF16) {
        for (int64_t c = 0; c < 32; c++) ((uint16_t *)q)[g * 32 + c] = float_to_bf16(x[c]);
    } else {
        for (int64_t c = 0; c < 32; c++) ((float *)q)[g * 32 + c] = x[c];
    }
}

#endif
