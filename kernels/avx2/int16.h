/* Quantised weights x int16 activations: every ISA's bits (int16_tile.h).
 *
 * W: as in int16_tile.h, and what it needs of a token's activations of a tile, made once for all rows, and the exact
 * sums of 8 rows x a group: `prepared`, prepare(activations of the tile, prepared), sums(tile, g, prepared, isum). */
#ifndef MOELAB_AVX2_INT16_H
#define MOELAB_AVX2_INT16_H

#include "int16_tile.h"
#include "vectors.h"

namespace {

/* add_tile of int16_tile.h by hand: GCC 12 makes it four times as slow here. */
template <class W>
static __attribute__((noinline)) void with_tile(const uint8_t *tile, const activations &x, int64_t first_group,
                                                __m256 *sums) {
    const __m256i mask = _mm256_set1_epi32((1 << W::bits) - 1), zero = _mm256_set1_epi32(W::zero);
    for (int g = 0; g < 2; g++) {
        const int64_t group = first_group + g;
        const int8_t *q = (const int8_t *)x.q + group * 64;
        const bool kept = is_kept(x, group);
        for (int half = 0; half < 2; half++) {
            __m256 part = _mm256_setzero_ps();
            __m256i isum = _mm256_set1_epi32(kept ? 0 : x.offset[group] * (W::zero / 8));
            for (int c = 0; c < 32; c++) {
                const int column = g * 32 + c;
                const uint8_t *line = tile + column / W::columns_of_line * 64 + half * 32;
                const __m256i four_bytes = _mm256_loadu_si256((const __m256i *)line);
                const __m256i n =
                    _mm256_and_si256(_mm256_srl_epi32(four_bytes, _mm_cvtsi32_si128(shift_of<W>(column))), mask);
                if (kept) {
                    uint16_t number;
                    std::memcpy(&number, q + 2 * c, 2);
                    const __m256 w = _mm256_cvtepi32_ps(_mm256_sub_epi32(n, zero));
                    part = _mm256_add_ps(part, _mm256_mul_ps(w, _mm256_set1_ps(bf16_to_float(number))));
                } else {
                    isum = _mm256_add_epi32(isum, _mm256_mullo_epi32(n, _mm256_set1_epi32(q[c] * 256 + q[32 + c])));
                }
            }
            if (!kept) part = _mm256_cvtepi32_ps(isum);
            const __m256 value = _mm256_mul_ps(part, _mm256_set1_ps(x.scale[group]));
            const __m256 scale = load_bf16(tile + W::scales + g * 32 + half * 16);
            sums[half] = _mm256_add_ps(sums[half], _mm256_mul_ps(value, scale));
        }
    }
}

template <class W>
struct block {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        __m256 sums[R][M][2];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t][0] = sums[r][t][1] = _mm256_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++) {
            typename W::prepared ready[M];
            bool kept[M], any_kept = false;
            for (int t = 0; t < M; t++) {
                const int64_t group = (token[t] * num_tiles + k) * 2;
                kept[t] = is_kept(x, group) || is_kept(x, group + 1);
                any_kept |= kept[t];
                W::prepare((const int8_t *)x.q + group * 64, ready[t]);
            }
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * W::tile_bytes;
                __m256i isum[2][M][2];
#pragma GCC unroll 2
                for (int g = 0; g < 2; g++) W::template sums<M>(tile, g, ready, isum[g]);
                for (int g = 0; g < 2; g++) { /* the scales are the last line of a tile */
                    const __m256i scales = stream_half_line(tile + W::scales + g * 32);
                    for (int t = 0; t < M; t++) {
                        if (any_kept && kept[t]) continue;
                        const int64_t group = (token[t] * num_tiles + k) * 2 + g;
                        const __m256i offset = _mm256_set1_epi32(x.offset[group] * (W::zero / 8));
                        for (int half = 0; half < 2; half++) {
                            const __m256i sum = _mm256_add_epi32(isum[g][t][half], offset);
                            const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(x.scale[group]));
                            sums[r][t][half] =
                                _mm256_add_ps(sums[r][t][half], _mm256_mul_ps(value, scales_of_rows(scales, half)));
                        }
                    }
                }
                for (int t = 0; any_kept && t < M; t++)
                    if (kept[t]) with_tile<W>(tile, x, (token[t] * num_tiles + k) * 2, sums[r][t]);
            }
        }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++)
                for (int half = 0; half < 2; half++)
                    _mm256_storeu_ps(out + (r * stride + t) * 16 + half * 8, sums[r][t][half]);
    }
};

template <class W>
struct int16 : W {
    static const int32_t mode = MOELAB_ACT_INT16;

    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        run_blocks<block<W>>(rows, num_rows, num_tiles, x, token, num_tokens, out);
    }
};

}  // namespace

#endif
