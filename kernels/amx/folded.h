/* Weights x bf16 activations: TDPBF16PS over all columns, sums in the tile from the first group to the last,
 * nothing stored between. Quantised weights are expanded to bf16 with their scale: each is rounded once, to 8
 * bits, which the other ISAs' bf16 kernels do not do. TDPBF16PS takes denormal numbers for zero.
 *
 * W: `format`, `tile_bytes` and lines(tile, group, buffer): the 16 lines [16 rows][2 columns] of a group of 32
 * columns, in the weights themselves or made in `buffer` (1 KB). */
#ifndef MOELAB_AMX_FOLDED_H
#define MOELAB_AMX_FOLDED_H

#include "tiles.h"

namespace {

template <class W>
struct folded {
    static const int32_t format = W::format, mode = MOELAB_ACT_BF16;
    static const int64_t tile_bytes = W::tile_bytes;

    static void configure() { configure_tiles(64, 16); }

    template <int R, int B>
    static void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                    int num_tokens, float *out) {
        alignas(64) uint8_t gathered[B * 16 * 128] = {}, expanded[R][1024];
        alignas(64) float sums[R * B * 16 * 16];
        each<R * B>([](auto c) { zero_tile<4 + c>(); });
        for (int64_t group = 0; group < 2 * num_tiles; group++) {
            const int64_t k = group / 2, g = group % 2;
            if (g == 0) gather_activations<128>(x, num_tiles, k, token, num_tokens, gathered);
            each<B>([&](auto b) { load_tile<b>(gathered + b * 16 * 128 + g * 64, 128); });
            each<R>([&](auto r) {
                load_tile<2 + r % 2>(W::lines(rows[r] + k * W::tile_bytes, (int)g, expanded[r]), 64);
                each<B>([](auto b) { dot_bf16<4 + decltype(r)::value * B + b, b, 2 + decltype(r)::value % 2>(); });
            });
        }
        each<R * B>([&](auto c) { store_tile<4 + c>(sums + c * 16 * 16, 64); });
        for (int r = 0; r < R; r++)
            for (int t = 0; t < num_tokens; t++)
                ((floats *)out)[r * num_tokens + t] = ((const floats *)sums)[r * B * 16 + t];
    }

    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        run_in_tiles<folded>(rows, num_rows, num_tiles, x, token, num_tokens, out);
    }
};

/* The lines of a group from quantised weights. `parts` of a byte (nibbles 2, int8 1), `zero` (8 or 128): each
 * number is cut out of the four bytes of its row; n * scale - zero * scale is exact in float32, then rounded to
 * nearest even. */
template <int parts, int zero, int scales>
static inline void expand_group(const uint8_t *tile, int group, uint8_t *buffer) {
    const int bits = 8 / parts, num_lines = 8 / parts;
    floats scale;
    load_scales(tile + scales + group * 32, &scale);
    const floats least = scale * (float)-zero;
    for (int line = 0; line < num_lines; line++) {
        const words four = *(const words *)(tile + (group * num_lines + line) * 64);
        for (int p = 0; p < parts; p++)
            for (int pair = 0; pair < 2; pair++) {
                words rounded[2];
                for (int c = 0; c < 2; c++) {
                    const ints n = (ints)((four >> (uint32_t)(8 * (2 * pair + c) + bits * p)) & ((1u << bits) - 1));
                    const floats w = __builtin_convertvector(n, floats) * scale + least;
                    const words exact = (words)w;
                    rounded[c] = exact + (((exact >> 16) & 1u) + 0x7fffu);
                }
                *(words *)(buffer + ((line * parts + p) * 2 + pair) * 64) =
                    (rounded[0] >> 16) | (rounded[1] & 0xffff0000u);
            }
    }
}

}  // namespace

#endif
