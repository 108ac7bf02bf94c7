/* gate_up, down and linear over units, for one kernel K of one ISA, weight format and activation mode:
 *
 *   struct K {
 *       static const int32_t format, mode;
 *       static const int64_t tile_bytes;
 *       // out[(row * num_tokens + t) * 16 ..] = the 16 sums of row of tiles `rows[row]` with activation row `token[t]`
 *       static void dot(const uint8_t *const *rows, int num_rows, int64_t num_tiles, const activations &x,
 *                       const int64_t *token, int num_tokens, float *out);
 *   };
 *
 * Rows of tiles are given MAX_ROWS at a time and tokens MAX_TOKENS at a time: weights come from memory once for
 * the first tokens and from the cache for the others, activations are loaded once for all rows. Everything is
 * `static`: each ISA's file compiles its own copy with its own instructions. Does not know how a dot product is
 * computed. */
#ifndef MOELAB_PHASES_H
#define MOELAB_PHASES_H

#include "fits.h"
#include "parts.h"
#include "quantise.h"
#include "silu.h"

static const int MAX_ROWS = 4, MAX_TOKENS = 32;
/* Matrices up to here are read one after the other: heads of an attention (70 kB) cut into four runs each take half as
 * long again (docs/log.md, 2026-11-24, a decode step as one native call). Where the limit lies was not measured. */
static const int64_t SMALL_BYTES = 256000;

/* Quantised rows of activations, [.., num_tiles * 64] numbers and [.., num_tiles * 2] scales and offsets. */
struct activations {
    const void *q;
    const float *scale;
    const int32_t *offset;
};

/* Does a kernel read fastest in one run of memory when an expert has one token? Others have MAX_ROWS runs that advance
 * together. Which it is was measured (docs/log.md, 2026-11-27, the decode step of K2.6 in the fast state); a file says
 * it of its own kernel. */
template <class K>
static const bool ONE_RUN = false;

template <class K>
static inline bool in_one_run(const moelab_moe_job *job, int64_t expert) {
    return ONE_RUN<K> && job->pair_start[expert + 1] - job->pair_start[expert] == 1;
}

static inline int32_t check_job(const moelab_moe_job *job, int32_t format, int32_t mode, int num_projections) {
    if (!fits(job)) return MOELAB_BAD_STRUCT;
    for (int i = 0; i < num_projections; i++)
        if (job->weight_format_of_projection[i] != format) return MOELAB_UNSUPPORTED;
    if (job->activation_mode != mode || job->activation_function != MOELAB_SILU) return MOELAB_UNSUPPORTED;
    if (job->hidden_size < 1 || job->intermediate_size < 1) return MOELAB_BAD_SHAPE;
    return MOELAB_OK;
}

static inline int64_t activation_bytes(int32_t mode) {
    return mode == MOELAB_ACT_INT8 ? 1 : mode == MOELAB_ACT_F32 ? 4 : 2;
}

/* The hidden numbers [group * 32, + count) of one pair from its sums: silu(gate) * up, quantised. */
static inline void write_hidden(const moelab_moe_job *job, int64_t expert, int64_t pair, int64_t group, int64_t count,
                                float *gates, float *ups, bool last) {
    const int64_t padded = tiles_of(job->intermediate_size, 64) * 64;
    if (job->expert_biases) {
        const float *gate_bias = job->expert_biases[expert * 3], *up_bias = job->expert_biases[expert * 3 + 1];
        for (int64_t r = 0; r < count; r++) {
            gates[r] += gate_bias[group * 32 + r];
            ups[r] += up_bias[group * 32 + r];
        }
    }
    float hidden[32];
    for (int r = 0; r < 32; r++) hidden[r] = silu(gates[r]) * ups[r];
    uint8_t *q = (uint8_t *)job->hidden_q + pair * padded * activation_bytes(job->activation_mode);
    float *scale = job->hidden_scale + pair * (padded / 32);
    int32_t *offset = job->hidden_offset + pair * (padded / 32);
    quantise_group(job->activation_mode, hidden, count, group, q, scale, offset);
    if (last && (group + 1) * 32 < padded) quantise_group(job->activation_mode, hidden, 0, group + 1, q, scale, offset);
}

/* One or two groups of 32 intermediate rows of one expert for all its pairs. */
template <class K>
static void run_groups(const moelab_moe_job *job, const part &p, const int64_t *groups, int num_groups) {
    const int64_t expert = p.expert;
    const int64_t size = job->intermediate_size, num_tiles = tiles_of(job->hidden_size, 64);
    const int64_t num_tile_rows = tiles_of(size, 16), row_bytes = num_tiles * K::tile_bytes;
    const activations x = {job->tokens_q, job->tokens_scale, job->tokens_offset};
    const uint8_t *gate = p.weights, *up = gate + p.up_rows * row_bytes;
    const int64_t stop = job->pair_start[expert + 1];
    for (int64_t first = job->pair_start[expert]; first < stop; first += MAX_TOKENS) {
        const int num_tokens = (int)smaller(stop - first, MAX_TOKENS);
        int64_t token[MAX_TOKENS];
        for (int t = 0; t < num_tokens; t++) token[t] = job->token_of_pair[first + t];
        alignas(64) float sums[2][MAX_ROWS * MAX_TOKENS * 16]; /* [row of tiles of the group][gate, up of each group] */
        for (int n = 0; n < 2; n++) {
            const uint8_t *rows[MAX_ROWS];
            int num_rows = 0;
            for (int i = 0; i < num_groups; i++) {
                const int64_t row = 2 * groups[i] + n;
                if (row >= num_tile_rows) break; /* only the last group can be short, and it is alone */
                rows[num_rows++] = gate + (row - 2 * p.origin) * row_bytes;
                rows[num_rows++] = up + (row - 2 * p.origin) * row_bytes;
            }
            if (num_rows)
                K::dot(rows, num_rows, num_tiles, x, token, num_tokens, sums[n]);
            else
                for (int r = 0; r < 2 * num_tokens * 16; r++) sums[n][r] = 0.0f;
        }
        for (int i = 0; i < num_groups; i++)
            for (int t = 0; t < num_tokens; t++) {
                float gates[32], ups[32];
                for (int r = 0; r < 32; r++) {
                    gates[r] = sums[r / 16][(2 * i * num_tokens + t) * 16 + r % 16];
                    ups[r] = sums[r / 16][((2 * i + 1) * num_tokens + t) * 16 + r % 16];
                }
                write_hidden(job, expert, first + t, groups[i], smaller(size - groups[i] * 32, 32), gates, ups,
                             (groups[i] + 1) * 32 >= size);
            }
    }
}

/* All of a part whose expert has one token: a run of gate_proj, then the same rows of up_proj. */
template <class K>
static void run_groups_of_one(const moelab_moe_job *job, const part &p) {
    static const int64_t GROUPS_AT_ONCE = 32;
    const int64_t size = job->intermediate_size, num_tiles = tiles_of(job->hidden_size, 64);
    const int64_t num_tile_rows = tiles_of(size, 16), row_bytes = num_tiles * K::tile_bytes;
    const activations x = {job->tokens_q, job->tokens_scale, job->tokens_offset};
    const int64_t pair = job->pair_start[p.expert], token = job->token_of_pair[pair];
    for (int64_t first = p.first; first < p.first + p.count; first += GROUPS_AT_ONCE) {
        const int64_t count = smaller(GROUPS_AT_ONCE, p.first + p.count - first);
        const int64_t num_rows = smaller(2 * count, num_tile_rows - 2 * first);
        alignas(64) float sums[2][GROUPS_AT_ONCE * 32];
        for (int m = 0; m < 2; m++) {
            const uint8_t *row = p.weights + (m * p.up_rows + 2 * (first - p.origin)) * row_bytes;
            for (int64_t r = 0; r < num_rows; r++, row += row_bytes)
                K::dot(&row, 1, num_tiles, x, &token, 1, sums[m] + r * 16);
            for (int64_t r = num_rows * 16; r < count * 32; r++) sums[m][r] = 0.0f;
        }
        for (int64_t i = 0; i < count; i++)
            write_hidden(job, p.expert, pair, first + i, smaller(size - (first + i) * 32, 32), sums[0] + i * 32,
                         sums[1] + i * 32, (first + i + 1) * 32 >= size);
    }
}

/* What is asked of one expert is cut into two long runs of groups that advance together, four streams of weights:
 * prefetchers follow long runs, not neighbouring rows (docs/log.md, 2026-11-23, native kernels). */
template <class K>
static int32_t run_gate_up(const moelab_moe_job *job, int64_t unit_start, int64_t unit_stop, uint64_t *bytes_read) {
    const int32_t status = check_job(job, K::format, K::mode, 3);
    if (status) return status;
    const int64_t num_units = tiles_of(job->intermediate_size, 32),
                  num_tile_rows = tiles_of(job->intermediate_size, 16);
    const int64_t row_bytes = tiles_of(job->hidden_size, 64) * K::tile_bytes;
    while (unit_start < unit_stop) {
        const part p = part_at(job, false, num_units, unit_start, unit_stop);
        const bool one_run = in_one_run<K>(job, p.expert);
        const int64_t first = p.first, count = p.count, run = one_run ? 0 : count / 2;
        if (one_run) run_groups_of_one<K>(job, p);
        for (int64_t j = 0; j < run; j++) {
            const int64_t groups[2] = {first + j, first + run + j};
            const bool shorter = (groups[1] + 1) * 2 > num_tile_rows;
            run_groups<K>(job, p, groups, shorter ? 1 : 2);
            if (shorter) run_groups<K>(job, p, groups + 1, 1);
        }
        const int64_t last = first + count - 1;
        if (!one_run && count % 2) run_groups<K>(job, p, &last, 1);
        *bytes_read += (uint64_t)(2 * smaller(2 * count, num_tile_rows - 2 * first) * row_bytes);
        unit_start += count;
    }
    return MOELAB_OK;
}

/* The rows of tiles `n[0..num_rows)` of one projection of one expert for all its pairs; `weights` is its row
 * `origin`. With `hidden` the activation row of a pair is the pair's own. */
template <class K>
static void run_rows(const moelab_moe_job *job, const activations &x, bool hidden, int64_t expert, int projection,
                     const uint8_t *weights, int64_t origin, int64_t num_outputs, int64_t num_tiles, const int64_t *n,
                     int num_rows) {
    const int64_t num_units = tiles_of(num_outputs, 16);
    const uint8_t *rows[MAX_ROWS];
    for (int i = 0; i < num_rows; i++) rows[i] = weights + (n[i] - origin) * num_tiles * K::tile_bytes;
    const float *bias = job->expert_biases ? job->expert_biases[expert * 3 + projection] : nullptr;
    const int64_t stop = job->pair_start[expert + 1];
    for (int64_t first = job->pair_start[expert]; first < stop; first += MAX_TOKENS) {
        const int num_tokens = (int)smaller(stop - first, MAX_TOKENS);
        int64_t token[MAX_TOKENS];
        for (int t = 0; t < num_tokens; t++) token[t] = hidden ? first + t : job->token_of_pair[first + t];
        alignas(64) float sums[MAX_ROWS * MAX_TOKENS * 16];
        K::dot(rows, num_rows, num_tiles, x, token, num_tokens, sums);
        for (int t = 0; t < num_tokens; t++)
            for (int i = 0; i < num_rows; i++) {
                float *out = job->output + ((first + t) * num_units + n[i]) * 16;
                const float *from = sums + (i * num_tokens + t) * 16;
                for (int r = 0; r < 16; r++) out[r] = from[r];
                for (int64_t r = 0; bias && r < 16 && n[i] * 16 + r < num_outputs; r++) out[r] += bias[n[i] * 16 + r];
            }
    }
}

/* Units of a projection [num_outputs, num_tiles * 64] that is the block, or with `hidden` comes after its up rows, of
 * row_bytes each. What is asked of one expert is cut into MAX_ROWS long runs that advance together. */
template <class K>
static void run_units(const moelab_moe_job *job, const activations &x, bool hidden, int projection, int64_t row_bytes,
                      int64_t num_outputs, int64_t num_tiles, int64_t unit_start, int64_t unit_stop,
                      uint64_t *bytes_read) {
    const int64_t num_units = tiles_of(num_outputs, 16);
    /* Many small matrices one after the other, as the heads of an attention, are one long run already. */
    const bool in_runs = hidden || job->num_experts == 1 || num_units * num_tiles * K::tile_bytes > SMALL_BYTES;
    while (unit_start < unit_stop) {
        const part p = part_at(job, hidden, num_units, unit_start, unit_stop);
        const int64_t expert = p.expert, first = p.first, count = p.count;
        const int64_t run = in_runs && !in_one_run<K>(job, expert) ? count / MAX_ROWS : 0;
        const uint8_t *weights = p.weights + (hidden ? 2 * p.up_rows * row_bytes : 0);
        int64_t n[MAX_ROWS];
        for (int64_t j = 0; j < run; j++) {
            for (int i = 0; i < MAX_ROWS; i++) n[i] = first + i * run + j;
            run_rows<K>(job, x, hidden, expert, projection, weights, p.origin, num_outputs, num_tiles, n, MAX_ROWS);
        }
        for (int64_t j = run * MAX_ROWS; j < count; j++) {
            n[0] = first + j;
            run_rows<K>(job, x, hidden, expert, projection, weights, p.origin, num_outputs, num_tiles, n, 1);
        }
        *bytes_read += (uint64_t)(count * num_tiles * K::tile_bytes);
        unit_start += count;
    }
}

template <class K>
static int32_t run_down(const moelab_moe_job *job, int64_t unit_start, int64_t unit_stop, uint64_t *bytes_read) {
    const int32_t status = check_job(job, K::format, K::mode, 3);
    if (status) return status;
    const int64_t row_bytes = tiles_of(job->hidden_size, 64) * K::tile_bytes; /* of gate_proj and up_proj */
    const activations x = {job->hidden_q, job->hidden_scale, job->hidden_offset};
    run_units<K>(job, x, true, 2, row_bytes, job->hidden_size, tiles_of(job->intermediate_size, 64), unit_start,
                 unit_stop, bytes_read);
    return MOELAB_OK;
}

template <class K>
static int32_t run_linear(const moelab_moe_job *job, int64_t unit_start, int64_t unit_stop, uint64_t *bytes_read) {
    const int32_t status = check_job(job, K::format, K::mode, 1);
    if (status) return status;
    const activations x = {job->tokens_q, job->tokens_scale, job->tokens_offset};
    run_units<K>(job, x, false, 0, 0, job->intermediate_size, tiles_of(job->hidden_size, 64), unit_start, unit_stop,
                 bytes_read);
    return MOELAB_OK;
}

#define MOELAB_KERNEL(isa, name, K)                                                                                   \
    extern "C" int32_t moelab_##isa##_##name##_gate_up(const moelab_moe_job *job, int64_t start, int64_t stop,        \
                                                       uint64_t *bytes_read) {                                        \
        return run_gate_up<K>(job, start, stop, bytes_read);                                                          \
    }                                                                                                                 \
    extern "C" int32_t moelab_##isa##_##name##_down(const moelab_moe_job *job, int64_t start, int64_t stop,           \
                                                    uint64_t *bytes_read) {                                           \
        return run_down<K>(job, start, stop, bytes_read);                                                             \
    }                                                                                                                 \
    extern "C" int32_t moelab_##isa##_##name##_linear(const moelab_moe_job *job, int64_t start, int64_t stop,         \
                                                      uint64_t *bytes_read) {                                         \
        return run_linear<K>(job, start, stop, bytes_read);                                                           \
    }

#endif
