/* Random layer-steps on pools of several workers and nodes, compared bit by bit with the caller alone. Built with a
 * sanitizer by tests/kernels/test_sanitizers.py: stress ISA ROUNDS. What is run is in random_layer.h and
 * random_attention.h. */
#include <chrono>
#include <cmath>
#include <cstdio>
#include <thread>

#include "random_attention.h"

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
