/* The small operations of a decode step (moelab_kernels.h has what each computes), cut into shares of workers. Baseline
 * instructions: they are a few thousand numbers each, next to megabytes of weights. */
#ifndef MOELAB_SMALL_OPS_H
#define MOELAB_SMALL_OPS_H

#include <cmath>

#include "moelab_kernels.h"
#include "quantise.h"

static const int64_t MAX_ROPE_DIM = 1024, MAX_GROUPS = 512;

struct share {
    int64_t start, stop;
    share(int64_t total, int32_t worker, int32_t num_workers)
        : start(total * worker / num_workers), stop(total * (worker + 1) / num_workers) {}
};

/* 1 / sqrt(mean(x^2) + eps); 16 sums side by side. */
static inline float norm_factor(const float *x, int64_t size, float eps) {
    float sums[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= size; i += 16)
        for (int j = 0; j < 16; j++) sums[j] += x[i + j] * x[i + j];
    double total = 0.0;
    for (int j = 0; j < 16; j++) total += sums[j];
    for (; i < size; i++) total += x[i] * x[i];
    return 1.0f / std::sqrt((float)(total / (double)size) + eps);
}

static inline void norm_row(const float *x, const float *weight, int64_t size, float eps, float *y) {
    const float factor = norm_factor(x, size, eps);
    for (int64_t i = 0; i < size; i++) y[i] = weight[i] * (x[i] * factor);
}

static inline void norm_share(const moelab_norm *n, int32_t worker, int32_t num_workers) {
    const share tokens(n->num_tokens, worker, num_workers);
    for (int64_t t = tokens.start; t < tokens.stop; t++)
        norm_row(n->x + t * n->x_stride, n->weight, n->size, n->eps, n->y + t * n->y_stride);
}

static inline void rotate(const moelab_attention *a, int64_t token, const float *x, float *y) {
    const int64_t half = a->rope_dim / 2, at = a->position_of_token[token] * half;
    for (int64_t i = 0; i < half; i++) {
        const float first = a->interleave ? x[2 * i] : x[i], second = a->interleave ? x[2 * i + 1] : x[half + i];
        const float cos = a->cos[at + i], sin = a->sin[at + i];
        y[i] = first * cos - second * sin;
        y[half + i] = second * cos + first * sin;
    }
}

static inline void latent_share(const moelab_attention *a, int32_t worker, int32_t num_workers) {
    const share tokens(a->num_tokens, worker, num_workers);
    const int64_t width = a->kv_rank + a->rope_dim;
    for (int64_t t = tokens.start; t < tokens.stop; t++) {
        const float *from = a->a + t * a->a_stride;
        const int64_t at = a->row_of_token[t] * a->row_numbers + a->position_of_token[t] * width;
        const float factor = norm_factor(from, a->kv_rank, a->eps);
        float rotated[MAX_ROPE_DIM];
        rotate(a, t, from + a->kv_rank, rotated);
        for (int64_t i = 0; i < width; i++) {
            const float x = i < a->kv_rank ? a->kv_norm[i] * (from[i] * factor) : rotated[i - a->kv_rank];
            if (a->cache_bf16)
                ((uint16_t *)a->cache)[at + i] = float_to_bf16(x);
            else
                ((float *)a->cache)[at + i] = x;
        }
    }
}

static inline void query_share(const moelab_attention *a, int32_t worker, int32_t num_workers) {
    const share rows(a->num_heads * a->num_tokens, worker, num_workers);
    for (int64_t row = rows.start; row < rows.stop; row++) {
        const int64_t head = row / a->num_tokens, token = row % a->num_tokens;
        const float *q = a->q + token * a->q_stride + head * (a->nope_dim + a->rope_dim);
        float *nope = a->query_nope + row * a->nope_dim;
        for (int64_t i = 0; i < a->nope_dim; i++) nope[i] = q[i];
        rotate(a, token, q + a->nope_dim, a->query_rope + row * a->rope_dim);
    }
}

static inline void gather_share(const moelab_gather *g, int32_t worker, int32_t num_workers) {
    const share rows(g->num_matrices * g->num_tokens, worker, num_workers);
    for (int64_t row = rows.start; row < rows.stop; row++) {
        const int64_t matrix = row / g->num_tokens, token = row % g->num_tokens;
        const float *from = g->from + row * g->from_stride;
        float *to = g->to + (token * g->num_matrices + matrix) * g->size;
        for (int64_t i = 0; i < g->size; i++) to[i] = from[i];
    }
}

static inline void add_share(const moelab_add *a, int32_t worker, int32_t num_workers) {
    const share part(a->num_tokens * a->size, worker, num_workers);
    for (int64_t i = part.start; i < part.stop;) {
        const int64_t t = i / a->size, end = (t + 1) * a->size, stop = end < part.stop ? end : part.stop;
        const float *from = a->a + t * a->a_stride - t * a->size;
        if (a->b)
            for (; i < stop; i++) a->sum[i] += from[i] + a->b[i];
        else
            for (; i < stop; i++) a->sum[i] += from[i];
    }
}

/* Index of the largest, the lower one among equals. */
static inline int64_t index_of_largest(float *score, int64_t size) {
    int64_t best = 0;
    for (int64_t i = 1; i < size; i++)
        if (score[i] > score[best]) best = i;
    return best;
}

/* Scores of the experts that may be chosen; the others are -infinity. */
static inline void keep_best_groups(const moelab_route *r, float *choice) {
    const int64_t size = r->num_experts / r->n_group;
    float score[MAX_GROUPS], kept[MAX_GROUPS];
    for (int64_t g = 0; g < r->n_group; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (int64_t e = g * size; e < (g + 1) * size; e++) {
            if (choice[e] > first) {
                second = first;
                first = choice[e];
            } else if (choice[e] > second) {
                second = choice[e];
            }
        }
        score[g] = first + second;
        kept[g] = 0.0f;
    }
    for (int64_t k = 0; k < r->topk_group; k++) {
        const int64_t g = index_of_largest(score, r->n_group);
        score[g] = -INFINITY;
        kept[g] = 1.0f;
    }
    for (int64_t e = 0; e < r->num_experts; e++)
        if (kept[e / size] == 0.0f) choice[e] = -INFINITY;
}

/* By one worker: the lists of the next step are made from it. A NaN is never the largest, so that it would choose
 * in silence. */
static inline int32_t route_tokens(moelab_route *r) {
    for (int64_t t = 0; t < r->num_tokens; t++) {
        const float *logits = r->logits + t * r->logits_stride;
        int32_t *ids = r->expert_ids + t * r->top_k;
        float *gates = r->gate_weights + t * r->top_k;
        bool is_number = true;
        for (int64_t e = 0; e < r->num_experts; e++) {
            const float score = 1.0f / (1.0f + std::exp(-logits[e]));
            if (r->scores != nullptr) r->scores[t * r->num_experts + e] = score;
            r->choice[e] = score + r->bias[e];
            is_number &= r->choice[e] == r->choice[e];
        }
        if (!is_number) {
            r->bad_token = t;
            return MOELAB_NOT_A_NUMBER;
        }
        if (r->n_group > 1) keep_best_groups(r, r->choice);
        float total = 0.0f;
        for (int64_t k = 0; k < r->top_k; k++) {
            const int64_t e = index_of_largest(r->choice, r->num_experts);
            r->choice[e] = -INFINITY;
            ids[k] = (int32_t)e;
            gates[k] = 1.0f / (1.0f + std::exp(-logits[e]));
            total += gates[k];
        }
        for (int64_t k = 0; k < r->top_k; k++) {
            if (r->normalise) gates[k] /= total + 1e-20f;
            gates[k] *= r->scaling_factor;
        }
    }
    return MOELAB_OK;
}

#endif
