/* Float weights -> tiles of another format in one pass: nearest steps in groups of 32 columns with bf16 scales, or bf16. Plain static
 * code, compiled once for each ISA; the numbers are those of moelab/kernels/quantise.py to the bit. */
#ifndef MOELAB_QUANTISE_PACK_H
#define MOELAB_QUANTISE_PACK_H

#include "pack.h"

namespace {

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
/* Ties to even; NaN stays NaN. */
inline uint16_t to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    return (bits & 0x7FFFFFFFu) > 0x7F800000u ? (uint16_t)0x7FC0 : (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}
inline float from_bf16(uint16_t bits) { return float_of((uint32_t)bits << 16); }

/* Nearest step of 32 numbers, ties to even, as integers in [smallest, largest]; a NaN is 0. */
inline void nearest(int32_t *q, const float *x, uint16_t scale, float smallest, float largest) {
    const float divisor = (scale & 0x7FFF) == 0 ? 1.0f : from_bf16(scale);
    for (int i = 0; i < 32; i++) {
        float step = x[i] / divisor;
        step = step == step ? step : 0.0f;
        step = step < smallest ? smallest : step;
        step = step > largest ? largest : step;
        q[i] = (int32_t)((step + 12582912.0f) - 12582912.0f); /* 1.5 * 2^23: adding and subtracting rounds */
    }
}

/* Bits of the largest absolute value of 32 numbers; a NaN is the largest. */
inline int32_t largest_bits(const float *x) {
    int32_t bits[32], largest = 0;
    std::memcpy(bits, x, sizeof(bits));
    for (int i = 0; i < 32; i++) {
        const int32_t absolute = bits[i] & 0x7FFFFFFF;
        largest = absolute > largest ? absolute : largest;
    }
    return largest;
}

struct to_int8 {
    static constexpr int units = 16, tile_bytes = 1088, padding = 0x80;
    static constexpr bool scaled = true;
    static inline uint16_t group(uint8_t *row, const float *x) {
        const uint16_t scale = to_bf16(float_of((uint32_t)largest_bits(x)) / 127.0f);
        int32_t q[32];
        nearest(q, x, scale, -127.0f, 127.0f);
        for (int i = 0; i < 32; i++) row[i] = (uint8_t)(q[i] + 128);
        return scale;
    }
};

/* The largest number of a group becomes -8 and the scale carries its sign, so that all 16 steps are used. */
struct to_int4 {
    static constexpr int units = 8, tile_bytes = 576, padding = 0x88;
    static constexpr bool scaled = true;
    static inline uint16_t group(uint8_t *row, const float *x) {
        const int32_t largest = largest_bits(x);
        int32_t bits[32], first = 32; /* of several as large the first */
        std::memcpy(bits, x, sizeof(bits));
        for (int i = 0; i < 32; i++) {
            const int32_t here = (bits[i] & 0x7FFFFFFF) == largest ? i : 32;
            first = here < first ? here : first;
        }
        const uint16_t scale = to_bf16(x[first] / -8.0f);
        int32_t q[32];
        nearest(q, x, scale, -8.0f, 7.0f);
        for (int word = 0; word < 4; word++)
            for (int c = 0; c < 4; c++)
                row[4 * word + c] = (uint8_t)((q[8 * word + c] + 8) | (q[8 * word + 4 + c] + 8) << 4);
        return scale;
    }
};

struct to_bf16_rows {
    static constexpr int units = 32, tile_bytes = 2048, padding = 0;
    static constexpr bool scaled = false;
    static inline uint16_t group(uint8_t *row, const float *x) {
        uint16_t numbers[32];
        for (int i = 0; i < 32; i++) numbers[i] = to_bf16(x[i]);
        std::memcpy(row, numbers, sizeof(numbers));
        return 0;
    }
};

struct to_float32_rows {
    static constexpr int units = 64, tile_bytes = 4096, padding = 0;
    static constexpr bool scaled = false;
    static inline uint16_t group(uint8_t *row, const float *x) {
        std::memcpy(row, x, 128);
        return 0;
    }
};

inline void widen(float *x, const uint8_t *from, int64_t count, bool narrow) {
    if (!narrow) {
        std::memcpy(x, from, 4 * count);
        return;
    }
    uint16_t numbers[32];
    std::memcpy(numbers, from, 2 * count);
    for (int64_t i = 0; i < count; i++) x[i] = from_bf16(numbers[i]);
}

template <class To>
void quantise_rows(uint8_t *tiles, const uint8_t *source, bool narrow, int64_t rows, int64_t columns) {
    constexpr int row_bytes = To::units * 4;
    const int64_t number_bytes = narrow ? 2 : 4;
    for (int64_t first = 0; first < rows; first += 16) {
        const int64_t left = rows - first < 16 ? rows - first : 16;
        for (int64_t column = 0; column < columns; column += 64, tiles += To::tile_bytes) {
            alignas(64) uint8_t block[16][row_bytes];
            uint16_t scales[16][2] = {};
            if (left < 16 || columns - column < 64) std::memset(block, To::padding, sizeof(block));
            for (int64_t row = 0; row < left; row++)
                for (int half = 0; half < 2 && column + 32 * half < columns; half++) {
                    const int64_t start = column + 32 * half, count = columns - start < 32 ? columns - start : 32;
                    alignas(64) float x[32];
                    const uint8_t *from = source + ((first + row) * columns + start) * number_bytes;
                    if (count == 32) {
                        widen(x, from, 32, narrow);
                    } else {
                        std::memset(x, 0, sizeof(x));
                        widen(x, from, count, narrow);
                    }
                    scales[row][half] = To::group(block[row] + half * (row_bytes / 2), x);
                }
            pack_lines<whole_unit, To::units>((uint32_t *)tiles, (const uint32_t *)block, To::units);
            if (To::scaled) pack_scales((uint16_t *)(tiles + To::units * 64), scales[0], 2);
        }
    }
}

int32_t quantise_format(int32_t format, void *tiles, int32_t source_format, const void *source, int64_t rows, int64_t columns) {
    uint8_t *to = (uint8_t *)tiles;
    const uint8_t *from = (const uint8_t *)source;
    const bool narrow = source_format == MOELAB_BF16;
    if (format == source_format) return pack_format(format, tiles, source, nullptr, rows, columns);
    switch (format) {
    case MOELAB_INT4_G32: quantise_rows<to_int4>(to, from, narrow, rows, columns); return MOELAB_OK;
    case MOELAB_INT8_G32: quantise_rows<to_int8>(to, from, narrow, rows, columns); return MOELAB_OK;
    case MOELAB_BF16: quantise_rows<to_bf16_rows>(to, from, narrow, rows, columns); return MOELAB_OK;
    case MOELAB_FLOAT32: quantise_rows<to_float32_rows>(to, from, narrow, rows, columns); return MOELAB_OK;
    default: return MOELAB_UNSUPPORTED;
    }
}

}  // namespace
#endif
