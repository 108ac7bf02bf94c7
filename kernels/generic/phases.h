/* gate_up and down over units, for one dot product `dot(job, weights, row, hidden, num_tiles, out)` that gives the
 * 16 sums of one row of tiles with activation row `row` of the tokens or (hidden) of the hidden vectors. */
#ifndef MOELAB_GENERIC_PHASES_H
#define MOELAB_GENERIC_PHASES_H

#include "moelab_kernels.h"
#include "quantise.h"
#include "silu.h"

typedef void (*dot_fn)(const moelab_moe_job *job, const uint8_t *weights, int64_t row, bool hidden, int64_t num_tiles,
                       float *out);

static inline int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

static inline int32_t check_job(const moelab_moe_job *job, int32_t format, int32_t mode) {
    if (job->struct_bytes != sizeof(moelab_moe_job) || job->abi_version != MOELAB_ABI_VERSION) return MOELAB_BAD_STRUCT;
    for (int i = 0; i < 3; i++)
        if (job->weight_format_of_projection[i] != format) return MOELAB_UNSUPPORTED;
    if (job->activation_mode != mode || job->activation_function != MOELAB_SILU) return MOELAB_UNSUPPORTED;
    if (job->hidden_size < 1 || job->intermediate_size < 1) return MOELAB_BAD_SHAPE;
    return MOELAB_OK;
}

template <dot_fn dot>
static int32_t run_gate_up(const moelab_moe_job *job, int64_t unit_start, int64_t unit_stop, int64_t tile_bytes,
                           uint64_t *bytes_read) {
    const int64_t size = job->intermediate_size, num_tiles = tiles_of(job->hidden_size, 64);
    const int64_t num_tile_rows = tiles_of(size, 16), num_units = tiles_of(size, 32), padded = tiles_of(size, 64) * 64;
    const int64_t row_bytes = num_tiles * tile_bytes;
    const int64_t number_bytes = job->activation_mode == MOELAB_ACT_INT8 ? 1 : job->activation_mode == MOELAB_ACT_BF16 ? 2 : 4;
    for (int64_t unit = unit_start; unit < unit_stop; unit++) {
        const int64_t expert = unit / num_units, group = unit % num_units;
        const int64_t tile_rows = num_tile_rows - 2 * group < 2 ? num_tile_rows - 2 * group : 2;
        const int64_t count = size - group * 32 < 32 ? size - group * 32 : 32;
        const uint8_t *gate = (const uint8_t *)job->expert_weights[expert] + 2 * group * row_bytes;
        const uint8_t *up = gate + num_tile_rows * row_bytes;
        const float *gate_bias = job->expert_biases ? job->expert_biases[expert * 3] : nullptr;
        const float *up_bias = job->expert_biases ? job->expert_biases[expert * 3 + 1] : nullptr;
        for (int64_t pair = job->pair_start[expert]; pair < job->pair_start[expert + 1]; pair++) {
            float gates[32] = {0}, ups[32] = {0}, hidden[32];
            for (int64_t n = 0; n < tile_rows; n++) {
                dot(job, gate + n * row_bytes, job->token_of_pair[pair], false, num_tiles, gates + n * 16);
                dot(job, up + n * row_bytes, job->token_of_pair[pair], false, num_tiles, ups + n * 16);
            }
            for (int64_t r = 0; r < count; r++) {
                if (gate_bias) gates[r] += gate_bias[group * 32 + r];
                if (up_bias) ups[r] += up_bias[group * 32 + r];
                hidden[r] = silu(gates[r]) * ups[r];
            }
            uint8_t *q = (uint8_t *)job->hidden_q + pair * padded * number_bytes;
            float *scale = job->hidden_scale + pair * (padded / 32);
            int32_t *offset = job->hidden_offset + pair * (padded / 32);
            quantise_group(job->activation_mode, hidden, count, group, q, scale, offset);
            if (group == num_units - 1 && (group + 1) * 32 < padded)
                quantise_group(job->activation_mode, hidden, 0, group + 1, q, scale, offset);
        }
        *bytes_read += (uint64_t)(2 * tile_rows * row_bytes);
    }
    return MOELAB_OK;
}

template <dot_fn dot>
static int32_t run_down(const moelab_moe_job *job, int64_t unit_start, int64_t unit_stop, int64_t tile_bytes,
                        uint64_t *bytes_read) {
    const int64_t num_tiles = tiles_of(job->intermediate_size, 64), num_units = tiles_of(job->hidden_size, 16);
    const int64_t row_bytes = num_tiles * tile_bytes;
    const int64_t up_bytes = tiles_of(job->intermediate_size, 16) * tiles_of(job->hidden_size, 64) * tile_bytes;
    for (int64_t unit = unit_start; unit < unit_stop; unit++) {
        const int64_t expert = unit / num_units, n = unit % num_units;
        const uint8_t *weights = (const uint8_t *)job->expert_weights[expert] + 2 * up_bytes + n * row_bytes;
        const float *bias = job->expert_biases ? job->expert_biases[expert * 3 + 2] : nullptr;
        for (int64_t pair = job->pair_start[expert]; pair < job->pair_start[expert + 1]; pair++) {
            float *out = job->output + (pair * num_units + n) * 16;
            dot(job, weights, pair, true, num_tiles, out);
            for (int64_t r = 0; bias && r < 16 && n * 16 + r < job->hidden_size; r++) out[r] += bias[n * 16 + r];
        }
        *bytes_read += (uint64_t)row_bytes;
    }
    return MOELAB_OK;
}

#define MOELAB_GENERIC_KERNEL(name, format, mode, dot, tile_bytes)                                                    \
    extern "C" int32_t moelab_generic_##name##_gate_up(const moelab_moe_job *job, int64_t start, int64_t stop,        \
                                                       uint64_t *bytes_read) {                                        \
        const int32_t status = check_job(job, format, mode);                                                          \
        return status ? status : run_gate_up<dot>(job, start, stop, tile_bytes, bytes_read);                          \
    }                                                                                                                 \
    extern "C" int32_t moelab_generic_##name##_down(const moelab_moe_job *job, int64_t start, int64_t stop,           \
                                                    uint64_t *bytes_read) {                                           \
        const int32_t status = check_job(job, format, mode);                                                          \
        return status ? status : run_down<dot>(job, start, stop, tile_bytes, bytes_read);                             \
    }

#endif
