/* Quantised weights x int16 activations with VNNI: the numbers of the weights, as they are stored, are the unsigned
 * operand of vpdpbusd; high and low bytes of the activations, which are both signed, are two dot products, and 256 *
 * high + low is exact in int32. `W::zero` / 8 offsets take back what makes the weights unsigned. Two instructions for
 * 64 products of 16 bits, as vdpbf16ps has, and no weight is converted.
 *
 * W: as in int16_tile.h, and unpack(line, quads): the registers of four columns each in the next line(s) of a tile,
 * which `line` loads. */
#ifndef MOELAB_AVX512_INT16_H
#define MOELAB_AVX512_INT16_H

#include "int16_tile.h"
#include "vectors.h"

namespace {

static inline __m512 values(__m512i high, __m512i low, float scale) {
    const __m512i isum = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(isum), _mm512_set1_ps(scale));
}

/* sum += unsigned bytes x four int8, which the instruction itself broadcasts to all rows: no register and no other
 * instruction. Of intrinsics GCC makes one broadcast for all rows, kept on the stack where registers are short. */
static inline void add_four(__m512i &sum, __m512i bytes, const int8_t *four) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(bytes), "m"(*(const int8_t(*)[4])four));
}

template <class W>
static __attribute__((noinline)) __m512 with_tile(__m512 sums, const uint8_t *tile, const activations &x,
                                                  int64_t group) {
    alignas(64) float plain[16];
    _mm512_store_ps(plain, sums);
    add_tile<W>(tile, x, group, plain);
    return _mm512_load_ps(plain);
}

/* One token, bound by memory: every line is loaded once and in rising order, rows take turns after each tile. The
 * activations of a tile do not fit the registers: they are broadcast by the dot products themselves. Inlined, and the
 * rare path out of line, for what matters is that loads follow each other evenly (docs/log.md, 2026-11-26, one token's
 * loop by hand). */
template <class W, int R>
static inline __attribute__((always_inline)) void run_one(const uint8_t *const *rows, int64_t num_tiles,
                                                          const activations &x, int64_t token, float *out) {
    const int64_t first_of_token = token * num_tiles * 2;
    const int8_t *q = (const int8_t *)x.q + first_of_token * 64;
    const float *scale = x.scale + first_of_token;
    const int32_t *offset = x.offset + first_of_token;
    __m512 sums[R];
    for (int r = 0; r < R; r++) sums[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < num_tiles; k++) {
        if (__builtin_expect(offset[k * 2] == KEPT_BF16 || offset[k * 2 + 1] == KEPT_BF16, 0)) {
            for (int r = 0; r < R; r++)
                sums[r] = with_tile<W>(sums[r], rows[r] + k * W::tile_bytes, x, first_of_token + k * 2);
            continue;
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const uint8_t *tile = rows[r] + k * W::tile_bytes;
            __m512 of_group[2];
#pragma GCC unroll 2
            for (int g = 0; g < 2; g++) {
                const int8_t *high_bytes = q + (k * 2 + g) * 64, *low_bytes = high_bytes + 32;
                __m512i quads[8], high = _mm512_setzero_si512();
                __m512i low = _mm512_set1_epi32(offset[k * 2 + g] * (W::zero / 8));
                W::unpack(tile, g, stream_line, quads);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    add_four(high, quads[i], high_bytes + 4 * i);
                    add_four(low, quads[i], low_bytes + 4 * i);
                }
                of_group[g] = values(high, low, scale[k * 2 + g]);
            }
            const __m512i scales = stream_line(tile + W::scales); /* the last line of a tile */
            for (int g = 0; g < 2; g++)
                sums[r] = _mm512_add_ps(sums[r], _mm512_mul_ps(of_group[g], scales_of_group(scales, g)));
        }
    }
    for (int r = 0; r < R; r++) _mm512_storeu_ps(out + r * 16, sums[r]);
}

/* Several tokens, bound by computing: the weights of a group of R rows are unpacked once and stay in registers, the
 * sums live in the L1 cache. */
template <class W, int R>
static void run_many(const uint8_t *const *rows, int64_t num_tiles, const activations &x, const int64_t *token,
                     int num_tokens, float *out) {
    for (int i = 0; i < R * num_tokens; i++) _mm512_store_ps(out + i * 16, _mm512_setzero_ps());
    for (int64_t k = 0; k < num_tiles; k++)
        for (int g = 0; g < 2; g++) {
            __m512i quads[R][8];
            __m512 weight_scale[R];
            for (int r = 0; r < R; r++) {
                const uint8_t *tile = rows[r] + k * W::tile_bytes, *half = tile + g * (W::scales / 2);
                for (int i = 0; i <= W::scales / 2; i += 64) prefetch(half + 2 * W::tile_bytes + i);
                W::unpack(tile, g, load_line, quads[r]);
                weight_scale[r] = load_bf16(tile + W::scales + g * 32);
            }
            for (int t = 0; t < num_tokens; t++) {
                const int64_t group = (token[t] * num_tiles + k) * 2 + g;
                const int8_t *a = (const int8_t *)x.q + group * 64;
                if (is_kept(x, group)) {
                    for (int r = 0; r < R; r++)
                        add_group<W>(rows[r] + k * W::tile_bytes, g, x, group, out + (r * num_tokens + t) * 16);
                    continue;
                }
                const __m512i offset = _mm512_set1_epi32(x.offset[group] * (W::zero / 8));
                __m512i high[R], low[R];
                for (int r = 0; r < R; r++) {
                    high[r] = _mm512_setzero_si512();
                    low[r] = offset;
                }
                for (int i = 0; i < 8; i++) {
                    const __m512i high_bytes = broadcast32(a + 4 * i), low_bytes = broadcast32(a + 32 + 4 * i);
                    for (int r = 0; r < R; r++) {
                        high[r] = _mm512_dpbusd_epi32(high[r], quads[r][i], high_bytes);
                        low[r] = _mm512_dpbusd_epi32(low[r], quads[r][i], low_bytes);
                    }
                }
                for (int r = 0; r < R; r++) {
                    float *to = out + (r * num_tokens + t) * 16;
                    const __m512 value = _mm512_mul_ps(values(high[r], low[r], x.scale[group]), weight_scale[r]);
                    _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), value));
                }
            }
        }
}

template <class W>
struct int16 : W {
    static const int32_t mode = MOELAB_ACT_INT16;

    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        if (num_tokens == 1) {
            switch (num_rows) {
            case 1: return run_one<W, 1>(rows, num_tiles, x, *token, out);
            case 2: return run_one<W, 2>(rows, num_tiles, x, *token, out);
            case 3: return run_one<W, 3>(rows, num_tiles, x, *token, out);
            default: return run_one<W, 4>(rows, num_tiles, x, *token, out);
            }
        }
        int r = 0;
        for (; r + 2 <= num_rows; r += 2)
            run_many<W, 2>(rows + r, num_tiles, x, token, num_tokens, out + r * num_tokens * 16);
        if (r < num_rows) run_many<W, 1>(rows + r, num_tiles, x, token, num_tokens, out + r * num_tokens * 16);
    }
};

}  // namespace

#endif
