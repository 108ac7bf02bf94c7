/* Which read loops there are, and one pass of all workers, over everything or each over the bytes of its own node. */
#include <atomic>

#include "clock.h"
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
uint64_t moelab_avx2_read_1_pages(const void *, uint64_t);
uint64_t moelab_avx2_read_2_pages(const void *, uint64_t);
uint64_t moelab_avx512_read_1_pages(const void *, uint64_t);
uint64_t moelab_avx512_read_2_pages(const void *, uint64_t);
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
    {"avx2", "avx2, 1 stream, pages", moelab_avx2_read_1_pages},
    {"avx2", "avx2, 2 streams, pages", moelab_avx2_read_2_pages},
#endif
#ifdef MOELAB_AVX512
    {"avx512", "avx512, 1 stream", moelab_avx512_read_1},
    {"avx512", "avx512, 2 streams", moelab_avx512_read_2},
    {"avx512", "avx512, 4 streams", moelab_avx512_read_4},
    {"avx512", "avx512, 1 stream, pages", moelab_avx512_read_1_pages},
    {"avx512", "avx512, 2 streams, pages", moelab_avx512_read_2_pages},
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

/* Blocks of one node (or of everybody): its workers draw them from `next`. */
struct alignas(64) read_share {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> end_ns{0};
    int64_t stop = 0;
};

struct read_pass {
    read_fn read;
    const int64_t *addresses;
    const int32_t *node_of_worker; /* NULL: one share for everybody */
    uint64_t bytes, block;
    int64_t blocks_each;
    read_share share_of_node[MOELAB_MAX_NODES];
    std::atomic<uint64_t> total{0};
};

static void read_blocks(void *context, int32_t worker, int32_t) {
    read_pass *pass = (read_pass *)context;
    read_share &share = pass->share_of_node[pass->node_of_worker ? pass->node_of_worker[worker] : 0];
    uint64_t total = 0;
    for (int64_t i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.stop;) {
        const uint64_t start = (uint64_t)(i % pass->blocks_each) * pass->block;
        const uint64_t left = pass->bytes - start;
        total += pass->read((const uint8_t *)pass->addresses[i / pass->blocks_each] + start,
                            left < pass->block ? left : pass->block);
    }
    pass->total.fetch_add(total, std::memory_order_relaxed);
    const int64_t end = now_ns();
    int64_t last = share.end_ns.load(std::memory_order_relaxed);
    while (last < end && !share.end_ns.compare_exchange_weak(last, end, std::memory_order_relaxed)) {
    }
}

extern "C" MOELAB_API uint64_t moelab_read_all(moelab_pool *pool, int32_t loop, const int64_t *addresses, int64_t count,
                                               uint64_t bytes, uint64_t block) {
    const read_row *row = supported_row(loop);
    if (!row || block == 0 || bytes == 0) return 0;
    read_pass pass;
    pass.read = row->read;
    pass.addresses = addresses;
    pass.node_of_worker = nullptr;
    pass.bytes = bytes;
    pass.block = block;
    pass.blocks_each = (int64_t)((bytes + block - 1) / block);
    pass.share_of_node[0].stop = count * pass.blocks_each;
    if (pool)
        pool->run(read_blocks, &pass);
    else
        read_blocks(&pass, 0, 1);
    return pass.total.load();
}

extern "C" MOELAB_API uint64_t moelab_read_nodes(moelab_pool *pool, int32_t loop, const int64_t *addresses,
                                                 const int64_t *count_of_node, int32_t num_nodes, uint64_t bytes,
                                                 uint64_t block, uint64_t *ns_of_node) {
    const read_row *row = supported_row(loop);
    if (!pool || !row || block == 0 || bytes == 0) return 0;
    if (num_nodes > MOELAB_MAX_NODES || num_nodes < pool->num_nodes) return 0;
    int32_t workers_of_node[MOELAB_MAX_NODES] = {0};
    for (const int32_t node : pool->node_of_worker) workers_of_node[node]++;
    read_pass pass;
    pass.read = row->read;
    pass.addresses = addresses;
    pass.node_of_worker = pool->node_of_worker.data();
    pass.bytes = bytes;
    pass.block = block;
    pass.blocks_each = (int64_t)((bytes + block - 1) / block);
    int64_t first = 0;
    for (int32_t n = 0; n < num_nodes; n++) {
        if (count_of_node[n] > 0 && workers_of_node[n] == 0) return 0; /* nobody would read them */
        pass.share_of_node[n].next.store(first, std::memory_order_relaxed);
        first += count_of_node[n] * pass.blocks_each;
        pass.share_of_node[n].stop = first;
    }
    const int64_t start_ns = now_ns();
    pool->run(read_blocks, &pass);
    for (int32_t n = 0; n < num_nodes; n++)
        ns_of_node[n] = count_of_node[n] > 0 ? (uint64_t)(pass.share_of_node[n].end_ns.load() - start_ns) : 0;
    return pass.total.load();
}
