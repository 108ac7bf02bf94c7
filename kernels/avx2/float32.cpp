/* float32 weights x float32 activations: one fused multiply-add for each half line. */
#include "vectors.h"

namespace {

struct block {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        __m256 sums[R][M][2];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t][0] = sums[r][t][1] = _mm256_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++)
            for (int column = 0; column < 64; column++)
                for (int r = 0; r < R; r++)
                    for (int half = 0; half < 2; half++) {
                        const __m256 w =
                            _mm256_castsi256_ps(stream_half_line(rows[r] + k * 4096 + column * 64 + half * 32));
                        for (int t = 0; t < M; t++) {
                            const float a = ((const float *)x.q)[(token[t] * num_tiles + k) * 64 + column];
                            sums[r][t][half] = _mm256_fmadd_ps(w, _mm256_set1_ps(a), sums[r][t][half]);
                        }
                    }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++)
                for (int half = 0; half < 2; half++)
                    _mm256_storeu_ps(out + (r * stride + t) * 16 + half * 8, sums[r][t][half]);
    }
};

struct float32 {
    static const int32_t format = MOELAB_FLOAT32, mode = MOELAB_ACT_F32;
    static const int64_t tile_bytes = 4096;

    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        run_blocks<block>(rows, num_rows, num_tiles, x, token, num_tokens, out);
    }
};

}  // namespace

MOELAB_KERNEL(avx2, float32, float32)
