/* float32 weights x float32 activations: one fused multiply-add for each line. */
#include "vectors.h"

namespace {

struct block {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        __m512 sums[R][M];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t] = _mm512_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++)
            for (int column = 0; column < 64; column++)
                for (int r = 0; r < R; r++) {
                    const __m512 w = _mm512_castsi512_ps(stream_line(rows[r] + k * 4096 + column * 64));
                    for (int t = 0; t < M; t++) {
                        const float a = ((const float *)x.q)[(token[t] * num_tiles + k) * 64 + column];
                        sums[r][t] = _mm512_fmadd_ps(w, _mm512_set1_ps(a), sums[r][t]);
                    }
                }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) _mm512_storeu_ps(out + (r * stride + t) * 16, sums[r][t]);
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

MOELAB_KERNEL(avx512, float32, float32)
