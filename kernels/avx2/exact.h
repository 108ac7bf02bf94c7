/* Quantised weights x bf16 activations in float32, weights exact: each number is cut out of the four bytes of its
 * row as an unsigned integer, and every sum starts from -zero * (sum of the group's activations). W: `tile_bytes`,
 * `scales` (offset of the scales), `lines` of a group, `parts` of a byte (nibbles 2, int8 1), `zero` (8 or 128). */
#ifndef MOELAB_AVX2_EXACT_H
#define MOELAB_AVX2_EXACT_H

#include "vectors.h"

namespace {

template <class W>
struct exact {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        const int bits = 8 / W::parts;
        const __m256i mask = _mm256_set1_epi32((1 << bits) - 1);
        __m256 sums[R][M][2];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t][0] = sums[r][t][1] = _mm256_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++) {
            alignas(32) float wide[M][64];
            for (int t = 0; t < M; t++)
                widen_bf16<64>((const uint16_t *)x.q + (token[t] * num_tiles + k) * 64, wide[t]);
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * W::tile_bytes;
                __m256 part[M][2][2];
                for (int g = 0; g < 2; g++) {
                    for (int t = 0; t < M; t++)
                        part[t][g][0] = part[t][g][1] =
                            _mm256_set1_ps(-(float)W::zero * x.scale[(token[t] * num_tiles + k) * 2 + g]);
                    for (int line = g * W::lines; line < (g + 1) * W::lines; line++)
                        for (int half = 0; half < 2; half++) {
                            const __m256i four = stream_half_line(tile + line * 64 + half * 32);
                            for (int p = 0; p < W::parts; p++)
                                for (int c = 0; c < 4; c++) {
                                    const __m256i n = _mm256_and_si256(_mm256_srli_epi32(four, 8 * c + bits * p), mask);
                                    const __m256 w = _mm256_cvtepi32_ps(n);
                                    const int column = line * 4 * W::parts + 4 * p + c;
                                    for (int t = 0; t < M; t++)
                                        part[t][g][half] =
                                            _mm256_fmadd_ps(w, _mm256_set1_ps(wide[t][column]), part[t][g][half]);
                                }
                        }
                }
                for (int g = 0; g < 2; g++) {
                    const __m256i scales = stream_half_line(tile + W::scales + g * 32);
                    for (int t = 0; t < M; t++)
                        for (int half = 0; half < 2; half++)
                            sums[r][t][half] =
                                _mm256_fmadd_ps(part[t][g][half], scales_of_rows(scales, half), sums[r][t][half]);
                }
            }
        }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++)
                for (int half = 0; half < 2; half++)
                    _mm256_storeu_ps(out + (r * stride + t) * 16 + half * 8, sums[r][t][half]);
    }
};

}  // namespace

#endif
