/* Attention of one token over one chunk of its context, several heads against one latent vector per position: scores,
 * softmax in blocks of positions (Milakov and Gimelshein 2018), weighted sum of latents. V: the vectors of an ISA,
 *
 *   struct V { typedef .. type; static const int width; load(const float *), load(const uint16_t *) (bf16),
 *              set(float), zero(), fma(a, b, c) = a * b + c, total(v), store(float *, v) };
 *
 * A block of positions stays in the L2 cache while the heads pass over it, four heads at a time in registers.
 * Everything is `static`: each ISA's file compiles its own copy. Does not know who made query and cache. */
#ifndef MOELAB_ATTEND_H
#define MOELAB_ATTEND_H

#include <cmath>

#include "moelab_kernels.h"
#include "quantise.h"
#include "silu.h"

static const int64_t ATTEND_CHUNK = 256; /* positions; longer contexts have longer chunks, at most ATTEND_CHUNKS */
static const int64_t ATTEND_CHUNKS = 32;
static const int ATTEND_BLOCK = 64, ATTEND_HEADS = 4;

static inline int64_t chunk_of_length(int64_t length) {
    const int64_t largest = ATTEND_CHUNK * ATTEND_CHUNKS;
    return ATTEND_CHUNK * ((length + largest - 1) / largest);
}

static inline float number_of(float x) { return x; }
static inline float number_of(uint16_t x) { return bf16_to_float(x); }

/* out[h][j] += query[h] . key[j] over `size` numbers. */
template <class V, class N, int HEADS, int KEYS>
static inline void add_scores(const float *const *query, const N *key, int64_t key_stride, int64_t size,
                              float (*out)[ATTEND_BLOCK]) {
    typename V::type sums[HEADS][KEYS];
    for (int h = 0; h < HEADS; h++)
        for (int j = 0; j < KEYS; j++) sums[h][j] = V::zero();
    int64_t i = 0;
    for (; i + V::width <= size; i += V::width) {
        typename V::type k[KEYS];
        for (int j = 0; j < KEYS; j++) k[j] = V::load(key + j * key_stride + i);
        for (int h = 0; h < HEADS; h++) {
            const typename V::type q = V::load(query[h] + i);
            for (int j = 0; j < KEYS; j++) sums[h][j] = V::fma(q, k[j], sums[h][j]);
        }
    }
    for (int h = 0; h < HEADS; h++)
        for (int j = 0; j < KEYS; j++) {
            float total = V::total(sums[h][j]);
            for (int64_t rest = i; rest < size; rest++) total += query[h][rest] * number_of(key[j * key_stride + rest]);
            out[h][j] += total;
        }
}

template <class V, class N, int HEADS>
static inline void score_block(const float *const *query, const N *key, int64_t key_stride, int num_keys, int64_t size,
                               float (*out)[ATTEND_BLOCK]) {
    int j = 0;
    for (; j + 3 <= num_keys; j += 3) /* 12 sums: the latency of two multiply-adds a cycle is covered */
        add_scores<V, N, HEADS, 3>(query, key + j * key_stride, key_stride, size, (float(*)[ATTEND_BLOCK])(out[0] + j));
    for (; j < num_keys; j++)
        add_scores<V, N, HEADS, 1>(query, key + j * key_stride, key_stride, size, (float(*)[ATTEND_BLOCK])(out[0] + j));
}

/* The numbers [i, i + VECTORS * width) of: sum[h] = sum[h] * keep[h] + weights[h] x latents. */
template <class V, class N, int HEADS, int VECTORS>
static inline void mix_columns(const float (*weights)[ATTEND_BLOCK], const float *keep, const N *key,
                               int64_t key_stride, int num_keys, int64_t i, float *const *sum) {
    typename V::type sums[HEADS][VECTORS];
    for (int h = 0; h < HEADS; h++)
        for (int v = 0; v < VECTORS; v++)
            sums[h][v] = V::fma(V::load((const float *)sum[h] + i + v * V::width), V::set(keep[h]), V::zero());
    for (int j = 0; j < num_keys; j++) {
        typename V::type k[VECTORS];
        for (int v = 0; v < VECTORS; v++) k[v] = V::load(key + j * key_stride + i + v * V::width);
        for (int h = 0; h < HEADS; h++) {
            const typename V::type weight = V::set(weights[h][j]);
            for (int v = 0; v < VECTORS; v++) sums[h][v] = V::fma(weight, k[v], sums[h][v]);
        }
    }
    for (int h = 0; h < HEADS; h++)
        for (int v = 0; v < VECTORS; v++) V::store(sum[h] + i + v * V::width, sums[h][v]);
}

template <class V, class N, int HEADS>
static inline void mix_block(const float (*weights)[ATTEND_BLOCK], const float *keep, const N *key, int64_t key_stride,
                             int num_keys, int64_t size, float *const *sum) {
    int64_t i = 0;
    for (; i + 3 * V::width <= size; i += 3 * V::width)
        mix_columns<V, N, HEADS, 3>(weights, keep, key, key_stride, num_keys, i, sum);
    for (; i + V::width <= size; i += V::width)
        mix_columns<V, N, HEADS, 1>(weights, keep, key, key_stride, num_keys, i, sum);
    for (; i < size; i++)
        for (int h = 0; h < HEADS; h++) {
            float total = sum[h][i] * keep[h];
            for (int j = 0; j < num_keys; j++) total += weights[h][j] * number_of(key[j * key_stride + i]);
            sum[h][i] = total;
        }
}

/* One block of positions for HEADS heads from `head` on; `state` of a head is [largest, total, sums]. */
template <class V, class N, int HEADS>
static inline void attend_block(const moelab_attention *a, int64_t token, int64_t head, const N *key, int num_keys,
                                float *state) {
    const int64_t width = a->kv_rank + a->rope_dim, state_size = a->kv_rank + 2;
    const float *query[HEADS], *rotated[HEADS];
    float *sum[HEADS];
    for (int h = 0; h < HEADS; h++) {
        const int64_t row = (head + h) * a->num_tokens + token;
        query[h] = a->query + row * a->query_stride;
        rotated[h] = a->query_rope + row * a->rope_dim;
        sum[h] = state + h * state_size + 2;
    }
    float weights[HEADS][ATTEND_BLOCK], keep[HEADS];
    for (int h = 0; h < HEADS; h++)
        for (int j = 0; j < ATTEND_BLOCK; j++) weights[h][j] = 0.0f;
    score_block<V, N, HEADS>(query, key, width, num_keys, a->kv_rank, weights);
    score_block<V, N, HEADS>(rotated, key + a->kv_rank, width, num_keys, a->rope_dim, weights);
    for (int h = 0; h < HEADS; h++) {
        float *largest = state + h * state_size, *total = largest + 1, top = *largest;
        int damaged = 0; /* comparing and clamping lose a NaN, so it is looked for */
        for (int j = 0; j < num_keys; j++) {
            weights[h][j] *= a->softmax_scale;
            damaged |= !(weights[h][j] < INFINITY);
            top = weights[h][j] > top ? weights[h][j] : top;
        }
        keep[h] = *total == 0.0f ? 0.0f : clamped_exp(*largest - top);
        for (int j = 0; j < ATTEND_BLOCK; j++) weights[h][j] = clamped_exp(weights[h][j] - top);
        float added = damaged ? NAN : 0.0f; /* total, and with it all that is mixed for this head, stays so */
        for (int j = 0; j < num_keys; j++) added += weights[h][j];
        *largest = top;
        *total = *total * keep[h] + added;
    }
    mix_block<V, N, HEADS>(weights, keep, key, width, num_keys, a->kv_rank, sum);
}

template <class V, class N>
static void attend_chunk(const moelab_attention *a, int64_t token, int64_t chunk, int64_t head_start,
                         int64_t head_stop) {
    const int64_t length = a->position_of_token[token] + 1, width = a->kv_rank + a->rope_dim,
                  state_size = a->kv_rank + 2;
    const int64_t first = chunk * chunk_of_length(length), end = first + chunk_of_length(length);
    const int64_t stop = end < length ? end : length;
    const N *keys = (const N *)a->cache + a->row_of_token[token] * a->row_numbers;
    float *states = a->partial + (token * a->max_chunks + chunk) * a->num_heads * state_size;
    for (int64_t head = head_start; head < head_stop; head++) {
        float *state = states + head * state_size;
        state[0] = -3.0e38f;
        for (int64_t i = 1; i < state_size; i++) state[i] = 0.0f;
    }
    for (int64_t start = first; start < stop; start += ATTEND_BLOCK) {
        const int num_keys = (int)(stop - start < ATTEND_BLOCK ? stop - start : ATTEND_BLOCK);
        const N *key = keys + start * width;
        int64_t head = head_start;
        for (; head + ATTEND_HEADS <= head_stop; head += ATTEND_HEADS)
            attend_block<V, N, ATTEND_HEADS>(a, token, head, key, num_keys, states + head * state_size);
        for (; head < head_stop; head++)
            attend_block<V, N, 1>(a, token, head, key, num_keys, states + head * state_size);
    }
}

#define MOELAB_ATTEND(isa, V)                                                                                          \
    extern "C" void moelab_##isa##_attend_float32(const moelab_attention *a, int64_t token, int64_t chunk,             \
                                                  int64_t start, int64_t stop) {                                       \
        attend_chunk<V, float>(a, token, chunk, start, stop);                                                          \
    }                                                                                                                  \
    extern "C" void moelab_##isa##_attend_bf16(const moelab_attention *a, int64_t token, int64_t chunk, int64_t start, \
                                               int64_t stop) {                                                         \
        attend_chunk<V, uint16_t>(a, token, chunk, start, stop);                                                       \
    }

#endif
