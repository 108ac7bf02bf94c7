/* bf16 weights x bf16 activations in float32: of a line's two columns one is shifted up, the other masked. */
#include "vectors.h"

namespace {

struct block {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        const __m256i upper = _mm256_set1_epi32((int32_t)0xffff0000);
        __m256 sums[R][M][2];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t][0] = sums[r][t][1] = _mm256_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++) {
            alignas(32) float wide[M][64];
            for (int t = 0; t < M; t++)
                widen_bf16<64>((const uint16_t *)x.q + (token[t] * num_tiles + k) * 64, wide[t]);
            for (int line = 0; line < 32; line++)
                for (int r = 0; r < R; r++)
                    for (int half = 0; half < 2; half++) {
                        const __m256i two = stream_half_line(rows[r] + k * 2048 + line * 64 + half * 32);
                        const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(two, 16));
                        const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(two, upper));
                        for (int t = 0; t < M; t++) {
                            __m256 sum = sums[r][t][half];
                            sum = _mm256_fmadd_ps(even, _mm256_set1_ps(wide[t][2 * line]), sum);
                            sums[r][t][half] = _mm256_fmadd_ps(odd, _mm256_set1_ps(wide[t][2 * line + 1]), sum);
                        }
                    }
        }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++)
                for (int half = 0; half < 2; half++)
                    _mm256_storeu_ps(out + (r * stride + t) * 16 + half * 8, sums[r][t][half]);
    }
};

struct bf16 {
    static const int32_t format = MOELAB_BF16, mode = MOELAB_ACT_BF16;
    static const int64_t tile_bytes = 2048;

    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        run_blocks<block>(rows, num_rows, num_tiles, x, token, num_tokens, out);
    }
};

}  // namespace

MOELAB_KERNEL(avx2, bf16, bf16)
