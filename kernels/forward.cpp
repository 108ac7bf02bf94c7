/* One layer-step on a pool, as one run: see step.h. */
#include "step.h"

static void work(void *context, int32_t worker, int32_t num_workers) {
    run_share((step *)context, worker, num_workers);
}

static int32_t run_step(moelab_pool *pool, moelab_forward *forward, bool linear) {
    step s;
    s.start_ns = now_ns();
    const int32_t status = prepare_step(&s, pool, forward, linear);
    if (status) return status;
    if (pool)
        pool->run(work, &s);
    else
        work(&s, 0, 1);
    return finish_step(&s);
}

extern "C" MOELAB_API int32_t moelab_moe_forward(moelab_pool *pool, moelab_forward *forward) {
    return run_step(pool, forward, false);
}

extern "C" MOELAB_API int32_t moelab_linear_forward(moelab_pool *pool, moelab_forward *forward) {
    return run_step(pool, forward, true);
}
