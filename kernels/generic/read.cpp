/* Read loops: sums of 64-bit words in several orders. The read limit is the best of them. */
#include "moelab_kernels.h"

/* Streams of equal length that advance together, each with `unroll` independent sums. */
template <int streams, int unroll>
static uint64_t read_streams(const uint64_t *words, uint64_t count) {
    const uint64_t length = count / streams / unroll * unroll;
    uint64_t sums[streams * unroll] = {0}, total = 0;
    for (uint64_t i = 0; i < length; i += unroll)
        for (int s = 0; s < streams; s++)
            for (int u = 0; u < unroll; u++) sums[s * unroll + u] += words[s * length + i + u];
    for (uint64_t sum : sums) total += sum;
    for (uint64_t i = length * streams; i < count; i++) total += words[i];
    return total;
}

typedef uint64_t (*read_fn)(const uint64_t *, uint64_t);
static const read_fn read_loops[] = {read_streams<1, 8>, read_streams<1, 32>, read_streams<2, 8>, read_streams<4, 8>};

extern "C" MOELAB_API int32_t moelab_num_read_loops(void) { return sizeof(read_loops) / sizeof(read_loops[0]); }

extern "C" MOELAB_API uint64_t moelab_read(int32_t loop, const void *data, uint64_t bytes) {
    if (loop < 0 || loop >= moelab_num_read_loops()) return 0;
    return read_loops[loop]((const uint64_t *)data, bytes / 8);
}
