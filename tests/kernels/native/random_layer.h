/* A layer of random experts or matrices, each buffer a heap block of exactly the bytes that the header gives. Of the
 * sanitizers' programs. */
#ifndef MOELAB_TESTS_RANDOM_LAYER_H
#define MOELAB_TESTS_RANDOM_LAYER_H

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "moelab_kernels.h"

template <class T>
struct block { /* 64-byte aligned; the sanitizer sees both ends, to 64 bytes */
    explicit block(size_t count) : data((T *)aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)) {}
    ~block() { free(data); }
    block(const block &) = delete;
    T *data;
};

/* All zero but its size and version. */
template <class S>
static S sized() {
    S of;
    std::memset((void *)&of, 0, sizeof(of));
    of.struct_bytes = sizeof(of);
    of.abi_version = MOELAB_ABI_VERSION;
    return of;
}

static int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }
static const int64_t tile_bytes[] = {4096, 2048, 576, 1088};

/* A layer of random experts, or matrices, with exactly the buffers that the header gives; `forward` is a step of it. */
struct layer {
    int64_t hidden, intermediate, num_experts, num_tokens, top_k, stride;
    bool linear;
    std::vector<std::unique_ptr<block<uint8_t>>> weights;
    std::vector<int64_t> addresses;
    std::vector<std::shared_ptr<void>> kept;
    int32_t *ids;
    float *x, *gates, *y, *output;
    moelab_moe_job job = sized<moelab_moe_job>();
    moelab_kernel_table table = sized<moelab_kernel_table>();
    moelab_counters counters = sized<moelab_counters>();
    moelab_forward forward = sized<moelab_forward>();

    template <class T>
    T *buffer(size_t count) {
        kept.push_back(std::make_shared<block<T>>(count));
        return std::static_pointer_cast<block<T>>(kept.back())->data;
    }

    /* grouped: of matrices, each token has its own, instead of one for all. */
    layer(const char *isa, int format, int mode, std::mt19937 &draw, int64_t hidden, int64_t intermediate,
          int64_t num_tokens, bool linear, bool grouped, bool with_nodes)
        : hidden(hidden), intermediate(intermediate), num_experts(1 + draw() % 6), num_tokens(num_tokens),
          top_k(linear ? 1 : 1 + draw() % 3), linear(linear) {
        const int64_t up_bytes = tiles(intermediate, 16) * tiles(hidden, 64) * tile_bytes[format];
        const int64_t bytes = 2 * up_bytes + tiles(hidden, 16) * tiles(intermediate, 64) * tile_bytes[format];
        const int64_t number = mode == MOELAB_ACT_INT8 ? 1 : mode == MOELAB_ACT_F32 ? 4 : 2;
        const int64_t slots = num_tokens * top_k;
        const int64_t padded_h = tiles(hidden, 64) * 64, padded_i = tiles(intermediate, 64) * 64;
        for (int64_t e = 0; e < num_experts; e++) {
            weights.emplace_back(new block<uint8_t>(linear ? up_bytes : bytes));
            uint8_t *to = weights.back()->data;
            /* Small finite floats: bf16 scales, bf16 or float32 weights. */
            for (int64_t i = 0; i < (linear ? up_bytes : bytes); i += 2) {
                const int64_t in_tile = i % tile_bytes[format];
                const bool scale = format == MOELAB_INT4_G32   ? in_tile >= 512
                                   : format == MOELAB_INT8_G32 ? in_tile >= 1024
                                   : format == MOELAB_BF16     ? true
                                                               : i % 4 == 2;
                const uint16_t value = scale ? 0x3c00 | (draw() & 0x807f) : (uint16_t)draw();
                std::memcpy(to + i, &value, 2);
            }
            addresses.push_back((int64_t)to);
        }
        stride = tiles(linear ? intermediate : hidden, 16) * 16;
        ids = buffer<int32_t>(slots);
        x = buffer<float>(num_tokens * hidden);
        gates = buffer<float>(slots);
        y = buffer<float>(num_tokens * hidden);
        output = buffer<float>((linear ? num_tokens : slots) * stride);
        int32_t *nodes = buffer<int32_t>(num_experts);
        int64_t *count = buffer<int64_t>(num_experts + 1);
        std::memset(count, 0, (num_experts + 1) * sizeof(int64_t));
        for (int64_t i = 0; i < num_tokens * hidden; i++) x[i] = (float)(int)(draw() % 2001 - 1000) / 500.0f;
        for (int64_t i = 0; i < slots; i++) {
            ids[i] = draw() % 8 == 0 && !linear ? 65535 : (int32_t)(draw() % num_experts);
            gates[i] = (float)(draw() % 100) / 100.0f;
        }
        for (int64_t e = 0; e < num_experts; e++) nodes[e] = (int32_t)(e % 2);
        for (int32_t &f : job.weight_format_of_projection) f = format;
        job.activation_mode = mode;
        job.hidden_size = hidden;
        job.intermediate_size = intermediate;
        job.expert_weights = buffer<const void *>(num_experts + 1);
        job.pair_start = buffer<int64_t>(num_experts + 2);
        job.token_of_pair = buffer<int32_t>(std::max(slots, num_tokens));
        job.tokens_q = buffer<uint8_t>(num_tokens * padded_h * number);
        job.tokens_scale = buffer<float>(num_tokens * padded_h / 32);
        job.tokens_offset = buffer<int32_t>(num_tokens * padded_h / 32);
        job.hidden_q = buffer<uint8_t>(slots * padded_i * number);
        job.hidden_scale = buffer<float>(slots * padded_i / 32);
        job.hidden_offset = buffer<int32_t>(slots * padded_i / 32);
        job.output = output;
        if (moelab_kernels(isa, format, mode, &table)) std::abort();
        forward.job = &job;
        forward.table = &table;
        forward.x = x;
        forward.x_stride = hidden;
        forward.num_tokens = num_tokens;
        forward.top_k = top_k;
        forward.expert_ids = linear && !grouped ? nullptr : ids;
        forward.gate_weights = gates;
        forward.y = y;
        forward.num_experts = num_experts;
        forward.address_of_expert = addresses.data();
        forward.node_of_expert = with_nodes ? nodes : nullptr;
        forward.count_of_expert = count;
        forward.pair_of_slot = buffer<int64_t>(slots);
        forward.smallest_up = forward.smallest_down = 1;
        forward.largest_up = 2;
        forward.largest_down = 5;
        forward.counters = &counters;
    }
    layer(const layer &) = delete;

    moelab_op op() {
        moelab_op of = sized<moelab_op>();
        of.kind = linear ? MOELAB_OP_LINEAR : MOELAB_OP_EXPERTS;
        of.arguments = &forward;
        return of;
    }

    void append_result(std::vector<float> &to) const {
        const int64_t row = linear ? stride : hidden, size = linear ? intermediate : hidden;
        const float *from = linear ? output : y;
        for (int64_t t = 0; t < num_tokens; t++) to.insert(to.end(), from + t * row, from + t * row + size);
    }
};

#endif
