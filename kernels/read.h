/* Sums of 64-bit words by `streams` runs of equal length that advance together, `unroll` vectors of each at a
 * time: the loop of every ISA's read.cpp, over its vector V: `zero()`, `add(sum, from)`, `total(sum)`, `bytes`.
 * With `pages` a run asks for the first line of its next 4 KB page when it enters one, where hardware prefetchers
 * begin anew. */
#ifndef MOELAB_READ_H
#define MOELAB_READ_H

#include <cstdint>

template <class V, int streams, int unroll, bool pages = false>
static uint64_t read_streams(const void *data, uint64_t bytes) {
    const uint8_t *from = (const uint8_t *)data;
    const uint64_t step = unroll * V::bytes, length = bytes / streams / step * step;
    typename V::type sums[streams * unroll];
    for (auto &sum : sums) sum = V::zero();
    for (uint64_t at = 0; at < length; at += step)
        for (int s = 0; s < streams; s++) {
            const uint64_t here = s * length + at;
            if (pages && here % 4096 < step) __builtin_prefetch(from + here + 4096, 0, 2);
            for (int u = 0; u < unroll; u++)
                sums[s * unroll + u] = V::add(sums[s * unroll + u], from + here + u * V::bytes);
        }
    uint64_t total = 0;
    for (const auto &sum : sums) total += V::total(sum);
    for (uint64_t at = length * streams; at < bytes; at += 8) total += *(const uint64_t *)(from + at);
    return total;
}

#endif
