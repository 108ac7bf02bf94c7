/* Float weights -> tiles of another format in one pass: nearest steps in groups of 32 columns with bf16 scales, or
 * bf16. Plain static code, compiled once for each ISA; the numbers are those of moelab/kernels/quantise.py to the
 * bit. */
#ifndef MOELAB_QUANTISE_PACK_H
#define MOELAB_QUANTISE_PACK_H

#include "pack.h"

namespace {

inline float divisor_of(uint16_t scale) { return (scale & 0x7FFF) == 0 ? 1.0f : bf16_to_float(scale); }

/* 32 numbers of a row. Steps are numbers / divisor rounded to integers, ties to even, within [smallest, largest],
 * a NaN 0: they are far below 2^22, so that adding 1.5 * 2^23 rounds and leaves the integer in the low bits. */
#if defined(__AVX2__)
struct group32 {
    __m256 x[4];
    inline void read(const float *from) {
        for (int i = 0; i < 4; i++) x[i] = _mm256_loadu_ps(from + 8 * i);
    }
    inline void read(const uint16_t *from) {
        for (int i = 0; i < 4; i++) {
            const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(from + 8 * i)));
            x[i] = _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
        }
    }
    inline __m256i absolute(int i) const {
        return _mm256_and_si256(_mm256_castps_si256(x[i]), _mm256_set1_epi32(0x7FFFFFFF));
    }
    /* Bits of the largest absolute value; a NaN is the largest. */
    inline uint32_t largest_bits() const {
        const __m256i eight = _mm256_max_epi32(_mm256_max_epi32(absolute(0), absolute(1)),
                                               _mm256_max_epi32(absolute(2), absolute(3)));
        __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1));
        return (uint32_t)_mm_cvtsi128_si32(four);
    }
    /* The number with these absolute bits; of several the first. */
    inline float first_of(uint32_t largest) const {
        uint32_t equal = 0, negative = 0;
        for (int i = 0; i < 4; i++) {
            const __m256i same = _mm256_cmpeq_epi32(absolute(i), _mm256_set1_epi32((int)largest));
            equal |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(same)) << 8 * i;
            negative |= (uint32_t)_mm256_movemask_ps(x[i]) << 8 * i;
        }
        return float_of(largest | (negative & equal & (0u - equal) ? 0x80000000u : 0u));
    }
    /* Steps as bytes, in order. */
    inline __m256i steps(uint16_t scale, int32_t smallest, int32_t largest) const {
        const __m256 divisor = _mm256_set1_ps(divisor_of(scale)), shift = _mm256_set1_ps(12582912.0f);
        __m256i q[4];
        for (int i = 0; i < 4; i++) {
            const __m256i bits = _mm256_castps_si256(_mm256_add_ps(_mm256_div_ps(x[i], divisor), shift));
            const __m256i nan = _mm256_cmpgt_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF)),
                                                   _mm256_set1_epi32(0x7F800000));
            q[i] = _mm256_sub_epi32(bits, _mm256_set1_epi32(0x4B400000));
            q[i] = _mm256_min_epi32(_mm256_max_epi32(q[i], _mm256_set1_epi32(smallest)), _mm256_set1_epi32(largest));
            q[i] = _mm256_andnot_si256(nan, q[i]);
        }
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }
    inline void write_int8(uint8_t *row, uint16_t scale) const {
        const __m256i bytes = _mm256_xor_si256(steps(scale, -127, 127), _mm256_set1_epi8((char)0x80));
        _mm256_storeu_si256((__m256i *)row, bytes);
    }
    inline void write_int4(uint32_t *row, uint16_t scale) const {
        const __m256i bytes = _mm256_add_epi8(steps(scale, -8, 7), _mm256_set1_epi8(8));
        /* Of eight bytes the last four into the high nibbles of the first. */
        const __m256i both = _mm256_or_si256(bytes, _mm256_srli_epi64(bytes, 28));
        const __m256i words = _mm256_permutevar8x32_epi32(both, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
        _mm_storeu_si128((__m128i *)row, _mm256_castsi256_si128(words));
    }
    inline void write_bf16(uint16_t *row) const {
        __m256i halves[4];
        for (int i = 0; i < 4; i++) {
            const __m256i bits = _mm256_castps_si256(x[i]);
            const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
            const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
            const __m256i nan = _mm256_cmpgt_epi32(absolute(i), _mm256_set1_epi32(0x7F800000));
            halves[i] = _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), _mm256_set1_epi32(0x7FC0), nan);
        }
        for (int i = 0; i < 2; i++) {
            const __m256i both = _mm256_packus_epi32(halves[2 * i], halves[2 * i + 1]);
            _mm256_storeu_si256((__m256i *)(row + 16 * i), _mm256_permute4x64_epi64(both, 0xD8));
        }
    }
    inline void write_float32(float *row) const {
        for (int i = 0; i < 4; i++) _mm256_storeu_ps(row + 8 * i, x[i]);
    }
};
#else
struct group32 {
    float x[32];
    inline void read(const float *from) {
        for (int i = 0; i < 32; i++) x[i] = from[i];
    }
    inline void read(const uint16_t *from) {
        for (int i = 0; i < 32; i++) x[i] = bf16_to_float(from[i]);
    }
    inline uint32_t largest_bits() const {
        uint32_t largest = 0;
        for (float value : x) {
            const uint32_t absolute = bits_of(value) & 0x7FFFFFFFu;
            largest = absolute > largest ? absolute : largest;
        }
        return largest;
    }
    inline float first_of(uint32_t largest) const {
        for (float value : x)
            if ((bits_of(value) & 0x7FFFFFFFu) == largest) return value;
        return 0.0f;
    }
    inline void steps(int32_t *q, uint16_t scale, int32_t smallest, int32_t largest) const {
        const float divisor = divisor_of(scale);
        for (int i = 0; i < 32; i++) {
            const int32_t bits = (int32_t)bits_of(x[i] / divisor + 12582912.0f);
            int32_t step = bits - 0x4B400000;
            step = step < smallest ? smallest : step;
            step = step > largest ? largest : step;
            q[i] = (bits & 0x7FFFFFFF) > 0x7F800000 ? 0 : step;
        }
    }
    inline void write_int8(uint8_t *row, uint16_t scale) const {
        int32_t q[32];
        steps(q, scale, -127, 127);
        for (int i = 0; i < 32; i++) row[i] = (uint8_t)(q[i] + 128);
    }
    inline void write_int4(uint32_t *row, uint16_t scale) const {
        int32_t q[32];
        steps(q, scale, -8, 7);
        for (int word = 0; word < 4; word++) {
            uint32_t bytes = 0; /* column c in the low nibble of byte c, column 4 + c in its high one */
            for (int c = 0; c < 4; c++)
                bytes |= (uint32_t)((q[8 * word + c] + 8) | (q[8 * word + 4 + c] + 8) << 4) << 8 * c;
            row[word] = bytes;
        }
    }
    inline void write_bf16(uint16_t *row) const {
        for (int i = 0; i < 32; i++) row[i] = float_to_bf16(x[i]);
    }
    inline void write_float32(float *row) const {
        for (int i = 0; i < 32; i++) row[i] = x[i];
    }
};
#endif

/* What 32 numbers of a row become: `per_group` numbers of the row of a tile, and their scale. */
struct to_int8 {
    typedef uint8_t number;
    static constexpr int units = 16, per_group = 32, tile_bytes = 1088, padding = 0x80;
    static constexpr bool scaled = true;
    static inline uint16_t write(uint8_t *row, const group32 &group) {
        const uint16_t scale = float_to_bf16(float_of(group.largest_bits()) / 127.0f);
        group.write_int8(row, scale);
        return scale;
    }
};

/* The largest number of a group becomes -8 and the scale carries its sign, so that all 16 steps are used. */
struct to_int4 {
    typedef uint32_t number;
    static constexpr int units = 8, per_group = 4, tile_bytes = 576;
    static constexpr uint32_t padding = 0x88888888u;
    static constexpr bool scaled = true;
    static inline uint16_t write(uint32_t *row, const group32 &group) {
        const uint16_t scale = float_to_bf16(group.first_of(group.largest_bits()) / -8.0f);
        group.write_int4(row, scale);
        return scale;
    }
};

struct to_bf16_rows {
    typedef uint16_t number;
    static constexpr int units = 32, per_group = 32, tile_bytes = 2048, padding = 0;
    static constexpr bool scaled = false;
    static inline uint16_t write(uint16_t *row, const group32 &group) {
        group.write_bf16(row);
        return 0;
    }
};

struct to_float32_rows {
    typedef float number;
    static constexpr int units = 64, per_group = 32, tile_bytes = 4096, padding = 0;
    static constexpr bool scaled = false;
    static inline uint16_t write(float *row, const group32 &group) {
        group.write_float32(row);
        return 0;
    }
};

template <class To, class Number>
void quantise_rows(uint8_t *tiles, const Number *source, int64_t rows, int64_t columns) {
    for (int64_t first = 0; first < rows; first += 16) {
        const int64_t left = rows - first < 16 ? rows - first : 16;
        for (int64_t column = 0; column < columns; column += 64, tiles += To::tile_bytes) {
            alignas(64) typename To::number block[16][2 * To::per_group];
            uint16_t scales[16][2] = {};
            if (left < 16 || columns - column < 64)
                for (auto &row : block)
                    for (auto &number : row) number = (typename To::number)To::padding;
            for (int64_t row = 0; row < left; row++)
                for (int half = 0; half < 2 && column + 32 * half < columns; half++) {
                    const int64_t start = column + 32 * half;
                    const Number *from = source + (first + row) * columns + start;
                    group32 group;
                    if (columns - start >= 32) {
                        group.read(from);
                    } else {
                        Number padded[32] = {};
                        std::memcpy(padded, from, (columns - start) * sizeof(Number));
                        group.read(padded);
                    }
                    scales[row][half] = To::write(block[row] + half * To::per_group, group);
                }
            pack_lines<whole_unit, To::units>((uint32_t *)tiles, (const uint32_t *)block, To::units);
            if (To::scaled) pack_scales((uint16_t *)(tiles + To::units * 64), scales[0], 2);
        }
    }
}

template <class Number>
int32_t quantise_from(int32_t format, uint8_t *to, const Number *from, int64_t rows, int64_t columns) {
    switch (format) {
    case MOELAB_INT4_G32: quantise_rows<to_int4, Number>(to, from, rows, columns); return MOELAB_OK;
    case MOELAB_INT8_G32: quantise_rows<to_int8, Number>(to, from, rows, columns); return MOELAB_OK;
    case MOELAB_BF16: quantise_rows<to_bf16_rows, Number>(to, from, rows, columns); return MOELAB_OK;
    case MOELAB_FLOAT32: quantise_rows<to_float32_rows, Number>(to, from, rows, columns); return MOELAB_OK;
    default: return MOELAB_UNSUPPORTED;
    }
}

int32_t quantise_format(int32_t format, void *tiles, int32_t source_format, const void *source, int64_t rows,
                        int64_t columns) {
    if (format == source_format) return pack_format(format, tiles, source, nullptr, rows, columns);
    return source_format == MOELAB_BF16
               ? quantise_from(format, (uint8_t *)tiles, (const uint16_t *)source, rows, columns)
               : quantise_from(format, (uint8_t *)tiles, (const float *)source, rows, columns);
}

}  // namespace
#endif
