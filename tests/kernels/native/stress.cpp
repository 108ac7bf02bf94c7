/* Random layer-steps on pools of several workers and nodes, compared bit by bit with the caller alone. Built with a
 * sanitizer by tests/kernels/test_sanitizers.py: stress ISA ROUNDS. Every buffer is a heap block of exactly the bytes
 * that the header gives. */
#include <algorithm>
#include <chrono>
#include <cmath>
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

static std::vector<float> run(moelab_pool *pool, const char *isa, int format, int mode, uint32_t seed, bool with_nodes,
                              bool linear) {
    std::mt19937 draw(seed);
    const int64_t hidden = 1 + draw() % 150, intermediate = 1 + draw() % 150, num_tokens = 1 + draw() % 40;
    layer of(isa, format, mode, draw, hidden, intermediate, num_tokens, linear, seed % 2, with_nodes);
    const int32_t status = linear ? moelab_linear_forward(pool, &of.forward) : moelab_moe_forward(pool, &of.forward);
    if (status) {
        std::printf("status %d\n", status);
        std::exit(1);
    }
    std::vector<float> result;
    of.append_result(result);
    return result;
}

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

/* norm | linear | latent | query | attend | merge | gather | route | experts | experts | linear | add, one step after
 * the other in one list, then with one operation that fails (a NaN for the router, an expert that there is not, a
 * struct of another size), which must leave the list fit to run. */
static std::vector<float> run_steps(moelab_pool *pool, const char *isa, int format, int mode, uint32_t seed,
                                    bool with_nodes) {
    std::mt19937 draw(seed);
    const int64_t tokens = 1 + draw() % 5, size = 1 + draw() % 150, between = 1 + draw() % 100;
    layer first(isa, format, mode, draw, size, between, tokens, true, false, false);
    layer routed(isa, format, mode, draw, size, 1 + draw() % 100, tokens, false, false, with_nodes);
    layer shared(isa, format, mode, draw, size, 1 + draw() % 100, tokens, false, false, with_nodes);
    layer last(isa, format, mode, draw, size, size, tokens, true, seed % 2, false);
    const int64_t experts = routed.num_experts, top_k = std::min<int64_t>(routed.top_k, experts);
    block<float> weight(size), logits(tokens * experts), bias(experts), choice(experts), sum(tokens * size);
    block<float> scores(tokens * experts);
    for (int64_t i = 0; i < size; i++) weight.data[i] = 1.0f + (float)i / 100.0f;
    for (int64_t i = 0; i < tokens * experts; i++) logits.data[i] = (float)(int)(draw() % 200) / 50.0f;
    for (int64_t i = 0; i < experts; i++) bias.data[i] = 0.0f;
    for (int64_t i = 0; i < tokens * size; i++) sum.data[i] = 0.0f;
    routed.forward.top_k = top_k;
    moelab_norm norm = sized<moelab_norm>();
    norm.x = shared.x, norm.x_stride = size, norm.weight = weight.data, norm.y = first.x, norm.y_stride = size;
    norm.num_tokens = tokens, norm.size = size, norm.eps = 1e-6f;
    routed.forward.x = first.x;
    shared.forward.x = routed.y;
    last.forward.x = shared.y;
    moelab_route route = sized<moelab_route>();
    route.logits = logits.data, route.logits_stride = experts, route.bias = bias.data, route.num_tokens = tokens;
    route.num_experts = experts, route.top_k = top_k, route.n_group = route.topk_group = 1, route.scaling_factor = 1.0f;
    route.choice = choice.data, route.expert_ids = routed.ids, route.gate_weights = routed.gates;
    if (seed % 3) route.scores = scores.data;
    moelab_add add = sized<moelab_add>();
    add.sum = sum.data, add.a = last.output, add.a_stride = last.stride, add.b = routed.y;
    add.num_tokens = tokens, add.size = size;
    attention attend(isa, seed / 2 % 2, draw, tokens, seed % 5 == 0);
    moelab_op ops[] = {op_of(MOELAB_OP_NORM, &norm),
                       first.op(),
                       op_of(MOELAB_OP_LATENT, &attend.a),
                       op_of(MOELAB_OP_QUERY, &attend.a),
                       op_of(MOELAB_OP_ATTEND, &attend.a),
                       op_of(MOELAB_OP_MERGE, &attend.a),
                       op_of(MOELAB_OP_GATHER, &attend.gather),
                       op_of(MOELAB_OP_ROUTE, &route),
                       routed.op(),
                       shared.op(),
                       last.op(),
                       op_of(MOELAB_OP_ADD, &add)};
    const int64_t num_ops = sizeof(ops) / sizeof(*ops);
    std::vector<float> result;
    for (int failing = 0; failing < 4; failing++) {
        const int64_t at[] = {-1, 7, 9, 10};
        const int32_t expected[] = {MOELAB_OK, MOELAB_NOT_A_NUMBER, MOELAB_BAD_EXPERT, MOELAB_BAD_STRUCT};
        const float logit = logits.data[tokens * experts - 1];
        const int32_t id = shared.ids[0];
        if (failing == 1) logits.data[tokens * experts - 1] = NAN;
        if (failing == 2) shared.ids[0] = (int32_t)shared.num_experts;
        if (failing == 3) last.job.struct_bytes++;
        int64_t failed = -1;
        if (moelab_run_ops(pool, ops, num_ops, &failed) != expected[failing] || failed != at[failing]) {
            std::printf("case %d: failed at %ld\n", failing, (long)failed);
            std::exit(1);
        }
        logits.data[tokens * experts - 1] = logit;
        shared.ids[0] = id;
        if (failing == 3) last.job.struct_bytes--;
        if (failing == 0) result.insert(result.end(), sum.data, sum.data + tokens * size);
    }
    if (moelab_run_ops(pool, ops, num_ops, nullptr)) std::exit(1);
    for (const layer *of : {&first, &routed, &shared, &last}) of->append_result(result);
    attend.append_result(result);
    return result;
}

/* norm | latent | query | attend | merge | gather | add | route over random sizes; the output of all in one vector. */
static std::vector<float> run_ops(moelab_pool *pool, const char *isa, bool bf16, uint32_t seed) {
    std::mt19937 draw(seed);
    const int64_t tokens = 1 + draw() % 3;
    attention attend(isa, bf16, draw, tokens, seed % 5 == 0);
    const int64_t width = attend.width, experts = 4 * (2 + draw() % 8), top_k = 1 + draw() % 4;
    float *x = attend.filled(tokens * width, draw), *weight = attend.filled(width, draw);
    float *logits = attend.filled(tokens * experts, draw), *bias = attend.filled(experts, draw);
    block<float> choice(experts), gates(tokens * top_k);
    block<int32_t> ids(tokens * top_k);
    const uint32_t version = MOELAB_ABI_VERSION;
    moelab_norm norm = {sizeof(norm), version, x, width, weight, attend.normed, width, tokens, width, 1e-6f};
    moelab_add add = {sizeof(add), version, x, attend.normed, width, nullptr, tokens, width};
    moelab_route route = {sizeof(route), version, logits, experts, bias, tokens, experts, top_k, 4, 2, 1, 2.0f,
                          choice.data, ids.data, gates.data, 0};
    moelab_op ops[] = {op_of(MOELAB_OP_NORM, &norm),         op_of(MOELAB_OP_LATENT, &attend.a),
                       op_of(MOELAB_OP_QUERY, &attend.a),    op_of(MOELAB_OP_ATTEND, &attend.a),
                       op_of(MOELAB_OP_MERGE, &attend.a),    op_of(MOELAB_OP_GATHER, &attend.gather),
                       op_of(MOELAB_OP_ADD, &add),           op_of(MOELAB_OP_ROUTE, &route)};
    if (moelab_run_ops(pool, ops, sizeof(ops) / sizeof(*ops), nullptr)) std::exit(1);
    std::vector<float> result;
    attend.append_result(result);
    result.insert(result.end(), x, x + tokens * width);
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
                            {MOELAB_INT4_G32, MOELAB_ACT_INT16}, {MOELAB_INT4_G32, MOELAB_ACT_INT8},
                            {MOELAB_INT8_G32, MOELAB_ACT_INT16}, {MOELAB_INT8_G32, MOELAB_ACT_INT8}};
    const int32_t two_nodes[] = {0, 1, 0, 1};
    for (int i = 0; i < rounds; i++) pack_something(i);
    for (int workers = 1; workers <= 4; workers++) {
        const bool nodes = workers % 2 == 0;
        moelab_pool *pool = moelab_pool_create(workers, nullptr, nodes ? two_nodes : nullptr, workers == 3 ? 0 : 20000);
        if (!pool) return 2;
        for (int i = 0; i < rounds; i++) {
            int mode[] = {modes[i % 6][0], modes[i % 6][1]};
            const bool tiles_alone = std::strcmp(isa, "amx") == 0;
            if (tiles_alone && mode[0] == MOELAB_FLOAT32) continue; /* has no float32 */
            if (tiles_alone && mode[1] == MOELAB_ACT_INT16) mode[1] = MOELAB_ACT_BF16; /* nor integers of 16 bits */
            const bool linear = i % 5 == 4;
            const bool by_node = nodes && !linear;
            if (!same(run(nullptr, isa, mode[0], mode[1], i, false, linear),
                      run(pool, isa, mode[0], mode[1], i, by_node, linear)) ||
                !same(run_steps(nullptr, isa, mode[0], mode[1], i, false),
                      run_steps(pool, isa, mode[0], mode[1], i, nodes)) ||
                !same(run_ops(nullptr, isa, i % 2, i), run_ops(pool, isa, i % 2, i))) {
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
            const uint64_t by_node =
                moelab_read_nodes(pool, loop, addresses.data, count_of_node, 2, 4096 * 8, 3008, ns_of_node);
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
