/* int4_g32 weights x int8 activations. The nibbles are the unsigned operand of vpmaddubsw: a pair is at most 2 *
 * 15 * 127 and the eight pairs of a group at most 30,480, so the sums of a whole group fit int16 and nothing
 * saturates. The activations of a tile are broadcast once for all rows, into memory: there are too few registers, and
 * operands in memory cost no instruction. */
#include "vectors.h"

namespace {

struct block {
    template <int R, int M>
    static inline void run(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                           float *out, int stride) {
        const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
        __m256 sums[R][M][2];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < M; t++) sums[r][t][0] = sums[r][t][1] = _mm256_setzero_ps();
        for (int64_t k = 0; k < num_tiles; k++) {
            __m256i quad[M][16];
            for (int t = 0; t < M; t++) {
                const int8_t *a = (const int8_t *)x.q + (token[t] * num_tiles + k) * 64;
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) quad[t][i] = broadcast32(a + 4 * i);
            }
            __asm__("" : "+m"(quad));
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * 576;
                __m256i isum[M][2][2];
#pragma GCC unroll 2
                for (int g = 0; g < 2; g++) {
                    for (int t = 0; t < M; t++) isum[t][g][0] = isum[t][g][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
                    for (int line = g * 4; line < g * 4 + 4; line++)
                        for (int half = 0; half < 2; half++) {
                            const __m256i bytes = stream_half_line(tile + line * 64 + half * 32);
                            const __m256i first = _mm256_and_si256(bytes, low);
                            const __m256i second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
                            for (int t = 0; t < M; t++) {
                                const __m256i products =
                                    _mm256_add_epi16(_mm256_maddubs_epi16(first, quad[t][2 * line]),
                                                     _mm256_maddubs_epi16(second, quad[t][2 * line + 1]));
                                isum[t][g][half] = _mm256_add_epi16(isum[t][g][half], products);
                                keep_chain(isum[t][g][half]);
                            }
                        }
                }
                for (int g = 0; g < 2; g++) {
                    const __m256i scales = stream_half_line(tile + 512 + g * 32);
                    for (int t = 0; t < M; t++) {
                        const int64_t group = (token[t] * num_tiles + k) * 2 + g;
                        for (int half = 0; half < 2; half++) {
                            const __m256i total = _mm256_add_epi32(_mm256_madd_epi16(isum[t][g][half], ones),
                                                                   _mm256_set1_epi32(x.offset[group]));
                            const __m256 value =
                                _mm256_mul_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(x.scale[group]));
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

/* sum += half a line x the activations of its low and of its high nibbles. Volatile as stream_half_line is. Of
 * intrinsics GCC hoists the activations into registers that it then has to spill. */
static inline void add_half_line(__m256i &sum, const uint8_t *half_line, __m256i low, const __m256i *quads) {
    __m256i first, second;
    __asm__ volatile("vmovdqa %[half], %[second]\n\t"
                     "vpand %[second], %[low], %[first]\n\t"
                     "vpsrlw $4, %[second], %[second]\n\t"
                     "vpand %[second], %[low], %[second]\n\t"
                     "vpmaddubsw %[of_first], %[first], %[first]\n\t"
                     "vpmaddubsw %[of_second], %[second], %[second]\n\t"
                     "vpaddw %[first], %[sum], %[sum]\n\t"
                     "vpaddw %[second], %[sum], %[sum]"
                     : [sum] "+x"(sum), [first] "=&x"(first), [second] "=&x"(second)
                     : [half] "m"(*(const __m256i *)half_line), [low] "x"(low), [of_first] "m"(quads[0]),
                       [of_second] "m"(quads[1]));
}

/* One token, bound by memory: `block` by hand, for a loop that loads evenly (docs/log.md, 2026-11-26, one token's loop
 * by hand). */
template <int R>
static inline __attribute__((always_inline)) void run_one(const uint8_t *const *rows, int64_t num_tiles,
                                                          const activations &x, int64_t token, float *out) {
    const int8_t *q = (const int8_t *)x.q + token * num_tiles * 64;
    const float *scale = x.scale + token * num_tiles * 2;
    const int32_t *offset = x.offset + token * num_tiles * 2;
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256 sums[R][2];
    for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < num_tiles; k++) {
        __m256i quad[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) quad[i] = broadcast32(q + k * 64 + 4 * i);
        __asm__("" : "+m"(quad));
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const uint8_t *tile = rows[r] + k * 576;
            __m256i isum[2][2];
#pragma GCC unroll 2
            for (int g = 0; g < 2; g++) {
                isum[g][0] = isum[g][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
                for (int line = g * 4; line < g * 4 + 4; line++)
#pragma GCC unroll 2
                    for (int half = 0; half < 2; half++)
                        add_half_line(isum[g][half], tile + line * 64 + half * 32, low, quad + 2 * line);
            }
            for (int g = 0; g < 2; g++) {
                const __m256i scales = stream_half_line(tile + 512 + g * 32);
                for (int half = 0; half < 2; half++) {
                    const __m256i total = _mm256_add_epi32(_mm256_madd_epi16(isum[g][half], ones),
                                                           _mm256_set1_epi32(offset[k * 2 + g]));
                    const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(scale[k * 2 + g]));
                    sums[r][half] = _mm256_add_ps(sums[r][half], _mm256_mul_ps(value, scales_of_rows(scales, half)));
                }
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++) _mm256_storeu_ps(out + r * 16 + half * 8, sums[r][half]);
}

struct int4_int8 {
    static const int32_t format = MOELAB_INT4_G32, mode = MOELAB_ACT_INT8;
    static const int64_t tile_bytes = 576;

    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        if (num_tokens == 1) {
            switch (num_rows) {
            case 1: return run_one<1>(rows, num_tiles, x, *token, out);
            case 2: return run_one<2>(rows, num_tiles, x, *token, out);
            case 3: return run_one<3>(rows, num_tiles, x, *token, out);
            default: return run_one<4>(rows, num_tiles, x, *token, out);
            }
        }
        run_blocks<block>(rows, num_rows, num_tiles, x, token, num_tokens, out);
    }
};

}  // namespace

MOELAB_KERNEL(avx2, int4_int8, int4_int8)
