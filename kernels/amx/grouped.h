/* Quantised weights x int8 activations: TDPBSUD over one group of 32 columns, then the float order of
 * moelab_kernels.h, so that every bit is that of the other ISAs. The unsigned operand is the weight as it is
 * stored (q + 8 or q + 128), so that q = -8 or -128 times any activation is exact; `W::zero` / 8 offsets take the
 * constant back.
 *
 * W: `format`, `tile_bytes`, `scales` (offset of the scales), `zero`, and lines(tile, group, buffer): the 8 lines
 * [16 rows][4 columns] of a group, in the weights themselves or made in `buffer` (512 B). The sums of a group are
 * scaled after the tile instructions of the next one have been issued. */
#ifndef MOELAB_AMX_GROUPED_H
#define MOELAB_AMX_GROUPED_H

#include "tiles.h"

namespace {

template <class W>
struct grouped {
    static const int32_t format = W::format, mode = MOELAB_ACT_INT8;
    static const int64_t tile_bytes = W::tile_bytes;

    static void configure() { configure_tiles(32, 8); }

    template <int R, int B>
    static void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                    int num_tokens, float *out) {
        alignas(64) uint8_t gathered[B * 16 * 64] = {}, expanded[R][512];
        alignas(64) int32_t sums[2][R * B * 16 * 16];
        for (int i = 0; i < R * num_tokens; i++) ((floats *)out)[i] = floats{};
        const auto scale_group = [&](int64_t group) {
            for (int r = 0; r < R; r++) {
                floats weight_scale;
                load_scales(rows[r] + group / 2 * W::tile_bytes + W::scales + group % 2 * 32, &weight_scale);
                const ints *isum = (const ints *)sums[group % 2] + r * B * 16;
                floats *to = (floats *)out + r * num_tokens;
                for (int t = 0; t < num_tokens; t++) {
                    const int64_t at = token[t] * num_tiles * 2 + group;
                    const ints total = isum[t] + x.offset[at] * (W::zero / 8);
                    to[t] += (__builtin_convertvector(total, floats) * x.scale[at]) * weight_scale;
                }
            }
        };
        for (int64_t group = 0; group < 2 * num_tiles; group++) {
            const int64_t k = group / 2, g = group % 2;
            if (g == 0) gather_activations<64>(x, num_tiles, k, token, num_tokens, gathered);
            each<B>([&](auto b) { load_tile<b>(gathered + b * 16 * 64 + g * 32, 64); });
            each<R>([&](auto r) {
                load_tile<2 + r % 2>(W::lines(rows[r] + k * W::tile_bytes, (int)g, expanded[r]), 64);
                each<B>([](auto b) {
                    zero_tile<4 + decltype(r)::value * B + b>();
                    dot_int8<4 + decltype(r)::value * B + b, b, 2 + decltype(r)::value % 2>();
                });
            });
            each<R * B>([&](auto c) { store_tile<4 + c>(sums[g] + c * 16 * 16, 64); });
            if (group > 0) scale_group(group - 1);
        }
        scale_group(2 * num_tiles - 1);
    }

    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        run_in_tiles<grouped>(rows, num_rows, num_tiles, x, token, num_tokens, out);
    }
};

}  // namespace

#endif
