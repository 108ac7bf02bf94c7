/* exp(x) and x / (1 + exp(-x)) in float32: Cephes polynomial (Moshier 1992), clamped to +-87, in one fixed order of
 * operations, so that every ISA gives the same bits. Needs -ffp-contract=off. */
#ifndef MOELAB_SILU_H
#define MOELAB_SILU_H

#include <cstdint>
#include <cstring>

static inline float clamped_exp(float t) {
    const float rounding = 12582912.0f; /* 1.5 * 2^23: adding and subtracting rounds to nearest even */
    t = t > -87.0f ? t : -87.0f; /* a NaN lands here */
    t = t < 87.0f ? t : 87.0f;
    const float n = (t * 1.4426950408889634f + rounding) - rounding;
    float r = t - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

/* A NaN comes back through x. */
static inline float silu(float x) { return x / (1.0f + clamped_exp(-x)); }

#endif
