/* int8_g32 weights x int8 activations. vpmaddubsw would saturate (2 * 255 * 127), so a byte is taken as two nibbles, as
 * in int4_int8.cpp: the eight lines of a group stay below 30,480 in each of the two sums, which meet in int32. Unrolled
 * by hand: compilers leave the loop of eight lines, at twice the time. Rows take turns after each group: streams that
 * stand still for a whole tile are read more slowly (both figures: docs/log.md, 2026-11-24, a decode step as one native
 * call). */
#include "vectors.h"

namespace {

struct block {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), sixteens = _mm256_set1_epi16(16);
        __m256 sums[R][M][2];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t][0] = sums[r][t][1] = _mm256_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++) {
            __m256i quad[M][16];
            for (int t = 0; t < M; t++) {
                const int8_t *a = (const int8_t *)x.q + (token[t] * num_tiles + k) * 64;
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) quad[t][i] = broadcast32(a + 4 * i);
            }
            __asm__("" : "+m"(quad));
            __m256i total[R][M][2][2];
#pragma GCC unroll 2
            for (int g = 0; g < 2; g++)
                for (int r = 0; r < R; r++) {
                    const uint8_t *tile = rows[r] + k * 1088;
                    __m256i low[M][2], high[M][2];
                    for (int t = 0; t < M; t++)
                        low[t][0] = low[t][1] = high[t][0] = high[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
                    for (int line = g * 8; line < g * 8 + 8; line++)
                        for (int half = 0; half < 2; half++) {
                            const __m256i bytes = stream_half_line(tile + line * 64 + half * 32);
                            const __m256i lows = _mm256_and_si256(bytes, nibble);
                            const __m256i highs = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
                            for (int t = 0; t < M; t++) {
                                low[t][half] =
                                    _mm256_add_epi16(low[t][half], _mm256_maddubs_epi16(lows, quad[t][line]));
                                high[t][half] =
                                    _mm256_add_epi16(high[t][half], _mm256_maddubs_epi16(highs, quad[t][line]));
                                keep_chain(low[t][half]);
                                keep_chain(high[t][half]);
                            }
                        }
                    for (int t = 0; t < M; t++)
                        for (int half = 0; half < 2; half++)
                            total[r][t][g][half] = _mm256_add_epi32(_mm256_madd_epi16(low[t][half], ones),
                                                                 _mm256_madd_epi16(high[t][half], sixteens));
                    if (g == 0) continue;
                    for (int h = 0; h < 2; h++) { /* the scales are the last line of a tile */
                        const __m256i scales = stream_half_line(tile + 1024 + h * 32);
                        for (int t = 0; t < M; t++) {
                            const int64_t group = (token[t] * num_tiles + k) * 2 + h;
                            const __m256i offset = _mm256_set1_epi32(16 * x.offset[group]);
                            for (int half = 0; half < 2; half++) {
                                const __m256i sum = _mm256_add_epi32(total[r][t][h][half], offset);
                                const __m256 value =
                                    _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(x.scale[group]));
                                sums[r][t][half] = _mm256_add_ps(sums[r][t][half],
                                                                 _mm256_mul_ps(value, scales_of_rows(scales, half)));
                            }
                        }
                    }
                }
        }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++)
                for (int half = 0; half < 2; half++)
                    _mm256_storeu_ps(out + (r * stride + t) * 16 + half * 8, sums[r][t][half]);
    }
};

struct int8_int8 {
    static const int32_t format = MOELAB_INT8_G32, mode = MOELAB_ACT_INT8;
    static const int64_t tile_bytes = 1088;

    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        run_blocks<block>(rows, num_rows, num_tiles, x, token, num_tokens, out);
    }
};

}  // namespace

MOELAB_KERNEL(avx2, int8_int8, int8_int8)
