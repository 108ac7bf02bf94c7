/* int4_g32 weights x bf16 activations with vdpbf16ps, weights exact: a nibble n = q + 8 becomes the bf16 number 16
 * + n by placing it in the mantissa (0x4180 | n << 3), and each sum starts from -24 * sum of the group's
 * activations.
 *
 * The four bytes of a row are two halves of four nibbles each. The same nibble of both halves is a pair of columns
 * two apart, so shifting is all that unpacking takes, and the activations are put into the order 0 2 1 3 within
 * each quad instead. */
#include "vectors.h"

namespace {

/* Nibble number i (0..3) of every half of a line as bf16. Pairs of columns: 0: 0, 2; 1: 4, 6; 2: 1, 3; 3: 5, 7. */
template <int i>
static inline __m512bh nibble(__m512i line) {
    const __m512i mantissa = _mm512_set1_epi16(0x78), bottom = _mm512_set1_epi16(0x4180);
    const __m512i shifted = i == 0 ? _mm512_slli_epi16(line, 3) : _mm512_srli_epi16(line, i == 0 ? 0 : 4 * i - 3);
    return (__m512bh)_mm512_ternarylogic_epi32(shifted, mantissa, bottom, 0xea); /* (a & b) | c */
}

struct block {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        __m512 sums[R][M];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t] = _mm512_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++) {
            alignas(64) uint16_t a[M][64]; /* quads in the order 0 2 1 3 */
            for (int t = 0; t < M; t++)
                for (int i = 0; i < 64; i += 32) {
                    const __m512i v = _mm512_loadu_si512((const uint16_t *)x.q + (token[t] * num_tiles + k) * 64 + i);
                    _mm512_store_si512(a[t] + i, _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(v, 0xd8), 0xd8));
                }
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * 576;
                __m512 part[M][2];
                for (int g = 0; g < 2; g++) {
                    for (int t = 0; t < M; t++)
                        part[t][g] = _mm512_set1_ps(-24.0f * x.scale[(token[t] * num_tiles + k) * 2 + g]);
                    for (int line = g * 4; line < g * 4 + 4; line++) {
                        const __m512i bytes = stream_line(tile + line * 64);
                        for (int t = 0; t < M; t++) {
                            const uint16_t *eight = a[t] + line * 8;
                            __m512 sum = part[t][g];
                            sum = _mm512_dpbf16_ps(sum, nibble<0>(bytes), (__m512bh)broadcast32(eight));
                            sum = _mm512_dpbf16_ps(sum, nibble<2>(bytes), (__m512bh)broadcast32(eight + 2));
                            sum = _mm512_dpbf16_ps(sum, nibble<1>(bytes), (__m512bh)broadcast32(eight + 4));
                            part[t][g] = _mm512_dpbf16_ps(sum, nibble<3>(bytes), (__m512bh)broadcast32(eight + 6));
                        }
                    }
                }
                const __m512i scales = stream_line(tile + 512);
                for (int t = 0; t < M; t++)
                    for (int g = 0; g < 2; g++)
                        sums[r][t] = _mm512_fmadd_ps(part[t][g], scales_of_group(scales, g), sums[r][t]);
            }
        }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) _mm512_storeu_ps(out + (r * stride + t) * 16, sums[r][t]);
    }
};

struct int4_bf16 {
    static const int32_t format = MOELAB_INT4_G32, mode = MOELAB_ACT_BF16;
    static const int64_t tile_bytes = 576;

    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        run_blocks<block>(rows, num_rows, num_tiles, x, token, num_tokens, out);
    }
};

}  // namespace

MOELAB_KERNEL(avx512, int4_bf16, int4_bf16)
