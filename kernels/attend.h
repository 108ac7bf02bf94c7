/* Attention of one token over one chunk of its context, several heads against one latent vector per position: scores,
 * softmax in blocks of positions (Milakov and Gimelshein 2018), weighted sum of latents. V: the vectors of an ISA,
 *
 *   struct V { typedef .. type; static const int width; load(const float *), load(const uint16_t *) (bf16),
 *              set(float), zero(), fma(a, b, c) = a * b + c, store(float *, v);
 *              // sums in registers: scored_keys x 2 vectors of heads, mixed_heads x mixed_vectors of latents
 *              static const int scored_keys, mixed_heads, mixed_vectors; };
 *
 * Heads are the lanes of a vector while scores and softmax are computed, so that no sum runs across one; latents are
 * the lanes while they are mixed. A block of positions stays in the L2 cache while the heads pass over it.
 * Everything is `static`: each ISA's file compiles its own copy. Does not know who made query and cache. */
#ifndef MOELAB_ATTEND_H
#define MOELAB_ATTEND_H

#include <cmath>

#include "moelab_kernels.h"
#include "quantise.h"
#include "silu.h"

static const int64_t ATTEND_CHUNK = 256; /* positions; longer contexts have longer chunks, at most ATTEND_CHUNKS */
static const int64_t ATTEND_CHUNKS = 32;
static const int ATTEND_BLOCK = 64;
static const int64_t ATTEND_WIDTH = 2048; /* latent and rotated numbers of a position at most */

static inline int64_t chunk_of_length(int64_t length) {
    const int64_t largest = ATTEND_CHUNK * ATTEND_CHUNKS;
    return ATTEND_CHUNK * ((length + largest - 1) / largest);
}

static inline float number_of(float x) { return x; }
static inline float number_of(uint16_t x) { return bf16_to_float(x); }

/* sums[j][h] = the products of KEYS keys with the queries of HEADS vectors of heads, query[i][h]. */
template <class V, class N, int HEADS, int KEYS>
static inline void score_keys(const float *query, const N *key, int64_t width, float *sums) {
    typename V::type sum[KEYS][HEADS];
    for (int j = 0; j < KEYS; j++)
        for (int h = 0; h < HEADS; h++) sum[j][h] = V::zero();
    for (int64_t i = 0; i < width; i++) {
        typename V::type q[HEADS];
        for (int h = 0; h < HEADS; h++) q[h] = V::load(query + (i * HEADS + h) * V::width);
        for (int j = 0; j < KEYS; j++) {
            const typename V::type k = V::set(number_of(key[j * width + i]));
            for (int h = 0; h < HEADS; h++) sum[j][h] = V::fma(q[h], k, sum[j][h]);
        }
    }
    for (int j = 0; j < KEYS; j++)
        for (int h = 0; h < HEADS; h++) V::store(sums + (j * HEADS + h) * V::width, sum[j][h]);
}

/* The numbers [i, i + VECTORS * width) of COUNT heads: sum[h] = sum[h] * keep[h] + weights[.][h] x latents. */
template <class V, class N, int COUNT, int VECTORS>
static inline void mix_columns(const float *weights, int64_t stride, const float *keep, const N *key, int64_t width,
                               int num_keys, float *sum, int64_t sum_stride) {
    typename V::type sums[COUNT][VECTORS];
    for (int h = 0; h < COUNT; h++)
        for (int v = 0; v < VECTORS; v++)
            sums[h][v] =
                V::fma(V::load((const float *)sum + h * sum_stride + v * V::width), V::set(keep[h]), V::zero());
    for (int j = 0; j < num_keys; j++) {
        typename V::type k[VECTORS];
        for (int v = 0; v < VECTORS; v++) k[v] = V::load(key + j * width + v * V::width);
        for (int h = 0; h < COUNT; h++) {
            const typename V::type weight = V::set(weights[j * stride + h]);
            for (int v = 0; v < VECTORS; v++) sums[h][v] = V::fma(weight, k[v], sums[h][v]);
        }
    }
    for (int h = 0; h < COUNT; h++)
        for (int v = 0; v < VECTORS; v++) V::store(sum + h * sum_stride + v * V::width, sums[h][v]);
}

template <class V, class N, int VECTORS>
static inline void mix_heads(const float *weights, int64_t stride, const float *keep, const N *key, int64_t width,
                             int num_keys, float *sum, int64_t sum_stride, int64_t num_heads) {
    int64_t h = 0;
    for (; h + V::mixed_heads <= num_heads; h += V::mixed_heads)
        mix_columns<V, N, V::mixed_heads, VECTORS>(weights + h, stride, keep + h, key, width, num_keys,
                                                   sum + h * sum_stride, sum_stride);
    for (; h < num_heads; h++)
        mix_columns<V, N, 1, VECTORS>(weights + h, stride, keep + h, key, width, num_keys, sum + h * sum_stride,
                                      sum_stride);
}

/* The heads [head, head + num_heads), at most HEADS vectors of them, over the positions [first, stop). */
template <class V, class N, int HEADS>
static void attend_heads(const moelab_attention *a, int64_t token, int64_t head, int64_t num_heads, const N *keys,
                         int64_t first, int64_t stop, float *states) {
    static const int64_t LANES = HEADS * V::width;
    const int64_t rank = a->kv_rank, width = rank + a->rope_dim, state_size = rank + 2;
    alignas(64) float query[ATTEND_WIDTH * LANES]; /* by column, so that heads are neighbours; zeros beyond them */
    alignas(64) float weights[ATTEND_BLOCK * LANES], largest[LANES], total[LANES], keep[LANES];
    for (int64_t h = 0; h < LANES; h++) {
        const int64_t row = (head + (h < num_heads ? h : 0)) * a->num_tokens + token;
        const float *latent = a->query + row * a->query_stride, *rotated = a->query_rope + row * a->rope_dim;
        for (int64_t i = 0; i < rank; i++) query[i * LANES + h] = latent[i];
        for (int64_t i = 0; i < a->rope_dim; i++) query[(rank + i) * LANES + h] = rotated[i];
        largest[h] = -3.0e38f;
        total[h] = 0.0f;
    }
    for (int64_t h = 0; h < num_heads; h++)
        for (int64_t i = 0; i < rank; i++) states[h * state_size + 2 + i] = 0.0f;
    for (int64_t start = first; start < stop; start += ATTEND_BLOCK) {
        const int num_keys = (int)(stop - start < ATTEND_BLOCK ? stop - start : ATTEND_BLOCK);
        const N *key = keys + start * width;
        int j = 0;
        for (; j + V::scored_keys <= num_keys; j += V::scored_keys)
            score_keys<V, N, HEADS, V::scored_keys>(query, key + j * width, width, weights + j * LANES);
        for (; j < num_keys; j++) score_keys<V, N, HEADS, 1>(query, key + j * width, width, weights + j * LANES);
        float top[LANES];
        int32_t damaged[LANES]; /* comparing and clamping lose a NaN, so it is looked for */
        for (int64_t h = 0; h < LANES; h++) top[h] = largest[h], damaged[h] = 0;
        for (j = 0; j < num_keys; j++)
            for (int64_t h = 0; h < LANES; h++) {
                const float score = weights[j * LANES + h] *= a->softmax_scale;
                damaged[h] |= !(score < INFINITY);
                top[h] = score > top[h] ? score : top[h];
            }
        for (int64_t h = 0; h < LANES; h++) {
            const float shrunk = clamped_exp(largest[h] - top[h]);
            keep[h] = total[h] == 0.0f ? 0.0f : shrunk;
            largest[h] = top[h];
            total[h] = damaged[h] ? NAN : total[h] * keep[h]; /* and so will be all that is mixed for this head */
        }
        for (j = 0; j < num_keys; j++)
            for (int64_t h = 0; h < LANES; h++) {
                const float weight = weights[j * LANES + h] = clamped_exp(weights[j * LANES + h] - top[h]);
                total[h] += weight;
            }
        int64_t i = 0;
        for (; i + V::mixed_vectors * V::width <= rank; i += V::mixed_vectors * V::width)
            mix_heads<V, N, V::mixed_vectors>(weights, LANES, keep, key + i, width, num_keys, states + 2 + i,
                                              state_size, num_heads);
        for (; i + V::width <= rank; i += V::width)
            mix_heads<V, N, 1>(weights, LANES, keep, key + i, width, num_keys, states + 2 + i, state_size, num_heads);
        for (; i < rank; i++)
            for (int64_t h = 0; h < num_heads; h++) {
                float sum = states[h * state_size + 2 + i] * keep[h];
                for (j = 0; j < num_keys; j++) sum += weights[j * LANES + h] * number_of(key[j * width + i]);
                states[h * state_size + 2 + i] = sum;
            }
    }
    for (int64_t h = 0; h < num_heads; h++) {
        states[h * state_size] = largest[h];
        states[h * state_size + 1] = total[h];
    }
}

template <class V, class N>
static void attend_chunk(const moelab_attention *a, int64_t token, int64_t chunk, int64_t head_start,
                         int64_t head_stop) {
    const int64_t length = a->position_of_token[token] + 1, state_size = a->kv_rank + 2;
    const int64_t first = chunk * chunk_of_length(length), end = first + chunk_of_length(length);
    const int64_t stop = end < length ? end : length;
    const N *keys = (const N *)a->cache + a->row_of_token[token] * a->row_numbers;
    float *states = a->partial + (token * a->max_chunks + chunk) * a->num_heads * state_size;
    for (int64_t head = head_start; head < head_stop;) {
        const int64_t left = head_stop - head;
        const int64_t num_heads = left > V::width ? (left < 2 * V::width ? left : 2 * V::width) : left;
        if (num_heads > V::width)
            attend_heads<V, N, 2>(a, token, head, num_heads, keys, first, stop, states + head * state_size);
        else
            attend_heads<V, N, 1>(a, token, head, num_heads, keys, first, stop, states + head * state_size);
        head += num_heads;
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
