/* int8_g32 weights x int8 activations with VNNI: the weights are stored as q + 128, the unsigned operand, so that
 * q = -128 is exact; -128 * sum of activations starts each sum. */
#include "vectors.h"

namespace {

/* One token. Alone in its expert it is given one row of tiles after the other (ONE_RUN): four runs that advance
 * together are read at 86 to 94% of the limit, one at 97 (docs/log.md, 2026-11-27, the decode step of K2.6 in the fast
 * state). Several rows (a fifth token comes alone, too) take turns after each group, whose activations are broadcast
 * once for all of them. */
template <int R>
static inline void run_one(const uint8_t *const *rows, int64_t num_tiles, const int8_t *q, const float *scale,
                           const int32_t *offset, float *out, int stride) {
    __m512 sums[R];
    for (int r = 0; r < R; r++) sums[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < num_tiles; k++) {
        __m512i isum[R][2];
#pragma GCC unroll 2
        for (int g = 0; g < 2; g++) {
            __m512i quad[8];
            for (int i = 0; i < 8; i++) quad[i] = broadcast32(q + k * 64 + g * 32 + 4 * i);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * 1088;
                __m512i even = _mm512_set1_epi32(16 * offset[k * 2 + g]), odd = _mm512_setzero_si512();
#pragma GCC unroll 4
                for (int i = 0; i < 8; i += 2) {
                    even = _mm512_dpbusd_epi32(even, stream_line(tile + (g * 8 + i) * 64), quad[i]);
                    odd = _mm512_dpbusd_epi32(odd, stream_line(tile + (g * 8 + i + 1) * 64), quad[i + 1]);
                }
                isum[r][g] = _mm512_add_epi32(even, odd);
                if (g == 0) continue;
                const __m512i scales = stream_line(tile + 1024); /* the last line of a tile */
                for (int h = 0; h < 2; h++) {
                    const __m512 value =
                        _mm512_mul_ps(_mm512_cvtepi32_ps(isum[r][h]), _mm512_set1_ps(scale[k * 2 + h]));
                    sums[r] = _mm512_add_ps(sums[r], _mm512_mul_ps(value, scales_of_group(scales, h)));
                }
            }
        }
    }
    for (int r = 0; r < R; r++) _mm512_storeu_ps(out + r * stride * 16, sums[r]);
}

struct block {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        if (M == 1)
            return run_one<R>(rows, num_tiles, (const int8_t *)x.q + token[0] * num_tiles * 64,
                              x.scale + token[0] * num_tiles * 2, x.offset + token[0] * num_tiles * 2, out, stride);
        __m512 sums[R][M];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t] = _mm512_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++)
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * 1088;
                __m512i isum[M][2];
                for (int g = 0; g < 2; g++) {
                    __m512i even[M], odd[M];
                    for (int t = 0; t < M; t++) {
                        even[t] = _mm512_set1_epi32(16 * x.offset[(token[t] * num_tiles + k) * 2 + g]);
                        odd[t] = _mm512_setzero_si512();
                    }
                    for (int line = g * 8; line < g * 8 + 8; line += 2) {
                        const __m512i first = stream_line(tile + line * 64),
                                      second = stream_line(tile + line * 64 + 64);
                        for (int t = 0; t < M; t++) {
                            const int8_t *a = (const int8_t *)x.q + (token[t] * num_tiles + k) * 64 + line * 4;
                            even[t] = _mm512_dpbusd_epi32(even[t], first, broadcast32(a));
                            odd[t] = _mm512_dpbusd_epi32(odd[t], second, broadcast32(a + 4));
                        }
                    }
                    for (int t = 0; t < M; t++) isum[t][g] = _mm512_add_epi32(even[t], odd[t]);
                }
                const __m512i scales = stream_line(tile + 1024);
                for (int t = 0; t < M; t++)
                    for (int g = 0; g < 2; g++) {
                        const float scale = x.scale[(token[t] * num_tiles + k) * 2 + g];
                        const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(isum[t][g]), _mm512_set1_ps(scale));
                        sums[r][t] = _mm512_add_ps(sums[r][t], _mm512_mul_ps(value, scales_of_group(scales, g)));
                    }
            }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) _mm512_storeu_ps(out + (r * stride + t) * 16, sums[r][t]);
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

template <>
const bool ONE_RUN<int8_int8> = true;

MOELAB_KERNEL(avx512, int8_int8, int8_int8)
