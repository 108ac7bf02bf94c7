/* A random latent attention of a decode step, with exactly its buffers. Of the sanitizers' programs. */
#ifndef MOELAB_TESTS_RANDOM_ATTENTION_H
#define MOELAB_TESTS_RANDOM_ATTENTION_H

#include "random_layer.h"

/* Attention of a few tokens over caches of random lengths, of one chunk or several, with exactly its buffers. */
struct attention {
    int64_t tokens, heads, rank, nope, rope, capacity, width, rows;
    moelab_attention a = sized<moelab_attention>();
    moelab_gather gather = sized<moelab_gather>();
    std::vector<std::shared_ptr<void>> kept;
    float *normed, *query_nope, *gathered;

    template <class T>
    T *buffer(size_t count) {
        kept.push_back(std::make_shared<block<T>>(count));
        return std::static_pointer_cast<block<T>>(kept.back())->data;
    }

    static float number(std::mt19937 &draw) { return (float)(int)(draw() % 2001 - 1000) / 500.0f; }

    float *filled(int64_t count, std::mt19937 &draw) {
        float *to = buffer<float>(count);
        for (int64_t i = 0; i < count; i++) to[i] = number(draw);
        return to;
    }

    attention(const char *isa, bool bf16, std::mt19937 &draw, int64_t tokens, bool long_context)
        : tokens(tokens), heads(1 + draw() % 21), rank(1 + draw() % 70), nope(1 + draw() % 9),
          rope(2 * (1 + draw() % 9)), capacity(1 + draw() % (long_context ? 600 : 80)), width(rank + rope),
          rows(heads * tokens) {
        uint8_t *cache = buffer<uint8_t>(tokens * capacity * width * (bf16 ? 2 : 4));
        for (int64_t i = 0; i < tokens * capacity * width; i++) {
            const float value = number(draw);
            if (bf16)
                std::memcpy(cache + 2 * i, (const char *)&value + 2, 2);
            else
                std::memcpy(cache + 4 * i, &value, 4);
        }
        int64_t *row = buffer<int64_t>(tokens), *position = buffer<int64_t>(tokens), chunks = 1;
        for (int64_t t = 0; t < tokens; t++) {
            row[t] = t;
            position[t] = draw() % capacity;
            chunks = std::max(chunks, moelab_attention_chunks(position[t] + 1));
        }
        normed = filled(tokens * width, draw);
        query_nope = buffer<float>(rows * nope);
        gathered = buffer<float>(rows * rank);
        a.num_tokens = tokens, a.num_heads = heads, a.kv_rank = rank, a.nope_dim = nope, a.rope_dim = rope;
        a.a = normed, a.a_stride = width, a.kv_norm = filled(width, draw), a.eps = 1e-6f, a.softmax_scale = 0.3f;
        a.cos = filled(capacity * rope / 2, draw), a.sin = filled(capacity * rope / 2, draw);
        a.interleave = draw() % 2, a.cache_bf16 = bf16, a.cache = cache;
        a.row_numbers = capacity * width, a.row_of_token = row, a.position_of_token = position;
        a.q = filled(tokens * heads * (nope + rope), draw), a.q_stride = heads * (nope + rope);
        a.query_nope = query_nope, a.query_rope = buffer<float>(rows * rope);
        a.query = filled(rows * rank, draw), a.query_stride = rank;
        a.partial = buffer<float>(tokens * chunks * heads * (rank + 2)), a.max_chunks = chunks;
        a.mixed = buffer<float>(rows * rank), a.mixed_stride = rank;
        *(void **)&a.attend = moelab_attend(isa, bf16);
        gather.from = a.mixed, gather.from_stride = rank, gather.num_tokens = tokens;
        gather.num_matrices = heads, gather.size = rank, gather.to = gathered;
    }
    attention(const attention &) = delete;

    void append_result(std::vector<float> &to) const {
        to.insert(to.end(), gathered, gathered + rows * rank);
        to.insert(to.end(), query_nope, query_nope + rows * nope);
    }
};

static moelab_op op_of(int64_t kind, void *arguments) {
    moelab_op of = sized<moelab_op>();
    of.kind = kind, of.arguments = arguments;
    return of;
}

#endif
