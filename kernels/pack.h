/* Row-major weights -> tiles of 16 rows x 64 columns, one tile row after the other. Plain static code, compiled
 * once for each ISA.
 *
 * Every format is the same permutation of 32-bit units: a row of a tile is 8 (int4), 16 (int8), 32 (bf16) or 64
 * (float32) of them, and line j of the tile holds unit j of its 16 rows. Four rows by sixteen units are taken at a
 * time, so that each line of 64 B of the source is read once, whole: rows that lie a multiple of 4 kB apart share
 * the sets of the L1 cache. */
#ifndef MOELAB_PACK_H
#define MOELAB_PACK_H

#include "moelab_kernels.h"
#include "numbers.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace {

/* Some neighbouring words (`together`) of four rows, which become units of as many lines (16 words apart). */
#if defined(__AVX2__)
constexpr int together = 8;
template <class Unit>
inline void four_rows(uint32_t *lines, const uint32_t *source, int64_t row_words) {
    const __m256i a = Unit::of(_mm256_loadu_si256((const __m256i *)source));
    const __m256i b = Unit::of(_mm256_loadu_si256((const __m256i *)(source + row_words)));
    const __m256i c = Unit::of(_mm256_loadu_si256((const __m256i *)(source + 2 * row_words)));
    const __m256i d = Unit::of(_mm256_loadu_si256((const __m256i *)(source + 3 * row_words)));
    const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    const __m256i ef = _mm256_unpackhi_epi32(a, b), gh = _mm256_unpackhi_epi32(c, d);
    const __m256i of_line[4] = {_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd),
                                _mm256_unpacklo_epi64(ef, gh), _mm256_unpackhi_epi64(ef, gh)};
    for (int line = 0; line < 4; line++) { /* of lines 0..3 the low half, of 4..7 the high one */
        _mm_store_si128((__m128i *)(lines + 16 * line), _mm256_castsi256_si128(of_line[line]));
        _mm_store_si128((__m128i *)(lines + 16 * (line + 4)), _mm256_extracti128_si256(of_line[line], 1));
    }
}
#elif defined(__SSE2__)
constexpr int together = 4;
template <class Unit>
inline void four_rows(uint32_t *lines, const uint32_t *source, int64_t row_words) {
    const __m128i a = Unit::of(_mm_loadu_si128((const __m128i *)source));
    const __m128i b = Unit::of(_mm_loadu_si128((const __m128i *)(source + row_words)));
    const __m128i c = Unit::of(_mm_loadu_si128((const __m128i *)(source + 2 * row_words)));
    const __m128i d = Unit::of(_mm_loadu_si128((const __m128i *)(source + 3 * row_words)));
    const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
    const __m128i ef = _mm_unpackhi_epi32(a, b), gh = _mm_unpackhi_epi32(c, d);
    _mm_store_si128((__m128i *)lines, _mm_unpacklo_epi64(ab, cd));
    _mm_store_si128((__m128i *)(lines + 16), _mm_unpackhi_epi64(ab, cd));
    _mm_store_si128((__m128i *)(lines + 32), _mm_unpacklo_epi64(ef, gh));
    _mm_store_si128((__m128i *)(lines + 48), _mm_unpackhi_epi64(ef, gh));
}
#else
constexpr int together = 4;
template <class Unit>
inline void four_rows(uint32_t *lines, const uint32_t *source, int64_t row_words) {
    for (int unit = 0; unit < together; unit++)
        for (int row = 0; row < 4; row++) {
            uint32_t word;
            std::memcpy(&word, source + row * row_words + unit, 4);
            lines[unit * 16 + row] = Unit::of(word);
        }
}
#endif

/* A word as it is. */
struct whole_unit {
    template <class Words>
    static inline Words of(Words words) {
        return words;
    }
};

/* Four int8: + 128 each. */
struct biased {
    static inline uint32_t of(uint32_t word) { return word ^ 0x80808080u; }
#if defined(__AVX2__)
    static inline __m256i of(__m256i words) { return _mm256_xor_si256(words, _mm256_set1_epi32((int)0x80808080u)); }
#elif defined(__SSE2__)
    static inline __m128i of(__m128i words) { return _mm_xor_si128(words, _mm_set1_epi32((int)0x80808080u)); }
#endif
};

/* Eight nibbles: 0..3 become the low nibbles of the four bytes, 4..7 the high ones. */
struct paired {
    static inline uint32_t of(uint32_t word) {
        uint32_t low = word & 0xFFFFu, high = word >> 16;
        low = (low | low << 8) & 0x00FF00FFu;
        high = (high | high << 8) & 0x00FF00FFu;
        low = (low | low << 4) & 0x0F0F0F0Fu;
        high = (high | high << 4) & 0x0F0F0F0Fu;
        return low | high << 4;
    }
#if defined(__AVX2__)
    static inline __m256i of(__m256i words) {
        const __m256i keep = _mm256_set1_epi32(0x0F0F0F0F);
        __m256i even = _mm256_and_si256(words, keep), odd = _mm256_and_si256(_mm256_srli_epi32(words, 4), keep);
        even = _mm256_or_si256(even, _mm256_srli_epi32(even, 12)); /* its low half: bytes 0 and 2 of the unit */
        odd = _mm256_or_si256(odd, _mm256_srli_epi32(odd, 12));    /* bytes 1 and 3 */
        return _mm256_shuffle_epi8(_mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xAA),
                                   _mm256_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15, 0, 2, 1, 3, 4,
                                                    6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
    }
#elif defined(__SSE2__)
    static inline __m128i of(__m128i words) {
        const __m128i bytes = _mm_set1_epi32(0x00FF00FF), low_nibbles = _mm_set1_epi32(0x0F0F0F0F);
        __m128i low = _mm_and_si128(words, _mm_set1_epi32(0xFFFF)), high = _mm_srli_epi32(words, 16);
        low = _mm_and_si128(_mm_or_si128(low, _mm_slli_epi32(low, 8)), bytes);
        high = _mm_and_si128(_mm_or_si128(high, _mm_slli_epi32(high, 8)), bytes);
        low = _mm_and_si128(_mm_or_si128(low, _mm_slli_epi32(low, 4)), low_nibbles);
        high = _mm_and_si128(_mm_or_si128(high, _mm_slli_epi32(high, 4)), low_nibbles);
        return _mm_or_si128(low, _mm_slli_epi32(high, 4));
    }
#endif
};

/* The lines of one whole tile. */
template <class Unit, int units>
inline void pack_lines(uint32_t *tile, const uint32_t *source, int64_t row_words) {
    constexpr int of_line = units < 16 ? units : 16;
    for (int first = 0; first < units; first += of_line)
        for (int row = 0; row < 16; row += 4)
            for (int unit = first; unit < first + of_line; unit += together)
                four_rows<Unit>(tile + unit * 16 + row, source + row * row_words + unit, row_words);
}

inline void prefetch(const void *data) {
#if defined(__GNUC__)
    __builtin_prefetch(data);
#else
    (void)data;
#endif
}

/* [16 rows][2 groups] words -> [2 groups][16 rows]. */
inline void pack_scales(uint16_t *to, const uint16_t *scale, int64_t row_groups) {
    uint32_t pairs[16];
    for (int row = 0; row < 16; row++) std::memcpy(pairs + row, scale + row * row_groups, 4);
    for (int row = 0; row < 16; row++) {
        to[row] = (uint16_t)pairs[row];
        to[16 + row] = (uint16_t)(pairs[row] >> 16);
    }
}

/* How a row of the source lies: bytes of a row, of a tile in it, and what stands where there is nothing. */
struct int4_rows {
    typedef paired unit;
    static constexpr int units = 8, tile_bytes = 576;
    static constexpr bool scaled = true;
    static constexpr uint8_t padding = 0x88;
    static int64_t row_bytes(int64_t columns) { return (columns + 7) / 8 * 4; }
    /* Nibbles beyond the last column are whatever the file has: they count as 0. */
    static void end_row(uint8_t *row, int64_t columns) {
        if (columns % 2) row[columns / 2] = (uint8_t)((row[columns / 2] & 0x0F) | 0x80);
        for (int64_t byte = (columns + 1) / 2; byte < 32; byte++) row[byte] = padding;
    }
};
struct int8_rows {
    typedef biased unit;
    static constexpr int units = 16, tile_bytes = 1088;
    static constexpr bool scaled = true;
    static constexpr uint8_t padding = 0;
    static int64_t row_bytes(int64_t columns) { return columns; }
    static void end_row(uint8_t *, int64_t) {}
};
struct bf16_rows {
    typedef whole_unit unit;
    static constexpr int units = 32, tile_bytes = 2048;
    static constexpr bool scaled = false;
    static constexpr uint8_t padding = 0;
    static int64_t row_bytes(int64_t columns) { return 2 * columns; }
    static void end_row(uint8_t *, int64_t) {}
};
struct float32_rows {
    typedef whole_unit unit;
    static constexpr int units = 64, tile_bytes = 4096;
    static constexpr bool scaled = false;
    static constexpr uint8_t padding = 0;
    static int64_t row_bytes(int64_t columns) { return 4 * columns; }
    static void end_row(uint8_t *, int64_t) {}
};

/* A tile at the edge: its rows and columns that exist, copied into a whole one. */
template <class Rows>
void pack_edge(uint8_t *tile, const uint8_t *source, const uint16_t *scale, int64_t rows, int64_t columns,
               int64_t all_columns) {
    alignas(64) uint8_t whole_rows[16][Rows::units * 4];
    uint16_t whole_scales[16][2] = {};
    std::memset(whole_rows, Rows::padding, sizeof(whole_rows));
    for (int64_t row = 0; row < rows; row++) {
        std::memcpy(whole_rows[row], source + row * Rows::row_bytes(all_columns), Rows::row_bytes(columns));
        Rows::end_row(whole_rows[row], columns);
        if (Rows::scaled)
            std::memcpy(whole_scales[row], scale + row * ((all_columns + 31) / 32), (columns + 31) / 32 * 2);
    }
    pack_lines<typename Rows::unit, Rows::units>((uint32_t *)tile, (const uint32_t *)whole_rows, Rows::units);
    if (Rows::scaled) pack_scales((uint16_t *)(tile + Rows::units * 64), whole_scales[0], 2);
}

template <class Rows>
void pack_rows(uint8_t *tiles, const uint8_t *source, const uint16_t *scale, int64_t rows, int64_t columns) {
    const int64_t row_bytes = Rows::row_bytes(columns), groups = (columns + 31) / 32, num_tiles = (columns + 63) / 64;
    /* Words of a row may begin at any byte (int8, bf16 with an odd number of columns): then every tile goes the
     * slow way. */
    const bool words = row_bytes % 4 == 0 && (uintptr_t)source % 4 == 0;
    for (int64_t first = 0; first < rows; first += 16) {
        /* The scales are 16 more streams, too many for the hardware: those of the next tile row, which lie
         * together, by hand. */
        if (Rows::scaled && first + 32 <= rows)
            for (int64_t group = (first + 16) * groups; group < (first + 32) * groups; group += 32)
                prefetch(scale + group);
        const int64_t left = rows - first < 16 ? rows - first : 16;
        for (int64_t k = 0; k < num_tiles; k++, tiles += Rows::tile_bytes) {
            const uint8_t *from = source + first * row_bytes + k * Rows::units * 4;
            const uint16_t *scales = Rows::scaled ? scale + first * groups + 2 * k : nullptr;
            const int64_t width = columns - 64 * k < 64 ? columns - 64 * k : 64;
            if (left < 16 || width < 64 || !words) {
                pack_edge<Rows>(tiles, from, scales, left, width, columns);
                continue;
            }
            pack_lines<typename Rows::unit, Rows::units>((uint32_t *)tiles, (const uint32_t *)from, row_bytes / 4);
            if (Rows::scaled) pack_scales((uint16_t *)(tiles + Rows::units * 64), scales, groups);
        }
    }
}

int32_t pack_format(int32_t format, void *tiles, const void *source, const uint16_t *scale, int64_t rows,
                    int64_t columns) {
    uint8_t *to = (uint8_t *)tiles;
    const uint8_t *from = (const uint8_t *)source;
    switch (format) {
    case MOELAB_INT4_G32: pack_rows<int4_rows>(to, from, scale, rows, columns); return MOELAB_OK;
    case MOELAB_INT8_G32: pack_rows<int8_rows>(to, from, scale, rows, columns); return MOELAB_OK;
    case MOELAB_BF16: pack_rows<bf16_rows>(to, from, scale, rows, columns); return MOELAB_OK;
    case MOELAB_FLOAT32: pack_rows<float32_rows>(to, from, scale, rows, columns); return MOELAB_OK;
    default: return MOELAB_UNSUPPORTED;
    }
}

}  // namespace
#endif
