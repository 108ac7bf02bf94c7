/* int4_g32 weights x int8 activations with VNNI: the nibbles are the unsigned operand of vpdpbusd, so that q = -8
 * and any activation are exact; -8 * sum of activations starts each sum. */
#include "vectors.h"

namespace {

static inline __m512i low_nibbles(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
static inline __m512i high_nibbles(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8((char)0xf0)); }

static inline __m512 scaled(__m512i isum, float activation_scale, __m512 weight_scale) {
    return _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(isum), _mm512_set1_ps(activation_scale)), weight_scale);
}

/* One token, bound by memory. High nibbles stay in place, 16 times their value: their sum is shifted down once,
 * exactly. The activations of a tile are broadcast once for all rows, and the loop over the rows is unrolled by hand:
 * GCC would keep the sums of a rolled one in memory, at 5% of the read limit (docs/log.md, 2026-11-26, what streams of
 * weights lose). */
template <int R>
static inline void run_one(const uint8_t *const *rows, int64_t num_tiles, const int8_t *q, const float *scale,
                           const int32_t *offset, float *out, int stride) {
    __m512 sums[R];
    for (int r = 0; r < R; r++) sums[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < num_tiles; k++) {
        __m512i quad[16];
        for (int i = 0; i < 16; i++) quad[i] = broadcast32(q + k * 64 + 4 * i);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const uint8_t *tile = rows[r] + k * 576;
            __m512i isum[2];
#pragma GCC unroll 2
            for (int g = 0; g < 2; g++) {
                __m512i low = _mm512_set1_epi32(offset[k * 2 + g]), high = _mm512_setzero_si512();
#pragma GCC unroll 4
                for (int line = g * 4; line < g * 4 + 4; line++) {
                    const __m512i bytes = stream_line(tile + line * 64);
                    low = _mm512_dpbusd_epi32(low, low_nibbles(bytes), quad[2 * line]);
                    high = _mm512_dpbusd_epi32(high, high_nibbles(bytes), quad[2 * line + 1]);
                }
                isum[g] = _mm512_add_epi32(low, _mm512_srai_epi32(high, 4));
            }
            const __m512i scales = stream_line(tile + 512);
            for (int g = 0; g < 2; g++)
                sums[r] = _mm512_add_ps(sums[r], scaled(isum[g], scale[k * 2 + g], scales_of_group(scales, g)));
        }
    }
    for (int r = 0; r < R; r++) _mm512_storeu_ps(out + r * stride * 16, sums[r]);
}

/* Two tokens: computing takes nearly as long as reading, so rows take turns after each group, whose activations then
 * fit the registers. */
template <int R>
static inline void run_two(const uint8_t *const *rows, int64_t num_tiles, const int8_t *const *q,
                           const float *const *scale, const int32_t *const *offset, float *out, int stride) {
    __m512 sums[R][2];
    for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < num_tiles; k++) {
        __m512i isum[R][2][2];
#pragma GCC unroll 2
        for (int g = 0; g < 2; g++) {
            __m512i quad[2][8];
            for (int t = 0; t < 2; t++)
                for (int i = 0; i < 8; i++) quad[t][i] = broadcast32(q[t] + k * 64 + g * 32 + 4 * i);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * 576;
                __m512i low[2], high[2];
                for (int t = 0; t < 2; t++) {
                    low[t] = _mm512_set1_epi32(offset[t][k * 2 + g]);
                    high[t] = _mm512_setzero_si512();
                }
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    const __m512i bytes = stream_line(tile + (g * 4 + i) * 64);
                    for (int t = 0; t < 2; t++) {
                        low[t] = _mm512_dpbusd_epi32(low[t], low_nibbles(bytes), quad[t][2 * i]);
                        high[t] = _mm512_dpbusd_epi32(high[t], high_nibbles(bytes), quad[t][2 * i + 1]);
                    }
                }
                for (int t = 0; t < 2; t++)
                    isum[r][g][t] = _mm512_add_epi32(low[t], _mm512_srai_epi32(high[t], 4));
                if (g == 0) continue;
                const __m512i scales = stream_line(tile + 512); /* the last line of a tile */
                for (int h = 0; h < 2; h++)
                    for (int t = 0; t < 2; t++)
                        sums[r][t] = _mm512_add_ps(
                            sums[r][t], scaled(isum[r][h][t], scale[t][k * 2 + h], scales_of_group(scales, h)));
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < 2; t++) _mm512_storeu_ps(out + (r * stride + t) * 16, sums[r][t]);
}

/* Up to four tokens: weights are streamed once for all of them. Activations of three or four do not fit the registers
 * and are operands in memory; unrolled over the rows, GCC copies them to the stack, a fifth slower (docs/log.md,
 * 2026-11-26, what streams of weights lose). */
struct few {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        const int8_t *q[M];
        const float *scale[M];
        const int32_t *offset[M];
        __m512 sums[R][M];
        for (int t = 0; t < M; t++) {
            q[t] = (const int8_t *)x.q + token[t] * num_tiles * 64;
            scale[t] = x.scale + token[t] * num_tiles * 2;
            offset[t] = x.offset + token[t] * num_tiles * 2;
            for (int r = 0; r < R; r++) sums[r][t] = _mm512_setzero_ps();
        }
        if constexpr (M == 1) return run_one<R>(rows, num_tiles, q[0], scale[0], offset[0], out, stride);
        if constexpr (M == 2) return run_two<R>(rows, num_tiles, q, scale, offset, out, stride);
        for (int64_t k = 0; k < num_tiles; k++) {
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * 576;
                __m512i isum[2][M];
                for (int g = 0; g < 2; g++) {
                    __m512i low[M], high[M];
                    for (int t = 0; t < M; t++) {
                        low[t] = _mm512_set1_epi32(offset[t][k * 2 + g]);
                        high[t] = _mm512_setzero_si512();
                    }
                    for (int line = g * 4; line < g * 4 + 4; line++) {
                        const __m512i bytes = stream_line(tile + line * 64);
                        for (int t = 0; t < M; t++) {
                            const int8_t *a = q[t] + k * 64 + 8 * line;
                            low[t] = _mm512_dpbusd_epi32(low[t], low_nibbles(bytes), broadcast32(a));
                            high[t] = _mm512_dpbusd_epi32(high[t], high_nibbles(bytes), broadcast32(a + 4));
                        }
                    }
                    for (int t = 0; t < M; t++) isum[g][t] = _mm512_add_epi32(low[t], _mm512_srai_epi32(high[t], 4));
                }
                const __m512i scales = stream_line(tile + 512);
                for (int g = 0; g < 2; g++)
                    for (int t = 0; t < M; t++)
                        sums[r][t] = _mm512_add_ps(
                            sums[r][t], scaled(isum[g][t], scale[t][k * 2 + g], scales_of_group(scales, g)));
            }
        }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) _mm512_storeu_ps(out + (r * stride + t) * 16, sums[r][t]);
    }
};

/* Several tokens, bound by computing: the weights of a group of R rows are unpacked once and stay in registers,
 * the sums live in the L1 cache, and the tile after the next is prefetched (which helps here and hurts with one
 * token). */
template <int R>
static void run_many(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                     int num_tokens, float *out) {
    for (int i = 0; i < R * num_tokens; i++) _mm512_store_ps(out + i * 16, _mm512_setzero_ps());
    for (int64_t k = 0; k < num_tiles; k++)
        for (int g = 0; g < 2; g++) {
            __m512i quad[R][8];
            __m512 weight_scale[R];
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * 576;
                for (int line = g * 5; line < 5 + g * 4; line++) prefetch(tile + 2 * 576 + line * 64);
                for (int line = 0; line < 4; line++) {
                    const __m512i bytes = load_line(tile + (g * 4 + line) * 64);
                    quad[r][2 * line] = low_nibbles(bytes);
                    quad[r][2 * line + 1] = low_nibbles(_mm512_srli_epi16(bytes, 4));
                }
                weight_scale[r] = load_bf16(tile + 512 + g * 32);
            }
            for (int t = 0; t < num_tokens; t++) {
                const int64_t group = (token[t] * num_tiles + k) * 2 + g;
                const int8_t *a = (const int8_t *)x.q + group * 32;
                __m512i isum[R];
                for (int r = 0; r < R; r++) isum[r] = _mm512_set1_epi32(x.offset[group]);
                for (int i = 0; i < 8; i++) {
                    const __m512i four = broadcast32(a + 4 * i);
                    for (int r = 0; r < R; r++) isum[r] = _mm512_dpbusd_epi32(isum[r], quad[r][i], four);
                }
                for (int r = 0; r < R; r++) {
                    float *to = out + (r * num_tokens + t) * 16;
                    const __m512 value = scaled(isum[r], x.scale[group], weight_scale[r]);
                    _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), value));
                }
            }
        }
}

/* The next M tokens of a tile whose two groups stay in registers. */
template <int M>
static inline void add_tile(const __m512i (*quad)[8], const __m512 *weight_scale, const activations &x,
                            const int64_t *group, int64_t at, float *out) {
    __m512i isum[M][2];
    for (int t = 0; t < M; t++)
        for (int g = 0; g < 2; g++) isum[t][g] = _mm512_set1_epi32(x.offset[group[t] + at + g]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
#pragma GCC unroll 3
        for (int t = 0; t < M; t++)
#pragma GCC unroll 2
            for (int g = 0; g < 2; g++) {
                const int8_t *a = (const int8_t *)x.q + (group[t] + at) * 32 + g * 32 + 4 * i;
                isum[t][g] = _mm512_dpbusd_epi32(isum[t][g], quad[g][i], broadcast32(a));
            }
    for (int t = 0; t < M; t++) {
        __m512 sum = _mm512_load_ps(out + t * 16);
        for (int g = 0; g < 2; g++)
            sum = _mm512_add_ps(sum, scaled(isum[t][g], x.scale[group[t] + at + g], weight_scale[g]));
        _mm512_store_ps(out + t * 16, sum);
    }
}

static inline void add_tokens_of_tile(const uint8_t *tile, int64_t at, const activations &x, const int64_t *group,
                                      int num_tokens, float *out) {
    __m512i quad[2][8];
    __m512 weight_scale[2];
    for (int line = 0; line < 9; line++) prefetch(tile + 2 * 576 + line * 64);
    for (int g = 0; g < 2; g++) {
        for (int line = 0; line < 4; line++) {
            const __m512i bytes = load_line(tile + (g * 4 + line) * 64);
            quad[g][2 * line] = low_nibbles(bytes);
            quad[g][2 * line + 1] = low_nibbles(_mm512_srli_epi16(bytes, 4));
        }
        weight_scale[g] = load_bf16(tile + 512 + g * 32);
    }
    int t = 0;
    for (; num_tokens - t > 4 || num_tokens - t == 3; t += 3)
        add_tile<3>(quad, weight_scale, x, group + t, at, out + t * 16);
    for (; num_tokens - t >= 2; t += 2) add_tile<2>(quad, weight_scale, x, group + t, at, out + t * 16);
    if (t < num_tokens) add_tile<1>(quad, weight_scale, x, group + t, at, out + t * 16);
}

/* From MANY_TOKENS on. A store of a sum takes almost two cycles of the dot products' ports on Zen 4 (docs/log.md,
 * 2026-11-27, many tokens of an expert), so both groups of one row are added before it; three tokens side by side are
 * six chains of dot products, enough to hide their latency. Two rows take turns: with fewer tokens, prefetches come too
 * late for it. */
static const int MANY_TOKENS = 12;

static void run_crowd(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                      const int64_t *token, int num_tokens, float *out) {
    int64_t group[MAX_TOKENS];
    for (int t = 0; t < num_tokens; t++) group[t] = token[t] * num_tiles * 2;
    for (int i = 0; i < num_rows * num_tokens; i++) _mm512_store_ps(out + i * 16, _mm512_setzero_ps());
    for (int r = 0; r < num_rows; r += 2)
        for (int64_t k = 0; k < num_tiles; k++) {
            float *to = out + r * num_tokens * 16;
            add_tokens_of_tile(rows[r] + k * 576, k * 2, x, group, num_tokens, to);
            if (r + 1 == num_rows) continue;
            add_tokens_of_tile(rows[r + 1] + k * 576, k * 2, x, group, num_tokens, to + num_tokens * 16);
        }
}

struct int4_int8 {
    static const int32_t format = MOELAB_INT4_G32, mode = MOELAB_ACT_INT8;
    static const int64_t tile_bytes = 576;

    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        if (num_tokens <= 4) return run_blocks<few>(rows, num_rows, num_tiles, x, token, num_tokens, out);
        if (num_tokens >= MANY_TOKENS) return run_crowd(rows, num_rows, num_tiles, x, token, num_tokens, out);
        int r = 0;
        for (; r + 2 <= num_rows; r += 2)
            run_many<2>(rows + r, num_tiles, x, token, num_tokens, out + r * num_tokens * 16);
        if (r < num_rows) run_many<1>(rows + r, num_tiles, x, token, num_tokens, out + r * num_tokens * 16);
    }
};

}  // namespace

MOELAB_KERNEL(avx512, int4_int8, int4_int8)
