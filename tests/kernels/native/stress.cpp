/* Random layer-steps on pools of several workers and nodes, compared bit by bit with the caller alone. Built with a sanitizer by
 * tests/kernels/test_sanitizers.py: stress ISA ROUNDS. Every buffer is a heap block of exactly the bytes that the header gives. */
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "moelab_kernels.h"

template <class T>
struct block { /* 64-byte aligned; the sanitizer sees both ends, to 64 bytes */
    explicit block(size_t count) : data((T *)aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)) {}
    ~block() { free(data); }
    block(const block &) = delete;
    T *data;
};

static int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }
static const int64_t tile_bytes[] = {4096, 2048, 576, 1088};

static std::vector<float> run(moelab_pool *pool, const char *isa, int format, int mode, uint32_t seed, bool with_nodes,
                              bool linear, bool as_op) {
    std::mt19937 draw(seed);
    const int64_t hidden = 1 + draw() % 150, intermediate = 1 + draw() % 150, num_experts = 1 + draw() % 6;
    const bool grouped = linear && seed % 2; /* each token has its own matrix, instead of one for all */
    const int64_t num_tokens = 1 + draw() % 40, top_k = linear ? 1 : 1 + draw() % 3;
    const int64_t up_bytes = tiles(intermediate, 16) * tiles(hidden, 64) * tile_bytes[format];
    const int64_t bytes = 2 * up_bytes + tiles(hidden, 16) * tiles(intermediate, 64) * tile_bytes[format];
    const int64_t number = mode == MOELAB_ACT_INT8 ? 1 : mode == MOELAB_ACT_BF16 ? 2 : 4, slots = num_tokens * top_k;
    const int64_t padded_h = tiles(hidden, 64) * 64, padded_i = tiles(intermediate, 64) * 64;
    std::vector<std::unique_ptr<block<uint8_t>>> weights;
    std::vector<int64_t> addresses;
    for (int64_t e = 0; e < num_experts; e++) {
        weights.emplace_back(new block<uint8_t>(linear ? up_bytes : bytes));
        uint8_t *to = weights.back()->data;
        for (int64_t i = 0; i < (linear ? up_bytes : bytes); i++) to[i] = (uint8_t)draw();
        /* Small finite floats: bf16 scales, bf16 or float32 weights. */
        for (int64_t i = 0; i < (linear ? up_bytes : bytes); i += 2) {
            const int64_t in_tile = i % tile_bytes[format];
            const bool scale = format == MOELAB_INT4_G32 ? in_tile >= 512 : format == MOELAB_INT8_G32 ? in_tile >= 1024
                               : format == MOELAB_BF16 ? true : i % 4 == 2;
            if (scale) { const uint16_t value = 0x3c00 | (draw() & 0x807f); std::memcpy(to + i, &value, 2); }
        }
        addresses.push_back((int64_t)to);
    }
    block<const void *> expert_weights(num_experts + 1);
    block<int64_t> pair_start(num_experts + 2), count(num_experts + 1), pair_of_slot(slots);
    block<int32_t> token_of_pair(slots > num_tokens ? slots : num_tokens), ids(slots), nodes(num_experts);
    block<uint8_t> tokens_q(num_tokens * padded_h * number), hidden_q(slots * padded_i * number);
    block<float> tokens_scale(num_tokens * padded_h / 32), hidden_scale(slots * padded_i / 32);
    block<int32_t> tokens_offset(num_tokens * padded_h / 32), hidden_offset(slots * padded_i / 32);
    const int64_t stride = tiles(linear ? intermediate : hidden, 16) * 16;
    block<float> output((linear ? num_tokens : slots) * stride), x(num_tokens * hidden), gates(slots), y(num_tokens * hidden);
    std::memset(count.data, 0, (num_experts + 1) * sizeof(int64_t));
    for (int64_t i = 0; i < num_tokens * hidden; i++) x.data[i] = (float)(int)(draw() % 2001 - 1000) / 500.0f;
    for (int64_t i = 0; i < slots; i++) {
        ids.data[i] = draw() % 8 == 0 && !linear ? 65535 : (int32_t)(draw() % num_experts);
        gates.data[i] = (float)(draw() % 100) / 100.0f;
    }
    for (int64_t e = 0; e < num_experts; e++) nodes.data[e] = (int32_t)(e % 2);
    moelab_moe_job job;
    std::memset(&job, 0, sizeof(job));
    job.struct_bytes = sizeof(job);
    job.abi_version = MOELAB_ABI_VERSION;
    for (int32_t &f : job.weight_format_of_projection) f = format;
    job.activation_mode = mode;
    job.hidden_size = hidden;
    job.intermediate_size = intermediate;
    job.expert_weights = expert_weights.data;
    job.pair_start = pair_start.data;
    job.token_of_pair = token_of_pair.data;
    job.tokens_q = tokens_q.data;
    job.tokens_scale = tokens_scale.data;
    job.tokens_offset = tokens_offset.data;
    job.hidden_q = hidden_q.data;
    job.hidden_scale = hidden_scale.data;
    job.hidden_offset = hidden_offset.data;
    job.output = output.data;
    moelab_kernel_table table;
    table.struct_bytes = sizeof(table);
    table.abi_version = MOELAB_ABI_VERSION;
    if (moelab_kernels(isa, format, mode, &table)) std::abort();
    moelab_counters counters;
    std::memset(&counters, 0, sizeof(counters));
    moelab_forward f;
    std::memset(&f, 0, sizeof(f));
    f.struct_bytes = sizeof(f);
    f.abi_version = MOELAB_ABI_VERSION;
    f.job = &job;
    f.table = &table;
    f.x = x.data;
    f.x_stride = hidden;
    f.num_tokens = num_tokens;
    f.top_k = top_k;
    f.expert_ids = linear && !grouped ? nullptr : ids.data;
    f.gate_weights = gates.data;
    f.y = y.data;
    f.num_experts = num_experts;
    f.address_of_expert = addresses.data();
    f.node_of_expert = with_nodes ? nodes.data : nullptr;
    f.count_of_expert = count.data;
    f.pair_of_slot = pair_of_slot.data;
    f.smallest_up = f.smallest_down = 1;
    f.largest_up = 2;
    f.largest_down = 5;
    f.counters = &counters;
    moelab_op op[2];
    std::memset(op, 0, sizeof(op));
    for (moelab_op &o : op) {
        o.kind = linear ? MOELAB_OP_LINEAR : MOELAB_OP_EXPERTS;
        o.arguments = &f;
    }
    const int32_t status = as_op    ? moelab_run_ops(pool, op, 1)
                           : linear ? moelab_linear_forward(pool, &f)
                                    : moelab_moe_forward(pool, &f);
    if (status) { std::printf("status %d\n", status); std::exit(1); }
    if (linear) {
        std::vector<float> result;
        for (int64_t t = 0; t < num_tokens; t++)
            result.insert(result.end(), output.data + t * stride, output.data + t * stride + intermediate);
        return result;
    }
    return std::vector<float>(y.data, y.data + num_tokens * hidden);
}

/* norm | latent | query | attend | merge | gather | add | route over random sizes; the output of all in one vector. */
static std::vector<float> run_ops(moelab_pool *pool, const char *isa, bool bf16, uint32_t seed) {
    std::mt19937 draw(seed);
    moelab_attention a;
    std::memset(&a, 0, sizeof(a));
    const int64_t tokens = a.num_tokens = 1 + draw() % 3, heads = a.num_heads = 1 + draw() % 21;
    const int64_t rank = a.kv_rank = 1 + draw() % 70, nope = a.nope_dim = 1 + draw() % 9, rope = a.rope_dim = 2 * (1 + draw() % 9);
    const int64_t capacity = 1 + draw() % (seed % 5 ? 80 : 600), width = rank + rope, rows = heads * tokens;
    block<float> x(tokens * width), normed(tokens * width), weight(width), q(tokens * heads * (nope + rope));
    block<float> cos(capacity * rope / 2), sin(capacity * rope / 2), query(rows * rank), query_nope(rows * nope);
    block<float> query_rope(rows * rope), mixed(rows * rank), gathered(rows * rank);
    block<uint8_t> cache(tokens * capacity * width * (bf16 ? 2 : 4));
    block<int64_t> row(tokens), position(tokens);
    const auto fill = [&](float *to, int64_t count) {
        for (int64_t i = 0; i < count; i++) to[i] = (float)(int)(draw() % 2001 - 1000) / 500.0f;
    };
    fill(x.data, tokens * width), fill(weight.data, width), fill(q.data, tokens * heads * (nope + rope));
    fill(cos.data, capacity * rope / 2), fill(sin.data, capacity * rope / 2), fill(query.data, rows * rank);
    for (int64_t i = 0; i < tokens * capacity * width; i++) {
        const float value = (float)(int)(draw() % 2001 - 1000) / 500.0f;
        if (bf16)
            std::memcpy(cache.data + 2 * i, (const char *)&value + 2, 2);
        else
            std::memcpy(cache.data + 4 * i, &value, 4);
    }
    for (int64_t t = 0; t < tokens; t++) row.data[t] = t, position.data[t] = draw() % capacity;
    int64_t chunks = 1;
    for (int64_t t = 0; t < tokens; t++) chunks = std::max(chunks, moelab_attention_chunks(position.data[t] + 1));
    block<float> partial(tokens * chunks * heads * (rank + 2));
    a.a = normed.data, a.a_stride = width, a.kv_norm = weight.data, a.eps = 1e-6f, a.softmax_scale = 0.3f;
    a.cos = cos.data, a.sin = sin.data, a.interleave = draw() % 2, a.cache_bf16 = bf16, a.cache = cache.data;
    a.row_numbers = capacity * width, a.row_of_token = row.data, a.position_of_token = position.data;
    a.q = q.data, a.q_stride = heads * (nope + rope), a.query_nope = query_nope.data, a.query_rope = query_rope.data;
    a.query = query.data, a.query_stride = rank, a.partial = partial.data, a.max_chunks = chunks;
    a.mixed = mixed.data, a.mixed_stride = rank;
    *(void **)&a.attend = moelab_attend(isa, bf16);
    const int64_t experts = 4 * (1 + draw() % 9), top_k = 1 + draw() % 4;
    block<float> logits(tokens * experts), bias(experts), choice(experts), gates(tokens * top_k);
    block<int32_t> ids(tokens * top_k);
    fill(logits.data, tokens * experts), fill(bias.data, experts);
    moelab_norm norm = {x.data, width, weight.data, normed.data, width, tokens, width, 1e-6f};
    moelab_gather gather = {mixed.data, rank, tokens, heads, rank, gathered.data};
    moelab_add add = {x.data, normed.data, width, nullptr, tokens, width};
    moelab_route route = {logits.data, experts, bias.data, tokens, experts, top_k, 4, 2, 1, 2.0f, choice.data, ids.data, gates.data};
    moelab_op ops[] = {{MOELAB_OP_NORM, &norm, 0},   {MOELAB_OP_LATENT, &a, 0}, {MOELAB_OP_QUERY, &a, 0},
                       {MOELAB_OP_ATTEND, &a, 0},    {MOELAB_OP_MERGE, &a, 0},  {MOELAB_OP_GATHER, &gather, 0},
                       {MOELAB_OP_ADD, &add, 0},     {MOELAB_OP_ROUTE, &route, 0}};
    if (moelab_run_ops(pool, ops, 8)) std::exit(1);
    std::vector<float> result(gathered.data, gathered.data + rows * rank);
    result.insert(result.end(), query_nope.data, query_nope.data + rows * nope);
    result.insert(result.end(), x.data, x.data + tokens * width);
    result.insert(result.end(), gates.data, gates.data + tokens * top_k);
    for (int64_t i = 0; i < tokens * top_k; i++) result.push_back((float)ids.data[i]);
    return result;
}

static bool same(const std::vector<float> &a, const std::vector<float> &b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

/* A random matrix of exactly its bytes, packed and rounded while packed. */
static void pack_something(uint32_t seed) {
    std::mt19937 draw(seed);
    const int64_t rows = 1 + draw() % 70, columns = 1 + draw() % 200, all = tiles(rows, 16) * tiles(columns, 64);
    for (int32_t format = 0; format < 4; format++) {
        block<uint8_t> to(all * tile_bytes[format]);
        const int64_t row_bytes[] = {4 * columns, 2 * columns, tiles(columns, 8) * 4, columns};
        std::unique_ptr<uint8_t[]> numbers(new uint8_t[rows * row_bytes[format]]);
        std::unique_ptr<uint16_t[]> scale(new uint16_t[rows * tiles(columns, 32)]);
        for (int64_t i = 0; i < rows * row_bytes[format]; i++) numbers[i] = (uint8_t)draw();
        for (int64_t i = 0; i < rows * tiles(columns, 32); i++) scale[i] = (uint16_t)draw();
        if (moelab_pack(format, to.data, numbers.get(), scale.get(), rows, columns)) std::abort();
        for (int32_t source = MOELAB_FLOAT32; source <= MOELAB_BF16; source++) {
            const int64_t count = rows * row_bytes[source];
            std::unique_ptr<uint8_t[]> floats(new uint8_t[count]);
            for (int64_t i = 0; i < count; i++) floats[i] = (uint8_t)draw();
            if (moelab_quantise_pack(format, to.data, source, floats.get(), rows, columns)) std::abort();
        }
    }
}

int main(int argc, char **argv) {
    const char *isa = argc > 1 ? argv[1] : "generic";
    const int rounds = argc > 2 ? std::atoi(argv[2]) : 50;
    if (!moelab_isa_supported(isa)) { std::printf("%s is not supported here\n", isa); return 2; }
    const int modes[][2] = {{MOELAB_FLOAT32, MOELAB_ACT_F32}, {MOELAB_BF16, MOELAB_ACT_BF16},
                            {MOELAB_INT4_G32, MOELAB_ACT_BF16}, {MOELAB_INT4_G32, MOELAB_ACT_INT8},
                            {MOELAB_INT8_G32, MOELAB_ACT_BF16}, {MOELAB_INT8_G32, MOELAB_ACT_INT8}};
    const int32_t two_nodes[] = {0, 1, 0, 1};
    for (int i = 0; i < rounds; i++) pack_something(i);
    for (int workers = 1; workers <= 4; workers++) {
        const bool nodes = workers % 2 == 0;
        moelab_pool *pool = moelab_pool_create(workers, nullptr, nodes ? two_nodes : nullptr, workers == 3 ? 0 : 20000);
        if (!pool) return 2;
        for (int i = 0; i < rounds; i++) {
            const int *mode = modes[i % 6];
            if (mode[0] == MOELAB_FLOAT32 && std::strcmp(isa, "amx") == 0) continue; /* has no float32 */
            const bool linear = i % 5 == 4;
            const std::vector<float> alone = run(nullptr, isa, mode[0], mode[1], i, false, linear, false);
            const std::vector<float> together = run(pool, isa, mode[0], mode[1], i, nodes && !linear, linear, i % 3 == 0);
            if (!same(alone, together) || !same(run_ops(nullptr, isa, i % 2, i), run_ops(pool, isa, i % 2, i))) {
                std::printf("round %d, %d workers: results differ\n", i, workers);
                return 1;
            }
            /* Long enough for the workers to fall asleep now and then. */
            if (i % 10 == 9) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        /* Six addresses of 4,096 words, read by node in blocks that do not divide them: the sum of the caller alone. */
        block<int64_t> words(6 * 4096), addresses(6);
        for (int64_t i = 0; i < 6 * 4096; i++) words.data[i] = i * i;
        for (int64_t a = 0; a < 6; a++) addresses.data[a] = (int64_t)(words.data + a * 4096);
        const int64_t count_of_node[] = {nodes ? 2 : 6, nodes ? 4 : 0};
        for (int32_t loop = 0; loop < moelab_num_read_loops(); loop++) {
            uint64_t ns_of_node[2];
            const uint64_t alone = moelab_read_all(nullptr, loop, addresses.data, 6, 4096 * 8, 3008);
            const uint64_t by_node = moelab_read_nodes(pool, loop, addresses.data, count_of_node, 2, 4096 * 8, 3008, ns_of_node);
            if (by_node != alone || (ns_of_node[1] > 0) != nodes) {
                std::printf("loop %d, %d workers: sums differ\n", loop, workers);
                return 1;
            }
        }
        moelab_pool_destroy(pool);
    }
    std::printf("ok\n");
    return 0;
}
