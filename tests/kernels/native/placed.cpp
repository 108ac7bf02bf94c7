/* Layer-steps whose experts lie in pieces and copies on nodes, or whose rows are shared out over them, compared bit by
 * bit with whole experts on the caller alone; runs in two calls. Built with a sanitizer by
 * tests/kernels/test_sanitizers.py: placed ISA ROUNDS. Every block of weights has exactly the bytes of its piece. */
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "moelab_kernels.h"

static int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }
static const int64_t tile_bytes[] = {4096, 2048, 576, 1088};

struct freed {
    void operator()(void *of) const { free(of); }
};
using block = std::unique_ptr<uint8_t, freed>;

static block block_of(int64_t bytes) {
    return block((uint8_t *)aligned_alloc(64, std::max<int64_t>(64, (bytes + 63) / 64 * 64)));
}

template <class S>
static S sized() {
    S of;
    std::memset((void *)&of, 0, sizeof(of));
    of.struct_bytes = sizeof(of);
    of.abi_version = MOELAB_ABI_VERSION;
    return of;
}

/* Finite small floats in the place of scales and of floats. */
static void fill(uint8_t *to, int64_t bytes, int format, std::mt19937 &draw) {
    for (int64_t i = 0; i < bytes; i += 2) {
        const int64_t at = i % tile_bytes[format];
        const bool is_float = format == MOELAB_INT4_G32   ? at >= 512
                              : format == MOELAB_INT8_G32 ? at >= 1024
                              : format == MOELAB_BF16     ? true
                                                          : i % 4 == 2;
        const uint16_t value = is_float ? 0x3c00 | (draw() & 0x807f) : (uint16_t)draw();
        std::memcpy(to + i, &value, 2);
    }
}

/* Whole experts, random pairs, and the buffers of a step. */
struct layer {
    int format, mode;
    int64_t hidden, size, experts, tokens, top_k, up_bytes, down_bytes; /* bytes of a tile row */
    int64_t groups, up_rows, down_rows;
    std::vector<block> whole, kept;
    std::vector<int64_t> addresses;
    moelab_moe_job job = sized<moelab_moe_job>();
    moelab_kernel_table table = sized<moelab_kernel_table>();
    moelab_counters counters = sized<moelab_counters>();
    moelab_forward forward = sized<moelab_forward>();

    template <class T>
    T *buffer(int64_t count) {
        kept.push_back(block_of(count * sizeof(T)));
        std::memset(kept.back().get(), 0, count * sizeof(T));
        return (T *)kept.back().get();
    }

    layer(const char *isa, int format, int mode, std::mt19937 &draw, int64_t experts)
        : format(format), mode(mode), hidden(1 + draw() % 200), size(1 + draw() % 200), experts(experts),
          tokens(1 + draw() % 6), top_k(1 + draw() % 3) {
        groups = tiles(size, 32), up_rows = tiles(size, 16), down_rows = tiles(hidden, 16);
        up_bytes = tiles(hidden, 64) * tile_bytes[format], down_bytes = tiles(size, 64) * tile_bytes[format];
        const int64_t slots = tokens * top_k, number = mode == MOELAB_ACT_INT8 ? 1 : mode == MOELAB_ACT_F32 ? 4 : 2;
        for (int64_t e = 0; e < experts; e++) {
            whole.push_back(block_of(2 * up_rows * up_bytes + down_rows * down_bytes));
            fill(whole.back().get(), 2 * up_rows * up_bytes + down_rows * down_bytes, format, draw);
            addresses.push_back((int64_t)whole.back().get());
        }
        float *x = buffer<float>(tokens * hidden), *gates = buffer<float>(slots);
        int32_t *ids = buffer<int32_t>(slots);
        for (int64_t i = 0; i < tokens * hidden; i++) x[i] = (float)(int)(draw() % 2001 - 1000) / 500.0f;
        for (int64_t i = 0; i < slots; i++) {
            ids[i] = draw() % 8 == 0 ? 65535 : (int32_t)(draw() % experts);
            gates[i] = (float)(draw() % 100) / 100.0f;
        }
        for (int32_t &f : job.weight_format_of_projection) f = format;
        job.activation_mode = mode, job.hidden_size = hidden, job.intermediate_size = size;
        const int64_t padded_h = tiles(hidden, 64) * 64, padded_i = tiles(size, 64) * 64;
        job.expert_weights = buffer<const void *>(experts + 1);
        job.pair_start = buffer<int64_t>(experts + 2);
        job.token_of_pair = buffer<int32_t>(std::max(slots, tokens));
        job.tokens_q = buffer<uint8_t>(tokens * padded_h * number);
        job.tokens_scale = buffer<float>(tokens * padded_h / 32);
        job.tokens_offset = buffer<int32_t>(tokens * padded_h / 32);
        job.hidden_q = buffer<uint8_t>(slots * padded_i * number);
        job.hidden_scale = buffer<float>(slots * padded_i / 32);
        job.hidden_offset = buffer<int32_t>(slots * padded_i / 32);
        job.output = buffer<float>(std::max(slots * down_rows, tokens * up_rows) * 16);
        if (moelab_kernels(isa, format, mode, &table)) std::abort();
        forward.job = &job, forward.table = &table, forward.counters = &counters;
        forward.x = x, forward.x_stride = hidden, forward.num_tokens = tokens, forward.top_k = top_k;
        forward.expert_ids = ids, forward.gate_weights = gates, forward.y = buffer<float>(tokens * hidden);
        forward.num_experts = experts, forward.address_of_expert = addresses.data();
        forward.count_of_expert = buffer<int64_t>(experts + 1), forward.pair_of_slot = buffer<int64_t>(slots);
        forward.smallest_up = forward.smallest_down = 1, forward.largest_up = 2, forward.largest_down = 5;
    }
    layer(const layer &) = delete;

    std::vector<float> run(moelab_pool *pool, bool linear = false) {
        counters = sized<moelab_counters>();
        const int32_t status = linear ? moelab_linear_forward(pool, &forward) : moelab_moe_forward(pool, &forward);
        if (status) std::printf("status %d\n", status), std::exit(1);
        if (!linear) return std::vector<float>(forward.y, forward.y + tokens * hidden);
        std::vector<float> rows;
        for (int64_t t = 0; t < tokens; t++)
            rows.insert(rows.end(), job.output + t * up_rows * 16, job.output + t * up_rows * 16 + size);
        return rows;
    }

    bool is_used(int64_t expert) const {
        return std::find(forward.expert_ids, forward.expert_ids + tokens * top_k, expert) !=
               forward.expert_ids + tokens * top_k;
    }
};

/* The node with fewest bytes so far that has a copy. */
static int64_t lightest(int64_t num_jobs, const int64_t *masks, const int64_t *sizes, int64_t num_tiers,
                        const double *slowness, int32_t *tier_of, double *loads, int64_t *) {
    for (int64_t n = 0; n < num_tiers; n++) loads[n] = 0.0;
    for (int64_t job = 0; job < num_jobs; job++) {
        int32_t best = -1;
        for (int32_t n = 0; n < num_tiers; n++)
            if (masks[job] >> n & 1 && (best < 0 || loads[n] < loads[best])) best = n;
        if (best < 0) return -1;
        tier_of[job] = best;
        loads[best] += (double)sizes[job] * slowness[best];
    }
    return 0;
}

/* Every expert cut by lot, every piece on one or more nodes; tables that are exactly as long as the header says. */
struct placed {
    moelab_placement p = sized<moelab_placement>();
    std::vector<int64_t> piece_of_expert, group, groups, row, rows, bytes, mask, address, numbers[9], late_bytes;
    std::vector<double> slowness, loads;
    std::vector<int32_t> node_of_job;
    std::vector<const void *> weights;
    std::vector<uint8_t> late;
    std::vector<block> copies;

    placed(const layer &of, int64_t nodes, std::mt19937 &draw) {
        for (int64_t e = 0; e < of.experts; e++) {
            piece_of_expert.push_back((int64_t)group.size());
            std::vector<int64_t> at{0, of.groups}, down{0, of.down_rows};
            for (int64_t cuts = draw() % 3; cuts > 0; cuts--) at.push_back(draw() % of.groups);
            std::sort(at.begin(), at.end());
            at.erase(std::unique(at.begin(), at.end()), at.end());
            /* Output rows of a piece: perhaps none. */
            while (down.size() < at.size()) down.push_back(draw() % (of.down_rows + 1));
            std::sort(down.begin(), down.end());
            for (size_t i = 0; i + 1 < at.size(); i++) add(of, e, at[i], at[i + 1], down[i], down[i + 1], nodes, draw);
            late.push_back(draw() % 2);
        }
        piece_of_expert.push_back((int64_t)group.size());
        const int64_t pieces = (int64_t)group.size();
        for (auto &each : numbers) each.assign(pieces + 1, 0);
        slowness.assign(nodes, 1.0), loads.assign(nodes, 0.0), late_bytes.assign(nodes, 0);
        node_of_job.assign(pieces, 0), weights.assign(pieces, nullptr);
        p.num_nodes = nodes, p.piece_of_expert = piece_of_expert.data(), p.first_group = group.data();
        p.num_groups = groups.data(), p.first_row = row.data(), p.num_rows = rows.data();
        p.piece_bytes = bytes.data(), p.nodes_of_piece = mask.data(), p.address_of_copy = address.data();
        p.slowness = slowness.data(), p.dispatch = lightest, p.masks = numbers[0].data(), p.sizes = numbers[1].data();
        p.node_of_job = node_of_job.data(), p.piece_of_job = numbers[2].data(), p.expert_of_job = numbers[3].data();
        p.loads = loads.data(), p.scratch = numbers[4].data(), p.expert_of_entry = numbers[5].data();
        p.weights_of_entry = weights.data(), p.group_of_entry = numbers[6].data();
        starts.assign(2 * (pieces + 1), 0);
        p.row_of_entry = numbers[7].data(), p.up_start = starts.data(), p.down_start = starts.data() + pieces + 1;
        p.late_of_expert = late.data(), p.late_bytes_of_node = late_bytes.data();
    }
    std::vector<int64_t> starts;
    placed(const placed &) = delete;

    void add(const layer &of, int64_t expert, int64_t first, int64_t stop, int64_t first_row, int64_t stop_row,
             int64_t nodes, std::mt19937 &draw) {
        const int64_t up = (std::min(2 * stop, of.up_rows) - 2 * first) * of.up_bytes;
        const int64_t down = (stop_row - first_row) * of.down_bytes;
        group.push_back(first), groups.push_back(stop - first);
        row.push_back(first_row), rows.push_back(stop_row - first_row), bytes.push_back(2 * up + down);
        const uint8_t *from = of.whole[expert].get();
        const int64_t chosen = 1 + draw() % ((1 << nodes) - 1);
        mask.push_back(chosen);
        for (int64_t n = 0; n < nodes; n++) {
            address.push_back(0);
            if (!(chosen >> n & 1)) continue;
            copies.push_back(block_of(2 * up + down));
            uint8_t *to = copies.back().get();
            std::memcpy(to, from + 2 * first * of.up_bytes, up);
            std::memcpy(to + up, from + (of.up_rows + 2 * first) * of.up_bytes, up);
            std::memcpy(to + 2 * up, from + 2 * of.up_rows * of.up_bytes + first_row * of.down_bytes, down);
            address.back() = (int64_t)to;
        }
    }
};

static bool same(const std::vector<float> &a, const std::vector<float> &b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

static void expect(bool holds, const char *what, int round) {
    if (holds) return;
    std::printf("round %d: %s\n", round, what);
    std::exit(1);
}

static void in_pieces(moelab_pool *pool, int64_t nodes, const char *isa, int format, int mode, int round) {
    std::mt19937 draw(round);
    layer of(isa, format, mode, draw, 1 + draw() % 5);
    const std::vector<float> alone = of.run(nullptr);
    const uint64_t all_bytes = of.counters.bytes_of_node[0];
    placed on(of, nodes, draw);
    of.forward.placement = &on.p;
    int64_t late = 0;
    for (int64_t e = 0; e < of.experts; e++)
        if (of.is_used(e) && on.late[e])
            for (int64_t i = on.piece_of_expert[e]; i < on.piece_of_expert[e + 1]; i++) late += on.bytes[i];
    for (int times = 1; times <= 2; times++) {
        expect(same(of.run(pool), alone), "pieces and copies: results differ", round);
        uint64_t read = 0;
        int64_t counted = 0;
        for (int64_t n = 0; n < nodes; n++) read += of.counters.bytes_of_node[n], counted += on.late_bytes[n];
        expect(read == all_bytes, "pieces and copies: bytes differ", round);
        expect(counted == times * late, "late bytes differ", round);
    }
    /* An expert without a copy is refused, and the tables serve the next step. */
    on.p.dispatch = nullptr;
    for (int64_t &each : on.mask) each &= -each;
    expect(same(of.run(pool), alone), "one copy each: results differ", round);
    std::vector<int64_t> none(of.experts + 1, 0);
    on.p.piece_of_expert = none.data();
    bool any = false;
    for (int64_t e = 0; e < of.experts; e++) any = any || of.is_used(e);
    const int32_t status = moelab_moe_forward(pool, &of.forward);
    expect(status == (any ? MOELAB_NO_HOME : MOELAB_OK), "without homes: another status", round);
}

/* Rows of one expert, of one matrix, and of matrices of which some have no token. */
static void with_shared_rows(moelab_pool *pool, const char *isa, int format, int mode, int round) {
    for (int kind = 0; kind < 3; kind++) {
        std::mt19937 draw(1000 + round);
        layer of(isa, format, mode, draw, kind == 0 ? 1 : 1 + draw() % 6);
        if (kind > 0) of.forward.top_k = of.top_k = 1;
        if (kind == 1) of.forward.expert_ids = nullptr;
        int32_t *ids = (int32_t *)of.forward.expert_ids;
        for (int64_t i = 0; kind == 2 && i < of.tokens; i++) ids[i] = (int32_t)(draw() % of.experts);
        if (kind == 2) std::sort(ids, ids + of.tokens); /* rows are pairs */
        const std::vector<float> alone = of.run(nullptr, kind > 0);
        const uint64_t bytes = of.counters.bytes_of_node[0];
        const std::vector<int32_t> shared(of.experts, MOELAB_ALL_NODES);
        of.forward.node_of_expert = shared.data();
        expect(same(of.run(pool, kind > 0), alone), "shared rows: results differ", round);
        uint64_t read = 0;
        for (uint64_t of_node : of.counters.bytes_of_node) read += of_node;
        expect(read == bytes, "shared rows: bytes differ", round);
    }
}

struct counted_work {
    std::atomic<int> done{0};
    int by_worker[8] = {}; /* plain: the sanitizer sees whether wait orders them */
};

static void count(void *context, int32_t worker, int32_t) {
    counted_work *work = (counted_work *)context;
    work->by_worker[worker]++;
    work->done.fetch_add(1, std::memory_order_relaxed);
}

/* The caller does its share, or something else, between start and wait; a start waits for the run before it. */
static void in_two_calls(moelab_pool *pool, int workers) {
    counted_work work;
    for (int i = 1; i <= 50; i++) {
        moelab_pool_start(pool, count, &work);
        count(&work, 0, workers);
        if (i % 3) moelab_pool_wait(pool);
    }
    moelab_pool_wait(pool);
    moelab_pool_wait(pool);
    expect(work.done.load() == 50 * workers, "start and wait: not every worker ran", 0);
    for (int w = 0; w < workers; w++) expect(work.by_worker[w] == 50, "start and wait: a worker ran twice", w);
}

int main(int argc, char **argv) {
    const char *isa = argc > 1 ? argv[1] : "generic";
    const int rounds = argc > 2 ? std::atoi(argv[2]) : 50;
    if (!moelab_isa_supported(isa)) { std::printf("%s is not supported here\n", isa); return 2; }
    const int modes[][2] = {{MOELAB_FLOAT32, MOELAB_ACT_F32}, {MOELAB_BF16, MOELAB_ACT_BF16},
                            {MOELAB_INT4_G32, MOELAB_ACT_INT16}, {MOELAB_INT4_G32, MOELAB_ACT_INT8},
                            {MOELAB_INT8_G32, MOELAB_ACT_INT16}, {MOELAB_INT8_G32, MOELAB_ACT_INT8}};
    const int32_t nodes_of_workers[][4] = {{0, 1, 0, 1}, {0, 0, 1, 2}, {0, 1, 1, 1}};
    for (int pools = 0; pools < 3; pools++)
        for (int workers = pools == 1 ? 4 : 2; workers <= 4; workers++) {
            moelab_pool *pool = moelab_pool_create(workers, nullptr, nodes_of_workers[pools], 20000);
            if (!pool) return 2;
            for (int i = 0; i < rounds; i++) {
                int mode[] = {modes[i % 6][0], modes[i % 6][1]};
                const bool tiles_alone = std::strcmp(isa, "amx") == 0;
                if (tiles_alone && mode[0] == MOELAB_FLOAT32) continue; /* has no float32 */
                if (tiles_alone && mode[1] == MOELAB_ACT_INT16) mode[1] = MOELAB_ACT_BF16; /* nor 16-bit integers */
                in_pieces(pool, pools == 1 ? 3 : 2, isa, mode[0], mode[1], i);
                with_shared_rows(pool, isa, mode[0], mode[1], i);
            }
            in_two_calls(pool, workers);
            moelab_pool_destroy(pool);
        }
    std::printf("ok\n");
    return 0;
}
