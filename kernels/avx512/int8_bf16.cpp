/* int8_g32 weights x bf16 activations with vdpbf16ps, weights exact: every int8 is a bf16 number, made through
 * float32. A vector holds 8 rows x 4 columns, with two sums for each row, of columns 0, 1 and 2, 3 of every quad. */
#include "vectors.h"

namespace {

static inline __m512 to_float(__m128i bytes) { /* 16 of q + 128 */
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(128)));
}

struct block {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        const __m512i first = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        __m512 sums[R][M][2];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t][0] = sums[r][t][1] = _mm512_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++)
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * 1088;
                __m512 part[M][2][2];
                for (int g = 0; g < 2; g++) {
                    for (int t = 0; t < M; t++) part[t][g][0] = part[t][g][1] = _mm512_setzero_ps();
                    for (int line = g * 8; line < g * 8 + 8; line++) {
                        const __m512i bytes = stream_line(tile + line * 64);
                        const __m512bh upper = _mm512_cvtne2ps_pbh(to_float(_mm512_extracti32x4_epi32(bytes, 1)),
                                                                   to_float(_mm512_castsi512_si128(bytes)));
                        const __m512bh lower = _mm512_cvtne2ps_pbh(to_float(_mm512_extracti32x4_epi32(bytes, 3)),
                                                                   to_float(_mm512_extracti32x4_epi32(bytes, 2)));
                        for (int t = 0; t < M; t++) {
                            const uint16_t *a = (const uint16_t *)x.q + (token[t] * num_tiles + k) * 64 + line * 4;
                            const __m512bh four = (__m512bh)broadcast64(a);
                            part[t][g][0] = _mm512_dpbf16_ps(part[t][g][0], upper, four);
                            part[t][g][1] = _mm512_dpbf16_ps(part[t][g][1], lower, four);
                        }
                    }
                }
                const __m512i scales = stream_line(tile + 1024);
                for (int g = 0; g < 2; g++) {
                    const __m512 scale = scales_of_group(scales, g);
                    const __m512 upper = _mm512_permutexvar_ps(first, scale),
                                 lower = _mm512_permutexvar_ps(second, scale);
                    for (int t = 0; t < M; t++) {
                        sums[r][t][0] = _mm512_fmadd_ps(part[t][g][0], upper, sums[r][t][0]);
                        sums[r][t][1] = _mm512_fmadd_ps(part[t][g][1], lower, sums[r][t][1]);
                    }
                }
            }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) {
                const __m512 a = _mm512_permutex2var_ps(sums[r][t][0], even, sums[r][t][1]);
                const __m512 b = _mm512_permutex2var_ps(sums[r][t][0], odd, sums[r][t][1]);
                _mm512_storeu_ps(out + (r * stride + t) * 16, _mm512_add_ps(a, b));
            }
    }
};

struct int8_bf16 {
    static const int32_t format = MOELAB_INT8_G32, mode = MOELAB_ACT_BF16;
    static const int64_t tile_bytes = 1088;

    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        run_blocks<block>(rows, num_rows, num_tiles, x, token, num_tokens, out);
    }
};

}  // namespace

MOELAB_KERNEL(avx512, int8_bf16, int8_bf16)
