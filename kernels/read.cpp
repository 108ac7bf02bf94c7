/* Which read loops there are, and one pass of all workers. */
#include <atomic>

#include "moelab_kernels.h"
#include "pool.h"

typedef uint64_t (*read_fn)(const void *, uint64_t);
extern "C" {
uint64_t moelab_generic_read_1(const void *, uint64_t);
uint64_t moelab_generic_read_4(const void *, uint64_t);
uint64_t moelab_avx2_read_1(const void *, uint64_t);
uint64_t moelab_avx2_read_2(const void *, uint64_t);
uint64_t moelab_avx2_read_4(const void *, uint64_t);
uint64_t moelab_avx512_read_1(const void *, uint64_t);
uint64_t moelab_avx512_read_2(const void *, uint64_t);
uint64_t moelab_avx512_read_4(const void *, uint64_t);
}

struct read_row {
    const char *isa, *name;
    read_fn read;
};

static const read_row read_rows[] = {
    {"generic", "generic, 1 stream", moelab_generic_read_1},
    {"generic", "generic, 4 streams", moelab_generic_read_4},
#ifdef MOELAB_AVX2
    {"avx2", "avx2, 1 stream", moelab_avx2_read_1},
    {"avx2", "avx2, 2 streams", moelab_avx2_read_2},
    {"avx2", "avx2, 4 streams", moelab_avx2_read_4},
#endif
#ifdef MOELAB_AVX512
    {"avx512", "avx512, 1 stream", moelab_avx512_read_1},
    {"avx512", "avx512, 2 streams", moelab_avx512_read_2},
    {"avx512", "avx512, 4 streams", moelab_avx512_read_4},
#endif
};

/* Row number `loop` of those that this CPU supports, or NULL. */
static const read_row *supported_row(int32_t loop) {
    for (const read_row &row : read_rows)
        if (moelab_isa_supported(row.isa) && loop-- == 0) return &row;
    return nullptr;
}

extern "C" MOELAB_API int32_t moelab_num_read_loops(void) {
    int32_t num = 0;
    while (supported_row(num)) num++;
    return num;
}

extern "C" MOELAB_API const char *moelab_read_loop_name(int32_t loop) {
    const read_row *row = supported_row(loop);
    return row ? row->name : "";
}

extern "C" MOELAB_API uint64_t moelab_read(int32_t loop, const void *data, uint64_t bytes) {
    const read_row *row = supported_row(loop);
    return row ? row->read(data, bytes) : 0;
}

struct read_pass {
    read_fn read;
    const int64_t *addresses;
    uint64_t bytes, block;
    int64_t num_blocks, blocks_each;
    std::atomic<int64_t> next{0};
    std::atomic<uint64_t> total{0};
};

static void read_blocks(void *context, int32_t, int32_t) {
    read_pass *pass = (read_pass *)context;
    uint64_t total = 0;
    for (int64_t i; (i = pass->next.fetch_add(1, std::memory_order_relaxed)) < pass->num_blocks;) {
        const uint64_t start = (uint64_t)(i % pass->blocks_each) * pass->block;
        const uint64_t left = pass->bytes - start;
        total += pass->read((const uint8_t *)pass->addresses[i / pass->blocks_each] + start,
                            left < pass->block ? left : pass->block);
    }
    pass->total.fetch_add(total, std::memory_order_relaxed);
}

extern "C" MOELAB_API uint64_t moelab_read_all(moelab_pool *pool, int32_t loop, const int64_t *addresses, int64_t count,
                                               uint64_t bytes, uint64_t block) {
    const read_row *row = supported_row(loop);
    if (!row || block == 0 || bytes == 0) return 0;
    read_pass pass;
    pass.read = row->read;
    pass.addresses = addresses;
    pass.bytes = bytes;
    pass.block = block;
    pass.blocks_each = (int64_t)((bytes + block - 1) / block);
    pass.num_blocks = count * pass.blocks_each;
    if (pool)
        pool->run(read_blocks, &pass);
    else
        read_blocks(&pass, 0, 1);
    return pass.total.load();
}
