/* The plain form of a kernel: one row of tiles and one token at a time, `K::dot_one`. */
#ifndef MOELAB_GENERIC_PLAIN_H
#define MOELAB_GENERIC_PLAIN_H

#include "phases.h"

namespace {

template <class K>
struct plain {
    static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
                    const int64_t *token, int num_tokens, float *out) {
        for (int i = 0; i < num_rows; i++)
            for (int t = 0; t < num_tokens; t++)
                K::dot_one(rows[i], num_tiles, x, token[t], out + (i * num_tokens + t) * 16);
    }
};

}  // namespace

#endif
