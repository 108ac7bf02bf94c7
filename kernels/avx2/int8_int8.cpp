/* int8_g32 weights x int8 activations. Both are widened to int16: vpmaddubsw would saturate (2 * 255 * 127). A vector of
 * products holds 4 rows with two sums each. */
#include "vectors.h"

namespace {

/* Sums of rows 0..3 and 4..7, two each, -> one of each row. */
static inline __m256i sums_by_row(__m256i first, __m256i second) {
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(first, second), 0xd8);
}

struct block {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        __m256 sums[R][M][2];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t][0] = sums[r][t][1] = _mm256_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++) {
            alignas(32) int16_t wide[M][64];
            for (int t = 0; t < M; t++) {
                const int8_t *a = (const int8_t *)x.q + (token[t] * num_tiles + k) * 64;
                for (int i = 0; i < 64; i += 16)
                    _mm256_store_si256((__m256i *)(wide[t] + i),
                                       _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(a + i))));
            }
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * 1088;
                __m256i total[M][2][2];
                for (int g = 0; g < 2; g++) {
                    __m256i isum[M][2][2];
                    for (int t = 0; t < M; t++)
                        for (int i = 0; i < 4; i++) isum[t][i / 2][i % 2] = _mm256_setzero_si256();
                    for (int line = g * 8; line < g * 8 + 8; line++)
                        for (int half = 0; half < 2; half++) {
                            const __m256i bytes = stream_half_line(tile + line * 64 + half * 32);
                            const __m256i first = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes));
                            const __m256i second = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes, 1));
                            for (int t = 0; t < M; t++) {
                                const __m256i four = broadcast64(wide[t] + line * 4);
                                isum[t][half][0] = _mm256_add_epi32(isum[t][half][0], _mm256_madd_epi16(first, four));
                                isum[t][half][1] = _mm256_add_epi32(isum[t][half][1], _mm256_madd_epi16(second, four));
                            }
                        }
                    for (int t = 0; t < M; t++)
                        for (int half = 0; half < 2; half++)
                            total[t][g][half] = sums_by_row(isum[t][half][0], isum[t][half][1]);
                }
                for (int g = 0; g < 2; g++) {
                    const __m256i scales = stream_half_line(tile + 1024 + g * 32);
                    for (int t = 0; t < M; t++) {
                        const int64_t group = (token[t] * num_tiles + k) * 2 + g;
                        for (int half = 0; half < 2; half++) {
                            const __m256i sum = _mm256_add_epi32(total[t][g][half], _mm256_set1_epi32(16 * x.offset[group]));
                            const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(x.scale[group]));
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
