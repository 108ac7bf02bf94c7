/* One layer-step of a set of matrices: quantise | gate_up | down | combine, or quantise | linear, cut into shares
 * of workers.
 *
 * A worker draws units of its own node's experts, or rows, only. Chunks are a share of what is left, so that they
 * are long runs of memory at first and short at the end, when the last worker would otherwise be waited for. Who calls
 * the shares, and what comes before and after them, is forward.cpp's (one step) and ops.cpp's (many in a row). */
#ifndef MOELAB_STEP_H
#define MOELAB_STEP_H

#include <atomic>

#include "clock.h"
#include "combine.h"
#include "group.h"
#include "phases.h"
#include "pool.h"

struct alignas(64) unit_counter {
    std::atomic<int64_t> next{0};
    int64_t stop = 0;
};

/* When the workers were done with a phase: the last of each node, the first and the last of all. */
struct phase_ends {
    std::atomic<int64_t> last_ns_of_node[MOELAB_MAX_NODES];
    std::atomic<int64_t> first_ns, last_ns;
};

struct step {
    moelab_pool *pool;
    const moelab_forward *forward;
    bool linear;
    int32_t num_nodes;
    int64_t start_ns; /* the caller's own: set by who runs the step, when its workers begin */
    std::atomic<int32_t> status;
    unit_counter up[MOELAB_MAX_NODES], down[MOELAB_MAX_NODES];
    int32_t workers_of_node[MOELAB_MAX_NODES];
    std::atomic<uint64_t> bytes_of_node[MOELAB_MAX_NODES];
    phase_ends ends[2]; /* of gate_up or linear, and of down */
};

static inline void raise_to(std::atomic<int64_t> &value, int64_t to) {
    int64_t old = value.load(std::memory_order_relaxed);
    while (old < to && !value.compare_exchange_weak(old, to, std::memory_order_relaxed)) {
    }
}

static inline void lower_to(std::atomic<int64_t> &value, int64_t to) {
    int64_t old = value.load(std::memory_order_relaxed);
    while (old > to && !value.compare_exchange_weak(old, to, std::memory_order_relaxed)) {
    }
}

/* Its rows are shared out over all nodes. */
static inline bool is_shared(const moelab_forward *f) {
    return f->node_of_expert && f->node_of_expert[0] == MOELAB_ALL_NODES;
}

/* Of `units` of all matrices, each of `units_of_one`, those before `unit` that belong to an active one. */
static inline int64_t active_units(const moelab_forward *f, int64_t units_of_one, int64_t unit) {
    const moelab_moe_job *job = f->job;
    if (job->num_experts == f->num_experts || !f->expert_ids) return unit;
    const int64_t matrix = unit / units_of_one;
    int64_t active = 0, passed = 0; /* both rise: active ones stand in the order of all */
    while (active < job->num_experts && passed < matrix)
        if (job->expert_weights[active] == (const void *)f->address_of_expert[passed++]) active++;
    const bool is_active =
        active < job->num_experts && job->expert_weights[active] == (const void *)f->address_of_expert[matrix];
    return active * units_of_one + (is_active ? unit % units_of_one : 0);
}

/* A step that knows one node is everybody's. */
static inline int32_t node_of(const step *s, int32_t worker) {
    return s->pool && s->num_nodes > 1 ? s->pool->node_of_worker[worker] : 0;
}

/* Every node's part of the units: as many as it has of the workers. */
static inline void share_units(step *s, int64_t up_units, int64_t down_units, int32_t num_workers) {
    const moelab_forward *f = s->forward;
    const int64_t matrices = s->linear && !f->expert_ids ? 1 : f->num_experts;
    int64_t up = 0, down = 0, num_before = 0;
    for (int32_t n = 0; n < s->num_nodes; n++) {
        num_before += s->workers_of_node[n];
        s->up[n].next.store(up, std::memory_order_relaxed);
        s->down[n].next.store(down, std::memory_order_relaxed);
        s->up[n].stop = up = active_units(f, up_units, matrices * up_units * num_before / num_workers);
        s->down[n].stop = down = active_units(f, down_units, matrices * down_units * num_before / num_workers);
    }
}

/* Sorts the pairs and sets the counters; by one thread, before any share. */
static inline int32_t prepare_step(step *s, moelab_pool *pool, moelab_forward *forward, bool linear) {
    if (!fits(forward)) return MOELAB_BAD_STRUCT;
    if (!fits(forward->job) || !fits(forward->table)) return MOELAB_BAD_STRUCT;
    if (forward->counters && !fits(forward->counters)) return MOELAB_BAD_STRUCT;
    s->pool = pool;
    s->forward = forward;
    s->linear = linear;
    if (forward->placement && (linear || !fits(forward->placement))) return MOELAB_BAD_STRUCT;
    const bool shared = is_shared(forward) && pool && !forward->placement;
    if (shared && !linear && forward->num_experts != 1) return MOELAB_BAD_SHAPE;
    const bool is_placed = forward->node_of_expert && pool;
    const int64_t num_nodes = forward->placement ? forward->placement->num_nodes : is_placed ? pool->num_nodes : 1;
    if (num_nodes < 1 || num_nodes > MOELAB_MAX_NODES) return MOELAB_BAD_SHAPE;
    s->num_nodes = (int32_t)num_nodes;
    if (forward->placement && s->num_nodes > 1 && (!pool || pool->num_nodes != s->num_nodes)) return MOELAB_BAD_SHAPE;
    moelab_moe_job *job = forward->job;
    job->placement = forward->placement;
    int64_t stop_of_node[MOELAB_MAX_NODES] = {1};
    if (linear && !forward->expert_ids) {
        *(const void **)job->expert_weights = (const void *)forward->address_of_expert[0];
        job->num_experts = 1;
        job->num_pairs = job->num_tokens = forward->num_tokens;
        for (int64_t t = 0; t < forward->num_tokens; t++) ((int32_t *)job->token_of_pair)[t] = (int32_t)t;
        ((int64_t *)job->pair_start)[0] = 0;
        ((int64_t *)job->pair_start)[1] = forward->num_tokens;
    } else {
        /* Where rows are shared every node has every expert, and all are sorted as for one node. */
        const int32_t status = group_pairs(forward, shared ? 1 : s->num_nodes, stop_of_node);
        if (status) return status;
    }
    const int64_t up_units = tiles_of(job->intermediate_size, linear ? 16 : 32);
    const int64_t down_units = tiles_of(job->hidden_size, 16);
    const int32_t num_workers = pool ? pool->num_workers : 1;
    for (int32_t n = 0; n < s->num_nodes; n++) {
        s->workers_of_node[n] = 0;
        s->bytes_of_node[n].store(0, std::memory_order_relaxed);
        for (phase_ends &ends : s->ends) ends.last_ns_of_node[n].store(0, std::memory_order_relaxed);
    }
    for (int32_t w = 0; w < num_workers; w++) s->workers_of_node[node_of(s, w)]++;
    const moelab_placement *placed = job->placement;
    int64_t begin = 0;
    if (shared) share_units(s, up_units, down_units, num_workers);
    for (int32_t n = 0; n < s->num_nodes && !shared; n++) {
        const int64_t stop = stop_of_node[n];
        if (stop > begin && s->workers_of_node[n] == 0) return MOELAB_BAD_SHAPE; /* nobody would compute them */
        s->up[n].next.store(placed ? placed->up_start[begin] : begin * up_units, std::memory_order_relaxed);
        s->up[n].stop = placed ? placed->up_start[stop] : stop * up_units;
        s->down[n].next.store(placed ? placed->down_start[begin] : begin * down_units, std::memory_order_relaxed);
        s->down[n].stop = placed ? placed->down_start[stop] : stop * down_units;
        begin = stop;
    }
    s->status.store(MOELAB_OK, std::memory_order_relaxed);
    for (phase_ends &ends : s->ends) {
        ends.first_ns.store(INT64_MAX, std::memory_order_relaxed);
        ends.last_ns.store(0, std::memory_order_relaxed);
    }
    return MOELAB_OK;
}

static inline void run_phase(step *s, moelab_phase_fn phase, unit_counter &units, int32_t node, int64_t smallest,
                             int64_t largest) {
    uint64_t bytes = 0;
    int64_t start = units.next.load(std::memory_order_relaxed);
    while (start < units.stop) {
        const int32_t workers = s->workers_of_node[node];
        int64_t count = workers == 1 ? units.stop - start : (units.stop - start) / (2 * workers);
        count = count < smallest ? smallest : count > largest && workers > 1 ? largest : count;
        if (count > units.stop - start) count = units.stop - start;
        if (!units.next.compare_exchange_weak(start, start + count, std::memory_order_relaxed)) continue;
        const int32_t status = phase(s->forward->job, start, start + count, &bytes);
        if (status) s->status.store(status, std::memory_order_relaxed);
        start = units.next.load(std::memory_order_relaxed);
    }
    s->bytes_of_node[node].fetch_add(bytes, std::memory_order_relaxed);
}

static inline void quantise_share(const step *s, int32_t worker, int32_t num_workers) {
    const moelab_forward *f = s->forward;
    const moelab_moe_job *job = f->job;
    const int64_t padded = tiles_of(job->hidden_size, 64) * 64, groups = padded / 32, total = f->num_tokens * groups;
    const int64_t number_bytes = activation_bytes(job->activation_mode);
    for (int64_t i = total * worker / num_workers; i < total * (worker + 1) / num_workers; i++) {
        const int64_t t = i / groups, g = i % groups, left = job->hidden_size - g * 32;
        const int64_t count = left < 0 ? 0 : smaller(left, 32);
        uint8_t *q = (uint8_t *)job->tokens_q + t * padded * number_bytes;
        quantise_group(job->activation_mode, f->x + t * f->x_stride + g * 32, count, g, q,
                       (float *)job->tokens_scale + t * groups, (int32_t *)job->tokens_offset + t * groups);
    }
}

static inline void combine_share(const step *s, int32_t worker, int32_t num_workers) {
    const moelab_forward *f = s->forward;
    const int64_t size = f->job->hidden_size, stride = tiles_of(size, 16) * 16, total = f->num_tokens * size;
    int64_t i = total * worker / num_workers;
    const int64_t stop = total * (worker + 1) / num_workers;
    while (i < stop) { /* the part of one token that is this worker's */
        const int64_t t = i / size, h = i % size, count = smaller(size - h, stop - i);
        combine_slots(f->top_k, count, stride, f->pair_of_slot + t * f->top_k, f->gate_weights + t * f->top_k,
                      f->job->output + h, f->y + i);
        i += count;
    }
}

/* A worker's own work of a phase is done; its wait for the others begins. */
static inline void note_end(step *s, phase_ends &ends, int32_t node) {
    if (!s->forward->counters) return;
    const int64_t now = now_ns();
    raise_to(ends.last_ns_of_node[node], now);
    raise_to(ends.last_ns, now);
    lower_to(ends.first_ns, now);
}

/* The share of one worker; all workers of the pool meet inside. */
static inline void run_share(step *s, int32_t worker, int32_t num_workers) {
    const moelab_forward *f = s->forward;
    const int32_t node = node_of(s, worker);
    quantise_share(s, worker, num_workers);
    if (s->pool) s->pool->all.arrive();
    if (f->table->begin) f->table->begin();
    if (s->linear) {
        run_phase(s, f->table->linear, s->up[node], node, f->smallest_up, f->largest_up);
        note_end(s, s->ends[0], node);
    } else {
        run_phase(s, f->table->gate_up, s->up[node], node, f->smallest_up, f->largest_up);
        note_end(s, s->ends[0], node);
        if (s->pool) s->pool->all.arrive();
        run_phase(s, f->table->down, s->down[node], node, f->smallest_down, f->largest_down);
        note_end(s, s->ends[1], node);
    }
    if (f->table->end) f->table->end();
    if (s->linear) return;
    if (s->pool) s->pool->all.arrive();
    combine_share(s, worker, num_workers);
}

/* Adds the step to its counters; by one thread, after all shares. */
static inline int32_t finish_step(const step *s) {
    moelab_counters *counters = s->forward->counters;
    if (counters) {
        for (int32_t n = 0; n < s->num_nodes; n++)
            counters->bytes_of_node[n] += s->bytes_of_node[n].load(std::memory_order_relaxed);
        int64_t begin = s->start_ns; /* of a phase: where the last worker was done with the one before */
        for (int i = 0; i < (s->linear ? 1 : 2); i++) {
            const phase_ends &ends = s->ends[i];
            for (int32_t n = 0; n < s->num_nodes; n++) {
                const int64_t end = ends.last_ns_of_node[n].load(std::memory_order_relaxed);
                if (end) counters->ns_of_node[n] += (uint64_t)(end - begin);
            }
            begin = ends.last_ns.load(std::memory_order_relaxed);
            counters->tail_ns += (uint64_t)(begin - ends.first_ns.load(std::memory_order_relaxed));
        }
        counters->total_ns += (uint64_t)(now_ns() - s->start_ns);
        counters->num_calls++;
    }
    return s->status.load();
}

#endif
