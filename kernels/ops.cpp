/* A list of operations in one run of the pool. */
#include <cstring>

#include "attend.h"
#include "small_ops.h"
#include "step.h"

extern "C" MOELAB_API int64_t moelab_attention_chunks(int64_t length) {
    const int64_t chunk = chunk_of_length(length);
    return (length + chunk - 1) / chunk;
}

/* Heads of a chunk that one worker takes at once: enough for the block of positions in its cache to pay, few
 * enough for all workers to have some. */
static const int64_t HEADS_AT_ONCE = 32;

/* Workers draw: chunks are not of one length. */
static void attend_share(const moelab_attention *a, std::atomic<int64_t> &next) {
    const int64_t groups = tiles_of(a->num_heads, HEADS_AT_ONCE);
    int64_t first = 0, i = next.fetch_add(1, std::memory_order_relaxed); /* first: of the token */
    for (int64_t t = 0; t < a->num_tokens; t++) {
        const int64_t stop = first + moelab_attention_chunks(a->position_of_token[t] + 1) * groups;
        for (; i < stop; i = next.fetch_add(1, std::memory_order_relaxed)) {
            const int64_t head = (i - first) % groups * HEADS_AT_ONCE;
            a->attend(a, t, (i - first) / groups, head, smaller(head + HEADS_AT_ONCE, a->num_heads));
        }
        first = stop;
    }
}

static void merge_share(const moelab_attention *a, int32_t worker, int32_t num_workers) {
    const share rows(a->num_heads * a->num_tokens, worker, num_workers);
    const int64_t state_size = a->kv_rank + 2;
    for (int64_t row = rows.start; row < rows.stop; row++) {
        const int64_t head = row / a->num_tokens, token = row % a->num_tokens;
        const int64_t chunks = moelab_attention_chunks(a->position_of_token[token] + 1);
        const float *states = a->partial + (token * a->max_chunks * a->num_heads + head) * state_size;
        const int64_t stride = a->num_heads * state_size; /* from chunk to chunk */
        float largest = states[0], total = 0.0f, factor[ATTEND_CHUNKS];
        for (int64_t c = 1; c < chunks; c++) largest = states[c * stride] > largest ? states[c * stride] : largest;
        for (int64_t c = 0; c < chunks; c++) {
            factor[c] = clamped_exp(states[c * stride] - largest);
            total += factor[c] * states[c * stride + 1];
        }
        float *mixed = a->mixed + row * a->mixed_stride;
        for (int64_t i = 0; i < a->kv_rank; i++) mixed[i] = 0.0f;
        for (int64_t c = 0; c < chunks; c++) {
            const float weight = factor[c] / total, *sum = states + c * stride + 2;
            for (int64_t i = 0; i < a->kv_rank; i++) mixed[i] += weight * sum[i];
        }
    }
}

struct op_run {
    moelab_pool *pool;
    moelab_op *ops;
    int64_t num_ops;
    step steps[2]; /* the next one is prepared while others may still be in this one */
    std::atomic<int64_t> next[2]; /* of attention, alike */
    int32_t status[2]; /* of the run, likewise: written by worker 0 before a meeting, read by all after it */
    /* Worker 0's own: */
    int32_t failed;
    int64_t failed_op;
    int64_t start_ns; /* of this operation: the last meeting */
};

static bool is_step(const moelab_op &op) { return op.kind == MOELAB_OP_LINEAR || op.kind == MOELAB_OP_EXPERTS; }

/* The first that fails is the one that is told. */
static void note(op_run *run, int64_t i, int32_t status) {
    if (!status || run->failed) return;
    run->failed = status;
    run->failed_op = i;
}

static int32_t check_attention(const moelab_attention *a, int64_t kind) {
    if (!fits(a)) return MOELAB_BAD_STRUCT;
    if (kind == MOELAB_OP_LATENT || kind == MOELAB_OP_QUERY)
        return a->rope_dim >= 0 && a->rope_dim <= MAX_ROPE_DIM && a->rope_dim % 2 == 0 ? MOELAB_OK : MOELAB_BAD_SHAPE;
    if (kind == MOELAB_OP_ATTEND && !a->attend) return MOELAB_UNSUPPORTED;
    if (kind == MOELAB_OP_ATTEND && a->kv_rank + a->rope_dim > ATTEND_WIDTH) return MOELAB_BAD_SHAPE;
    for (int64_t t = 0; t < a->num_tokens; t++) {
        const int64_t position = a->position_of_token[t];
        if (position < 0 || moelab_attention_chunks(position + 1) > a->max_chunks) return MOELAB_BAD_SHAPE;
    }
    return MOELAB_OK;
}

static int32_t check_route(const moelab_route *r) {
    if (!fits(r)) return MOELAB_BAD_STRUCT;
    const bool groups = r->n_group >= 1 && r->n_group <= MAX_GROUPS && r->num_experts % r->n_group == 0;
    if (!groups || r->top_k < 1 || r->top_k > r->num_experts) return MOELAB_BAD_SHAPE;
    if (r->n_group == 1) return MOELAB_OK;
    /* A group is worth its two best; fewer experts in the groups that are kept would be chosen twice. */
    const int64_t size = r->num_experts / r->n_group;
    const bool kept = r->topk_group >= 1 && r->topk_group <= r->n_group && r->top_k <= size * r->topk_group;
    return size >= 2 && kept ? MOELAB_OK : MOELAB_BAD_SHAPE;
}

template <class S>
static int32_t check_struct(const void *arguments) {
    return fits((const S *)arguments) ? MOELAB_OK : MOELAB_BAD_STRUCT;
}

static int32_t prepare(op_run *run, int64_t i) {
    moelab_op &op = run->ops[i];
    if (!fits(&op)) return MOELAB_BAD_STRUCT;
    switch (op.kind) {
    case MOELAB_OP_NORM: return check_struct<moelab_norm>(op.arguments);
    case MOELAB_OP_LINEAR:
    case MOELAB_OP_EXPERTS: {
        moelab_forward *forward = (moelab_forward *)op.arguments;
        return prepare_step(&run->steps[i % 2], run->pool, forward, op.kind == MOELAB_OP_LINEAR);
    }
    case MOELAB_OP_ATTEND: run->next[i % 2].store(0, std::memory_order_relaxed); /* fallthrough */
    case MOELAB_OP_LATENT:
    case MOELAB_OP_QUERY:
    case MOELAB_OP_MERGE: return check_attention((const moelab_attention *)op.arguments, op.kind);
    case MOELAB_OP_GATHER: return check_struct<moelab_gather>(op.arguments);
    case MOELAB_OP_ROUTE: return check_route((const moelab_route *)op.arguments);
    case MOELAB_OP_ADD: return check_struct<moelab_add>(op.arguments);
    default: return MOELAB_UNSUPPORTED;
    }
}

static void op_share(op_run *run, int64_t i, int32_t worker, int32_t num_workers) {
    void *arguments = run->ops[i].arguments;
    switch (run->ops[i].kind) {
    case MOELAB_OP_NORM: return norm_share((const moelab_norm *)arguments, worker, num_workers);
    case MOELAB_OP_LINEAR:
    case MOELAB_OP_EXPERTS: return run_share(&run->steps[i % 2], worker, num_workers);
    case MOELAB_OP_LATENT: return latent_share((const moelab_attention *)arguments, worker, num_workers);
    case MOELAB_OP_QUERY: return query_share((const moelab_attention *)arguments, worker, num_workers);
    case MOELAB_OP_ATTEND: return attend_share((const moelab_attention *)arguments, run->next[i % 2]);
    case MOELAB_OP_MERGE: return merge_share((const moelab_attention *)arguments, worker, num_workers);
    case MOELAB_OP_GATHER: return gather_share((const moelab_gather *)arguments, worker, num_workers);
    case MOELAB_OP_ADD: return add_share((const moelab_add *)arguments, worker, num_workers);
    default: /* MOELAB_OP_ROUTE */
        if (worker == 0) note(run, i, route_tokens((moelab_route *)arguments));
    }
}

/* Worker 0 alone, after the meeting at the end of operation i: counts it, and begins the time of the next. */
static void finish(op_run *run, int64_t i) {
    const int64_t now = now_ns();
    run->ops[i].ns += (uint64_t)(now - run->start_ns);
    if (is_step(run->ops[i])) note(run, i, finish_step(&run->steps[i % 2]));
    run->start_ns = now;
    if (i + 1 < run->num_ops) run->steps[(i + 1) % 2].start_ns = now;
}

static void work(void *context, int32_t worker, int32_t num_workers) {
    op_run *run = (op_run *)context;
    for (int64_t i = 0; i < run->num_ops; i++) {
        op_share(run, i, worker, num_workers);
        /* Worker 0 alone prepares: what the next list is made from (a router's choice) is its own doing. */
        if (worker == 0) {
            if (!run->failed && i + 1 < run->num_ops) note(run, i + 1, prepare(run, i + 1));
            run->status[i % 2] = run->failed;
        }
        if (run->pool) run->pool->all.arrive();
        if (worker == 0) finish(run, i);
        if (run->status[i % 2]) return;
    }
}

extern "C" MOELAB_API int32_t moelab_run_ops(moelab_pool *pool, moelab_op *ops, int64_t num_ops, int64_t *failed_op) {
    if (num_ops < 1) return MOELAB_OK;
    op_run run;
    run.pool = pool;
    run.ops = ops;
    run.num_ops = num_ops;
    run.failed = run.status[0] = run.status[1] = MOELAB_OK;
    run.start_ns = run.steps[0].start_ns = now_ns();
    note(&run, 0, prepare(&run, 0));
    if (!run.failed) {
        if (pool)
            pool->run(work, &run);
        else
            work(&run, 0, 1);
    }
    if (run.failed && failed_op) *failed_op = run.failed_op;
    return run.failed;
}
