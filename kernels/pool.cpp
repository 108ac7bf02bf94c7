/* The pool: create, start, wait, destroy. The only place of the library that makes threads. */
#include "pool.h"

#include <new>

#include "clock.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

static bool pin_this_thread(int32_t core) {
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    if (core < 0 || core >= CPU_SETSIZE) return false;
    CPU_SET(core, &set);
    return pthread_setaffinity_np(pthread_self(), sizeof(set), &set) == 0;
#else
    (void)core;
    return false;
#endif
}

/* Returns when there is a run after `seen`: spins first, then sleeps. */
static void await_run(moelab_pool *pool, uint64_t seen) {
    const int64_t until = now_ns() + pool->spin_ns;
    do {
        for (int i = 0; i < 64; i++) {
            if (pool->run_number.load(std::memory_order_acquire) != seen) return;
            pause_cpu();
        }
        std::this_thread::yield();
    } while (now_ns() < until);
    std::unique_lock<std::mutex> lock(pool->mutex);
    /* Announced before the last look: the caller either sees the sleeper or the sleeper sees the run. */
    pool->sleeping.fetch_add(1, std::memory_order_seq_cst);
    pool->wake.wait(lock, [&] { return pool->run_number.load(std::memory_order_seq_cst) != seen; });
    pool->sleeping.fetch_sub(1, std::memory_order_relaxed);
}

static void work_until_end(moelab_pool *pool, int32_t worker, int32_t core) {
    if (core >= 0 && pin_this_thread(core)) pool->pinned.fetch_add(1, std::memory_order_relaxed);
    pool->unfinished.fetch_sub(1, std::memory_order_release);
    for (uint64_t seen = 0;;) {
        await_run(pool, seen);
        seen++;
        if (pool->ending) return;
        pool->work(pool->context, worker, pool->num_workers);
        pool->unfinished.fetch_sub(1, std::memory_order_release);
    }
}

static void start_run(moelab_pool *pool) {
    pool->run_number.fetch_add(1, std::memory_order_seq_cst);
    if (pool->sleeping.load(std::memory_order_seq_cst) > 0) {
        std::lock_guard<std::mutex> lock(pool->mutex);
        pool->wake.notify_all();
    }
}

void moelab_pool::start(moelab_work_fn function, void *of) {
    wait(); /* for workers of a run that nobody waited for */
    work = function;
    context = of;
    unfinished.store(num_workers - 1, std::memory_order_relaxed);
    if (num_workers > 1) start_run(this);
}

void moelab_pool::wait() {
    spin_until([&] { return unfinished.load(std::memory_order_acquire) == 0; });
}

void moelab_pool::run(moelab_work_fn function, void *of) {
    start(function, of);
    function(of, 0, num_workers);
    wait();
}

extern "C" MOELAB_API moelab_pool *moelab_pool_create(int32_t num_workers, const int32_t *core_of_worker,
                                                      const int32_t *node_of_worker, int64_t spin_ns) {
    if (num_workers < 1 || spin_ns < 0) return nullptr;
    for (int32_t w = 0; node_of_worker && w < num_workers; w++)
        if (node_of_worker[w] < 0 || node_of_worker[w] >= MOELAB_MAX_NODES) return nullptr;
    (void)moelab_amx(nullptr); /* a permission of the process, best asked for while it has few threads */
    moelab_pool *pool = new (std::nothrow) moelab_pool;
    if (!pool) return nullptr;
    pool->num_workers = num_workers;
    pool->spin_ns = spin_ns;
    pool->all.reset(num_workers);
    for (int32_t w = 0; w < num_workers; w++) {
        pool->node_of_worker.push_back(node_of_worker ? node_of_worker[w] : 0);
        if (pool->node_of_worker[w] >= pool->num_nodes) pool->num_nodes = pool->node_of_worker[w] + 1;
    }
    pool->unfinished.store(num_workers - 1, std::memory_order_relaxed);
    try {
        for (int32_t w = 1; w < num_workers; w++)
            pool->threads.emplace_back(work_until_end, pool, w, core_of_worker ? core_of_worker[w] : -1);
    } catch (...) { /* no more threads: end those that there are */
        pool->num_workers = 1 + (int32_t)pool->threads.size();
        moelab_pool_destroy(pool);
        return nullptr;
    }
    spin_until([&] { return pool->unfinished.load(std::memory_order_acquire) == 0; });
    return pool;
}

extern "C" MOELAB_API int32_t moelab_pool_pinned(const moelab_pool *pool) {
    return pool->pinned.load(std::memory_order_relaxed);
}

extern "C" MOELAB_API void moelab_pool_start(moelab_pool *pool, moelab_work_fn work, void *context) {
    pool->start(work, context);
}

extern "C" MOELAB_API void moelab_pool_wait(moelab_pool *pool) { pool->wait(); }

extern "C" MOELAB_API void moelab_pool_destroy(moelab_pool *pool) {
    if (!pool) return;
    pool->ending = true;
    start_run(pool);
    for (std::thread &thread : pool->threads) thread.join();
    delete pool;
}
