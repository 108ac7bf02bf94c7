/* Time as all counters of this library take it. */
#ifndef MOELAB_CLOCK_H
#define MOELAB_CLOCK_H

#include <chrono>
#include <cstdint>

static inline int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

#endif
