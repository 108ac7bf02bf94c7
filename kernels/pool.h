/* Workers that spin for a while and then sleep. See moelab_kernels.h for what a caller may rely on. */
#ifndef MOELAB_POOL_H
#define MOELAB_POOL_H

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "moelab_kernels.h"

static inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Waits until `ready()`; gives the core away now and then, in case the one that is waited for needs it. */
template <class F>
static inline void spin_until(F ready) {
    for (int64_t spins = 1; !ready(); spins++) {
        pause_cpu();
        if (spins % 1024 == 0) std::this_thread::yield();
    }
}

/* All of `num` threads meet; reusable. */
class meeting {
public:
    void reset(int32_t num) { num_ = num; }
    void arrive() {
        const uint32_t round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
        } else {
            spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
        }
    }

private:
    alignas(64) std::atomic<int32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> round_{0};
    int32_t num_ = 1;
};

struct moelab_pool {
    int32_t num_workers = 1, num_nodes = 1;
    std::vector<int32_t> node_of_worker;
    int64_t spin_ns = 0;
    meeting all; /* of every worker, inside a run */

    alignas(64) std::atomic<uint64_t> run_number{0};
    alignas(64) std::atomic<int32_t> unfinished{0};
    moelab_work_fn work = nullptr;
    void *context = nullptr;
    bool ending = false; /* written before run_number */

    std::mutex mutex;
    std::condition_variable wake;
    std::atomic<int32_t> sleeping{0};
    std::atomic<int32_t> pinned{0};
    std::vector<std::thread> threads;

    /* The caller does worker 0's share between the two, or in `run`. */
    void start(moelab_work_fn function, void *of);
    void wait();
    void run(moelab_work_fn function, void *of);
};

#endif
