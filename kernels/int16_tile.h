/* Quantised weights x int16 activations, group by group: what the generic kernels are made of, and what the others use
 * for a group that is kept in bf16, because its numbers are too far apart for one scale (moelab_kernels.h). Both kinds
 * of group have one order of operations, so that every ISA gives the same bits. Plain loops of 16 rows.
 *
 * W: `format`, `tile_bytes`, `scales` (offset of the scales), `zero` (8 or 128), `bits` of a number and columns of a
 * line. */
#ifndef MOELAB_INT16_TILE_H
#define MOELAB_INT16_TILE_H

#include "phases.h"

namespace {

struct nibbles {
    static const int32_t format = MOELAB_INT4_G32;
    static const int64_t tile_bytes = 576;
    static const int scales = 512, zero = 8, bits = 4, columns_of_line = 8;
};

struct whole_bytes {
    static const int32_t format = MOELAB_INT8_G32;
    static const int64_t tile_bytes = 1088;
    static const int scales = 1024, zero = 128, bits = 8, columns_of_line = 4;
};

/* Where a column begins in the four bytes of a row. */
template <class W>
static inline int shift_of(int column) {
    return column % 4 * 8 + (column % W::columns_of_line < 4 ? 0 : 4);
}

/* The numbers of 16 rows in one column of a tile, unsigned as they are stored: four bytes of a line are a row. */
template <class W>
static inline void column_of(const uint8_t *tile, int column, int32_t *numbers) {
    uint32_t four_bytes[16];
    std::memcpy(four_bytes, tile + column / W::columns_of_line * 64, 64);
    for (int r = 0; r < 16; r++) numbers[r] = (int32_t)((four_bytes[r] >> shift_of<W>(column)) & ((1u << W::bits) - 1));
}

static inline bool is_kept(const activations &x, int64_t group) { return x.offset[group] == KEPT_BF16; }

/* sums[16] += group g of a tile x one group of activations. */
template <class W>
static inline void add_group(const uint8_t *tile, int g, const activations &x, int64_t group, float *sums) {
    const int8_t *q = (const int8_t *)x.q + group * 64;
    float part[16] = {0};
    if (is_kept(x, group)) {
        for (int c = 0; c < 32; c++) {
            uint16_t half;
            std::memcpy(&half, q + 2 * c, 2);
            const float value = bf16_to_float(half);
            int32_t numbers[16];
            column_of<W>(tile, g * 32 + c, numbers);
            for (int r = 0; r < 16; r++) part[r] += (float)(numbers[r] - W::zero) * value;
        }
    } else {
        int32_t isum[16];
        for (int r = 0; r < 16; r++) isum[r] = x.offset[group] * (W::zero / 8);
        for (int c = 0; c < 32; c++) {
            const int32_t value = q[c] * 256 + q[32 + c];
            int32_t numbers[16];
            column_of<W>(tile, g * 32 + c, numbers);
            for (int r = 0; r < 16; r++) isum[r] += numbers[r] * value;
        }
        for (int r = 0; r < 16; r++) part[r] = (float)isum[r];
    }
    uint16_t scales[16];
    std::memcpy(scales, tile + W::scales + g * 32, sizeof(scales));
    for (int r = 0; r < 16; r++) sums[r] += (part[r] * x.scale[group]) * bf16_to_float(scales[r]);
}

template <class W>
static inline void add_tile(const uint8_t *tile, const activations &x, int64_t first_group, float *sums) {
    for (int g = 0; g < 2; g++) add_group<W>(tile, g, x, first_group + g, sums);
}

}  // namespace

#endif
