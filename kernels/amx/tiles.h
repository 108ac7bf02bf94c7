/* What the AMX kernels share: the tile instructions, the tiles' shapes and 64-byte vectors.
 *
 * Tiles: 0 and 1 hold activations (16 tokens a row), 2 and 3 weights (the lines of the layout as they are, or
 * expanded), 4 to 7 sums [16 tokens][16 rows]. The instructions are inline assembly with a memory clobber, not the
 * compilers' intrinsics: GCC 12's _tile_loadd does not say that it reads memory, and at -O3 stores to a staging
 * buffer before it are deleted (docs/amx.md). Vectors are the compilers' extension, so that the same source
 * becomes zmm instructions in the library and ymm ones in the build that the tests run under an emulator on a CPU
 * without AVX-512. */
#ifndef MOELAB_AMX_TILES_H
#define MOELAB_AMX_TILES_H

#include <type_traits>

#include "phases.h"

typedef float floats __attribute__((vector_size(64), may_alias));
typedef int32_t ints __attribute__((vector_size(64), may_alias));
typedef uint32_t words __attribute__((vector_size(64), may_alias));
typedef uint16_t halves __attribute__((vector_size(32), may_alias));
typedef uint8_t bytes __attribute__((vector_size(64), may_alias));

/* The operand of LDTILECFG (palette 1). */
struct alignas(64) tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* A tile operation has one group of 32 columns: `activation_bytes` of a row of activations, `weight_lines` lines
 * of 64 B. */
static inline void configure_tiles(int activation_bytes, int weight_lines) {
    tile_shapes shapes = {};
    shapes.palette = 1;
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = (uint16_t)(i < 2 ? activation_bytes : 64);
        shapes.rows[i] = (uint8_t)(i < 2 || i > 3 ? 16 : weight_lines);
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
}

static inline void release_tiles() { __asm__ volatile("tilerelease" ::: "memory"); }

template <int tile>
static inline void load_tile(const void *from, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(tile), "r"(from), "r"(stride) : "memory");
}

template <int tile>
static inline void store_tile(void *to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(tile), "r"(to), "r"(stride) : "memory");
}

template <int tile>
static inline void zero_tile() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(tile));
}

/* sums += signed activations x unsigned weights, 4 columns of one row and token at a time. */
template <int sums, int activation, int weight>
static inline void dot_int8() {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(activation), "i"(weight));
}

template <int sums, int activation, int weight>
static inline void dot_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(activation), "i"(weight));
}

/* f(0), f(1), .. f(N - 1) with compile-time numbers, which name tiles. */
template <int N, int i = 0, class F>
static inline void each(F f) {
    if constexpr (i < N) {
        f(std::integral_constant<int, i>());
        each<N, i + 1>(f);
    }
}

/* 16 scales of one group. */
static inline void load_scales(const uint8_t *from, floats *scales) {
    *(words *)scales = __builtin_convertvector(*(const halves *)from, words) << 16;
}

/* The rows of activations of one tile of 64 columns, one under the other; the rest of `to` stays as it is. */
template <int row_bytes>
static inline void gather_activations(const activations &x, int64_t num_tiles, int64_t k, const int64_t *token,
                                      int num_tokens, uint8_t *to) {
    for (int t = 0; t < num_tokens; t++)
        std::memcpy(to + t * row_bytes, (const uint8_t *)x.q + (token[t] * num_tiles + k) * row_bytes, row_bytes);
}

/* K::run<R, B> for R rows of tiles and B blocks of 16 tokens, R * B <= 4 tiles of sums. */
template <class K>
static inline void run_in_tiles(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                                const int64_t *token, int num_tokens, float *out) {
    if (num_tokens > 16) {
        int r = 0;
        for (; r + 2 <= num_rows; r += 2)
            K::template run<2, 2>(rows + r, num_tiles, x, token, num_tokens, out + r * num_tokens * 16);
        if (r < num_rows) K::template run<1, 2>(rows + r, num_tiles, x, token, num_tokens, out + r * num_tokens * 16);
        return;
    }
    switch (num_rows) {
    case 1: return K::template run<1, 1>(rows, num_tiles, x, token, num_tokens, out);
    case 2: return K::template run<2, 1>(rows, num_tiles, x, token, num_tokens, out);
    case 3: return K::template run<3, 1>(rows, num_tiles, x, token, num_tokens, out);
    default: return K::template run<4, 1>(rows, num_tiles, x, token, num_tokens, out);
    }
}

#define MOELAB_AMX_KERNEL(name, K)                                                   \
    extern "C" void moelab_amx_##name##_begin() { K::configure(); }                  \
    extern "C" void moelab_amx_##name##_end() { release_tiles(); }                   \
    MOELAB_KERNEL(amx, name, K)

#endif
