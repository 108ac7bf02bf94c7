/* bf16 weights x bf16 activations with vdpbf16ps: a line is two columns of 16 rows. */
#include "../avx512/vectors.h"

namespace {

struct block {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        __m512 sums[R][M];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t] = _mm512_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++)
            for (int line = 0; line < 32; line++)
                for (int r = 0; r < R; r++) {
                    const __m512bh w = (__m512bh)stream_line(rows[r] + k * 2048 + line * 64);
                    for (int t = 0; t < M; t++) {
                        const uint16_t *a = (const uint16_t *)x.q + (token[t] * num_tiles + k) * 64 + 2 * line;
                        sums[r][t] = _mm512_dpbf16_ps(sums[r][t], w, (__m512bh)broadcast32(a));
                    }
                }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) _mm512_storeu_ps(out + (r * stride + t) * 16, sums[r][t]);
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

MOELAB_KERNEL(avx512, bf16, bf16)
