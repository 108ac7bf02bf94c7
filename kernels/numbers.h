/* Counting in whole tiles, and the bits of float32 and bf16 numbers. Plain code that compilers make into vectors;
 * `static`, as all of a kernel's file is compiled for the instructions of one ISA. */
#ifndef MOELAB_NUMBERS_H
#define MOELAB_NUMBERS_H

#include <cstdint>
#include <cstring>

/* Tiles, groups or units of `tile` that cover `size`. */
static inline int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

/* Ties to even; a NaN stays one. */
static inline uint16_t float_to_bf16(float x) {
    const uint32_t bits = bits_of(x);
    if (x != x) return 0x7fc0;
    return (uint16_t)((bits + ((bits >> 16) & 1) + 0x7fff) >> 16);
}

static inline float bf16_to_float(uint16_t half) { return float_of((uint32_t)half << 16); }

#endif
