/* Dot products in blocks of 1..4 rows of tiles and 1..4 tokens whose sums stay in registers. A token's sums are
 * the same operations in the same order in every block, so that batching changes no bit. */
#ifndef MOELAB_BLOCKS_H
#define MOELAB_BLOCKS_H

#include "phases.h"

/* B::run<R, M>(rows, num_tiles, x, token, out, stride) for 1..4 rows and M tokens; out[(row * stride + t) * 16]. */
template <class B, int M>
static inline void run_block(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                             const int64_t *token, float *out, int stride) {
    switch (num_rows) {
    case 1: return B::template run<1, M>(rows, num_tiles, x, token, out, stride);
    case 2: return B::template run<2, M>(rows, num_tiles, x, token, out, stride);
    case 3: return B::template run<3, M>(rows, num_tiles, x, token, out, stride);
    default: return B::template run<4, M>(rows, num_tiles, x, token, out, stride);
    }
}

/* All tokens in blocks of four, sums in registers. */
template <class B>
static inline void run_blocks(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                              const int64_t *token, int num_tokens, float *out) {
    for (int first = 0; first < num_tokens; first += 4) {
        const int64_t *t = token + first;
        float *to = out + first * 16;
        switch (num_tokens - first) {
        case 1: run_block<B, 1>(rows, num_rows, num_tiles, x, t, to, num_tokens); break;
        case 2: run_block<B, 2>(rows, num_rows, num_tiles, x, t, to, num_tokens); break;
        case 3: run_block<B, 3>(rows, num_rows, num_tiles, x, t, to, num_tokens); break;
        default: run_block<B, 4>(rows, num_rows, num_tiles, x, t, to, num_tokens);
        }
    }
}

#endif
