/* int4_g32 weights x bf16 activations with vdpbf16ps, weights exact: a nibble n = q + 8 becomes the bf16 number 16 + n by
 * placing it in the mantissa (0x4180 | n << 3), and each sum starts from -24 * sum of the group's activations.
 *
 * Bytes become halves by vpunpck, which leaves 8 rows x 4 columns in a vector: rows 0, 1, 4, 5, 8, 9, 12, 13 in the low one,
 * rows 2, 3, 6, 7, 10, 11, 14, 15 in the high one, with two sums for each row, of columns 0, 1 and 2, 3 of every quad. */
#include "vectors.h"

namespace {

static inline __m512i in_mantissa(__m512i shifted) {
    const __m512i mantissa = _mm512_set1_epi8(0x78), bottom = _mm512_set1_epi8((char)0x80);
    return _mm512_ternarylogic_epi32(shifted, mantissa, bottom, 0xea); /* (a & b) | c */
}

struct sums_of_rows {
    __m512 low, high;
};

struct block {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        const __m512i top = _mm512_set1_epi8(0x41);
        sums_of_rows sums[R][M];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t].low = sums[r][t].high = _mm512_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++)
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * 576;
                sums_of_rows part[M][2];
                for (int g = 0; g < 2; g++) {
                    for (int t = 0; t < M; t++) /* half of it in each of the two sums of a row */
                        part[t][g].low = part[t][g].high =
                            _mm512_set1_ps(-12.0f * x.scale[(token[t] * num_tiles + k) * 2 + g]);
                    for (int line = g * 4; line < g * 4 + 4; line++) {
                        const __m512i bytes = stream_line(tile + line * 64);
                        const __m512i first = in_mantissa(_mm512_slli_epi16(bytes, 3));
                        const __m512i second = in_mantissa(_mm512_srli_epi16(bytes, 1));
                        for (int t = 0; t < M; t++) {
                            const uint16_t *a = (const uint16_t *)x.q + (token[t] * num_tiles + k) * 64 + line * 8;
                            const __m512bh four = (__m512bh)broadcast64(a), next = (__m512bh)broadcast64(a + 4);
                            sums_of_rows &p = part[t][g];
                            p.low = _mm512_dpbf16_ps(p.low, (__m512bh)_mm512_unpacklo_epi8(first, top), four);
                            p.high = _mm512_dpbf16_ps(p.high, (__m512bh)_mm512_unpackhi_epi8(first, top), four);
                            p.low = _mm512_dpbf16_ps(p.low, (__m512bh)_mm512_unpacklo_epi8(second, top), next);
                            p.high = _mm512_dpbf16_ps(p.high, (__m512bh)_mm512_unpackhi_epi8(second, top), next);
                        }
                    }
                }
                const __m512i scales = stream_line(tile + 512);
                for (int g = 0; g < 2; g++) {
                    const __m512 scale = scales_of_group(scales, g); /* each twice, in the order of the sums */
                    const __m512 low = _mm512_unpacklo_ps(scale, scale), high = _mm512_unpackhi_ps(scale, scale);
                    for (int t = 0; t < M; t++) {
                        sums[r][t].low = _mm512_fmadd_ps(part[t][g].low, low, sums[r][t].low);
                        sums[r][t].high = _mm512_fmadd_ps(part[t][g].high, high, sums[r][t].high);
                    }
                }
            }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) {
                const __m512 low = sums[r][t].low, high = sums[r][t].high;
                const __m512 total = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x88), _mm512_shuffle_ps(low, high, 0xdd));
                _mm512_storeu_ps(out + (r * stride + t) * 16, total);
            }
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
