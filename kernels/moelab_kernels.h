/* C ABI of the native kernels, version 8: everything that Python (ctypes) or Numba may call.
 *
 * Knows weight layouts, activation modes, and how to run: a slice of one layer's routed experts or of a matrix (a
 * phase), a whole layer-step or matrix on a pool (forward), a list of such steps and of the small operations
 * between them, latent attention and router included (ops: a decode step); packing of weights into the layout;
 * read loops and peaks to measure beside. Does not know models, files or placement. The caller owns every buffer.
 * Kernels neither allocate nor keep state nor make threads; the pool has the threads, and one answer is kept for
 * the life of the process: whether it may use AMX.
 *
 * Every struct begins with its size and the version, which the library compares with its own before it reads any
 * further: MOELAB_BAD_STRUCT where they differ.
 *
 * Weight layout, the same for every ISA. A projection of R output rows and C columns is cut into
 * tiles of 16 rows x 64 columns, rows padded to 16 and columns to 64 with zero weights; tiles run
 * along the columns first: tile (n, k) is number n * ceil(C/64) + k. Within a tile the unit is a quad:
 * four neighbouring columns of each of the 16 rows, [16 rows][4 columns].
 *   int4_g32 (576 B): 8 lines of 64 B of q + 8 in nibbles, line j, byte 4 * row + c: low nibble is column
 *       8 * j + c, high nibble is column 8 * j + 4 + c (lines 0..3 are group 0, lines 4..7 group 1 of
 *       32 columns); then the bf16 scales, [2 groups][16 rows]. Padding is q = 0, scale 0.
 *   int8_g32 (1088 B): 16 lines of 64 B of q + 128, line j, byte 4 * row + c: column 4 * j + c; scales as above.
 *       Padding is q = 0, scale 0.
 *   bf16 (2048 B): 32 lines of 64 B, line j: [16 rows][2 columns] of columns 2 * j, 2 * j + 1.
 *   float32 (4096 B): 64 lines of 64 B, line j: [16 rows] of column j.
 * An expert is gate_proj, up_proj, down_proj, one after the other, in one block aligned to 64 B.
 *
 * Activation modes: f32 (float32 weights), bf16 (activations rounded to nearest even, float32 accumulation; bf16
 * weights, and with AMX int8_g32 or int4_g32 weights too), int8 (int8_g32 or int4_g32 weights): per group of 32
 * columns scale = absmax / 127, q = rint(x * (127 / absmax)), ties to even, offset = -8 * sum(q), which takes back
 * the + 8 of the nibbles, and 16 times it the + 128 of int8 weights; a group whose absmax is below 2^-100 is all
 * zero; one with a NaN or infinity gets q = 0 and scale NaN. Integer sums are exact, and the float32 sum over
 * groups runs in rising order as acc += (float(isum) * activation_scale) * weight_scale, without contraction.
 *
 * int16 (int8_g32 or int4_g32 weights): as int8, with 32639 = 127 * 257 in the place of 127, and each group as 64
 * B: 32 high bytes (q + 128) >> 8, then 32 low bytes q - 256 * high, both signed. A number is off by at most half a
 * step, where bf16 is off by up to 2^-9 of the number itself: that is less below 256 steps. A group in which fewer
 * than a quarter of the numbers that are not zero have |q| >= 512 is therefore kept in bf16, so that zero weights
 * at any eighth of its numbers leave the rest no worse than there; so is a group with a NaN or infinity, or whose
 * absmax is below 2^-100. Of a kept group the 64 B are 32 bf16 numbers, offset is INT32_MIN, scale 1, and in the
 * place of isum is the float32 sum over columns in rising order of signed weight times number.
 *
 * The hidden vector silu(gate) * up between up_proj and down_proj is treated the same way, by gate_up itself:
 * its unit is one group of 32 intermediate rows, so that nobody has to wait for a neighbour. silu(x) is
 * x / (1 + exp(-x)) with one polynomial exp in a fixed order of operations (kernels/silu.h), so that all
 * ISAs give the same bits in int8 mode. */
#ifndef MOELAB_KERNELS_H
#define MOELAB_KERNELS_H

#include <stdint.h>

#if defined(_WIN32)
#define MOELAB_API __declspec(dllexport)
#else
#define MOELAB_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define MOELAB_ABI_VERSION 8

enum moelab_weight_format { MOELAB_FLOAT32 = 0, MOELAB_BF16 = 1, MOELAB_INT4_G32 = 2, MOELAB_INT8_G32 = 3 };
enum moelab_activation_mode { MOELAB_ACT_F32 = 0, MOELAB_ACT_BF16 = 1, MOELAB_ACT_INT8 = 2, MOELAB_ACT_INT16 = 3 };
enum moelab_activation_function { MOELAB_SILU = 0 };

enum moelab_status {
    MOELAB_OK = 0,
    MOELAB_BAD_STRUCT = -1,   /* size or version of the struct is not what this library knows */
    MOELAB_UNSUPPORTED = -2,  /* this ISA has no kernel for the format and mode */
    MOELAB_BAD_SHAPE = -3,
    MOELAB_BAD_EXPERT = -4,   /* a token names an expert that does not exist */
    MOELAB_NOT_A_NUMBER = -5, /* a router's logits, or its bias, hold a NaN */
    MOELAB_NO_HOME = -6       /* a token names an expert of which the placement has no piece */
};

/* Which copy serves each of num_jobs jobs: masks (bit n: node n has a copy), sizes in bytes, slowness of each node
 * (time of one byte); writes tier_of [num_jobs] and loads [num_tiers]. Returns a negative number where a job has no
 * copy. moelab/dispatch has the one that simulator and planner call too. */
typedef int64_t (*moelab_dispatch_fn)(int64_t num_jobs, const int64_t *masks, const int64_t *sizes, int64_t num_tiers,
                                      const double *slowness, int32_t *tier_of, double *loads, int64_t *scratch);

/* Where the experts of one layer lie on several nodes: whole or in pieces, with one copy or several. A piece is groups
 * [first_group, + num_groups) of 32 intermediate rows and tile rows [first_row, + num_rows) of down_proj; its block has
 * its rows of gate_proj, of up_proj and of down_proj, one after the other. The pieces of an expert are neighbours in
 * rising order and partition it; an expert without pieces has no home, and a step that routes to it is refused
 * (MOELAB_NO_HOME). What stands under "of this step" is filled by forward. */
typedef struct moelab_placement {
    uint32_t struct_bytes;
    uint32_t abi_version;
    int64_t num_nodes;                /* N, 1 to MOELAB_MAX_NODES */
    const int64_t *piece_of_expert;   /* [E + 1]: the first piece of each expert; P in the end */
    const int64_t *first_group, *num_groups, *first_row, *num_rows; /* [P] */
    const int64_t *piece_bytes;       /* [P] */
    const int64_t *nodes_of_piece;    /* [P]: bit n where node n has a copy */
    const int64_t *address_of_copy;   /* [P, N], 0 where there is none */
    const double *slowness;           /* [N] */
    moelab_dispatch_fn dispatch;      /* NULL where every piece has one copy */
    int64_t *masks, *sizes;           /* [P] of this step */
    int32_t *node_of_job;             /* [P] of this step */
    int64_t *piece_of_job, *expert_of_job; /* [P] of this step: piece, active expert whose pairs it serves */
    double *loads;                    /* [N] of this step */
    int64_t *scratch;                 /* of dispatch */
    int64_t num_entries;              /* of this step, node by node: */
    int64_t *expert_of_entry;         /* [P]: active expert */
    const void **weights_of_entry;    /* [P] */
    int64_t *group_of_entry, *row_of_entry;   /* [P]: first_group, first_row */
    int64_t *up_start, *down_start;   /* [P + 1]: the first unit of each entry */
    const uint8_t *late_of_expert;    /* [E]: 1 where reads count in late_bytes_of_node too; NULL: nowhere */
    int64_t *late_bytes_of_node;      /* [N], added to by every step; NULL with late_of_expert */
} moelab_placement;

/* The routed experts of one layer-step. A (expert) has tokens pair_start[a] .. pair_start[a+1]; each
 * pair is one token of one expert. Output of a pair is written, not added: experts are summed in
 * slot order by the last phase of forward, the only place where they meet. */
typedef struct moelab_moe_job {
    uint32_t struct_bytes;
    uint32_t abi_version;
    int32_t weight_format_of_projection[3]; /* gate_proj, up_proj, down_proj */
    int32_t activation_mode;
    int32_t activation_function;
    float activation_constants[4]; /* of activation_function; unused by SiLU */
    int64_t hidden_size;           /* H */
    int64_t intermediate_size;     /* I */
    int64_t num_experts;           /* active experts of this layer-step */
    int64_t num_pairs;             /* routed (token, slot) pairs */
    int64_t num_tokens;            /* T */
    const void *const *expert_weights; /* [num_experts] */
    const float *const *expert_biases; /* [num_experts * 3] or NULL */
    const int64_t *pair_start;     /* [num_experts + 1] */
    const int32_t *token_of_pair;  /* [num_pairs] */
    const void *tokens_q;          /* [T, padded H]: int8, int16, bf16 or float32 by mode */
    const float *tokens_scale;     /* [T, padded H / 32], int8 and int16 modes */
    const int32_t *tokens_offset;  /* [T, padded H / 32], int8 and int16 modes */
    void *hidden_q;                /* [num_pairs, padded I], as tokens_q: written by gate_up, read by down */
    float *hidden_scale;           /* [num_pairs, padded I / 32], as tokens_scale */
    int32_t *hidden_offset;        /* [num_pairs, padded I / 32], as tokens_offset */
    float *output;                 /* [num_pairs, padded H (to 16)] float32; linear: [num_pairs, padded I (to 16)] */
    const moelab_placement *placement; /* set by forward; NULL: whole experts at expert_weights */
} moelab_moe_job;

/* Units are counted over the experts of the job. Unit u of gate_up is group u % ceil(I/32) of 32 intermediate
 * rows (two tile rows; the last may be one) of expert u / ceil(I/32), and the last unit of an expert also
 * clears the padding of hidden_q. Unit u of linear, which is a matrix [I, H] alone in the place of an expert
 * (output = W x, no activation), is tile row u % ceil(I/16) of matrix u / ceil(I/16). Unit u of down is tile row u
 * % ceil(H/16) of expert u / ceil(H/16). A call computes the units [unit_start, unit_stop) and adds the bytes of
 * weights that it read to *bytes_read. Calls with disjoint ranges may run at the same time; all of gate_up comes
 * before any of down. With a placement units are counted over its entries instead, in the same way: an entry has
 * num_groups units of gate_up and num_rows of down. */
typedef int32_t (*moelab_phase_fn)(const moelab_moe_job *job, int64_t unit_start, int64_t unit_stop,
                                   uint64_t *bytes_read);

typedef struct moelab_kernel_table {
    uint32_t struct_bytes;
    uint32_t abi_version;
    moelab_phase_fn gate_up;
    moelab_phase_fn down;
    moelab_phase_fn linear;
    /* Of a thread, before its first phase call of a job and after its last: AMX configures and releases its tiles.
     * NULL: nothing. */
    void (*begin)(void);
    void (*end)(void);
} moelab_kernel_table;

MOELAB_API uint32_t moelab_abi_version(void);
MOELAB_API int32_t moelab_isa_built(const char *isa);     /* 1, 0 */
MOELAB_API int32_t moelab_isa_supported(const char *isa); /* by this CPU and operating system */
/* Has this CPU vdpbf16ps? Without it "avx512" computes bf16 weights with bf16 activations by the kernels of "avx2". */
MOELAB_API int32_t moelab_avx512_bf16(void);
/* Fills the table of one ISA ("generic", "avx2", "avx512", "amx", "amx+avx512") for a format and mode. "amx" is
 * AMX for every number of tokens; "amx+avx512" computes an expert that has fewer than MOELAB_AMX_MIN_TOKENS tokens
 * in the layer-step with AVX-512, and all of what AMX cannot compute as exactly: float32, and int16 mode, which "amx"
 * has not: quantised weights in bf16 mode are its own, and round (docs/amx.md). */
MOELAB_API int32_t moelab_kernels(const char *isa, int32_t weight_format, int32_t activation_mode,
                                  moelab_kernel_table *table);

/* Tokens of an expert from which on tiles of 16 tokens pay: the published choice of KTransformers (more than
 * four), not measured here; `moelab bench kernels` measures it where there is AMX. */
#define MOELAB_AMX_MIN_TOKENS 5

/* May this process use AMX? Asked of the CPU (cpuid), of what the operating system saves (XCR0) and of the kernel,
 * which gives each process its permission (Linux: arch_prctl ARCH_REQ_XCOMP_PERM, feature 18). NULL: of this
 * machine, once in the life of the process, at the latest by moelab_pool_create, before it makes threads.
 * Otherwise of the functions given, every time. */
typedef struct moelab_amx_questions {
    uint32_t struct_bytes;
    uint32_t abi_version;
    void (*cpuid)(uint32_t leaf, uint32_t subleaf, uint32_t *registers); /* eax, ebx, ecx, edx */
    uint64_t (*xgetbv)(uint32_t number);
    int64_t (*request_permission)(int32_t feature); /* 0, or -errno */
} moelab_amx_questions;

enum moelab_amx_answer {
    MOELAB_AMX_USABLE = 0,
    MOELAB_AMX_NOT_IN_CPU = 1,    /* AMX-TILE, AMX-INT8 or AMX-BF16 is missing */
    MOELAB_AMX_NOT_SAVED = 2,     /* the operating system does not save tiles */
    MOELAB_AMX_NOT_PERMITTED = 3  /* the kernel refused its permission */
};

MOELAB_API int32_t moelab_amx(const moelab_amx_questions *questions); /* moelab_amx_answer, or MOELAB_BAD_STRUCT */

/* The pool: num_workers workers, of which the caller of a run is worker 0 and the others are threads, pinned to
 * core_of_worker (NULL or below 0: not). Workers spin for spin_ns after a run and then sleep. One run at a time.
 * In a forked child the pool has no threads and must neither be run nor destroyed. */
typedef struct moelab_pool moelab_pool;
typedef void (*moelab_work_fn)(void *context, int32_t worker, int32_t num_workers);

MOELAB_API moelab_pool *moelab_pool_create(int32_t num_workers, const int32_t *core_of_worker,
                                           const int32_t *node_of_worker, int64_t spin_ns);
MOELAB_API int32_t moelab_pool_pinned(const moelab_pool *pool); /* how many threads sit on their core */
/* A run in two calls, for a caller whose own share is not native: start lets the threads work, wait returns when
 * they are done. The caller calls work(context, 0, num_workers) between the two, or does the like. A start waits
 * for a run before it. */
MOELAB_API void moelab_pool_start(moelab_pool *pool, moelab_work_fn work, void *context);
MOELAB_API void moelab_pool_wait(moelab_pool *pool);
MOELAB_API void moelab_pool_destroy(moelab_pool *pool); /* never during a run, of whichever thread */

/* What forward adds to after each call: bytes of weights that the workers of a node read; the time of its own work,
 * which is, of each phase (gate_up with what comes before it, and down; or linear), the time until its last worker was
 * done, without the wait for other nodes after it; the tail, time between the first and the last worker that was done
 * with a phase, of all its phases together; and the whole time. */
#define MOELAB_MAX_NODES 16
typedef struct moelab_counters {
    uint32_t struct_bytes;
    uint32_t abi_version;
    uint64_t bytes_of_node[MOELAB_MAX_NODES];
    uint64_t ns_of_node[MOELAB_MAX_NODES];
    uint64_t tail_ns;
    uint64_t total_ns;
    uint64_t num_calls;
} moelab_counters;

/* In node_of_expert: on every node some of its rows. */
#define MOELAB_ALL_NODES (-1)

typedef struct moelab_forward {
    uint32_t struct_bytes;
    uint32_t abi_version;
    moelab_moe_job *job;                 /* expert_weights, pair_start, token_of_pair and the counts are filled here */
    const moelab_kernel_table *table;
    const float *x;                      /* [T, H], rows x_stride numbers apart */
    int64_t x_stride;
    int64_t num_tokens;
    int64_t top_k;
    const int32_t *expert_ids;           /* [T, K]; 65535: unrouted */
    const float *gate_weights;           /* [T, K] */
    float *y;                            /* [T, H] */
    int64_t num_experts;                 /* E */
    const int64_t *address_of_expert;    /* [E] */
    const int32_t *node_of_expert;       /* [E]; NULL: every worker reads every expert; or MOELAB_ALL_NODES */
    int64_t *count_of_expert;            /* [E + 1] scratch, zero before and after */
    int64_t *pair_of_slot;               /* [T, K] scratch */
    int64_t smallest_up, largest_up;     /* units that a worker draws at once: gate_up or linear */
    int64_t smallest_down, largest_down;
    moelab_counters *counters;           /* NULL: nothing is counted */
    int64_t bad_token;                   /* set with MOELAB_BAD_EXPERT */
    moelab_placement *placement;         /* instead of address_of_expert and node_of_expert; NULL: none */
} moelab_forward;

/* One layer-step on a pool (NULL: on the caller alone): pairs sorted by node, expert and token | quantise |
 * gate_up | down | combine. With node_of_expert workers draw the experts of their own node; an expert on a node
 * without workers is MOELAB_BAD_SHAPE. With node_of_expert[0] MOELAB_ALL_NODES (one expert; matrices of linear)
 * units are shared out over the nodes of the pool in proportion to their workers, and a worker draws those of its own
 * node only: of U units (of all matrices together, whether they have tokens or not) node n has [U * W(n) / W,
 * U * W(n + 1) / W), W(n) workers being on the nodes before n and W in all; what a caller binds memory by. The result
 * does not depend on the pool. */
MOELAB_API int32_t moelab_moe_forward(moelab_pool *pool, moelab_forward *forward);
/* y [T, I] = W x for matrices W [I, H] in the place of experts; job->output is the result, rows I (to 16) numbers
 * apart. Without expert_ids there is one matrix, address_of_expert[0], and rows are tokens; with them (top_k 1)
 * each token has its own matrix and rows are pairs. Gate weights and y are not used. */
MOELAB_API int32_t moelab_linear_forward(moelab_pool *pool, moelab_forward *forward);

/* Read loops: the sum of the 64-bit words of [data, data + bytes), bytes a multiple of 8, by loops of several ISAs
 * and numbers of streams; only those that this CPU supports are counted. The read limit is the best of them.
 * read_all reads `bytes` at each of `count` addresses on all workers, which draw blocks of `block` bytes. */
MOELAB_API int32_t moelab_num_read_loops(void);
MOELAB_API const char *moelab_read_loop_name(int32_t loop);
MOELAB_API uint64_t moelab_read(int32_t loop, const void *data, uint64_t bytes);
MOELAB_API uint64_t moelab_read_all(moelab_pool *pool, int32_t loop, const int64_t *addresses, int64_t count,
                                    uint64_t bytes, uint64_t block);
/* The same by node, all nodes at once: addresses are sorted by node, count_of_node [num_nodes] of them each, and a
 * worker draws blocks of its own node only. ns_of_node [num_nodes]: from the start until the last worker of the
 * node was done; 0 for one with nothing to read. Reads nothing and returns 0 where a node that has addresses has
 * no worker. */
MOELAB_API uint64_t moelab_read_nodes(moelab_pool *pool, int32_t loop, const int64_t *addresses,
                                      const int64_t *count_of_node, int32_t num_nodes, uint64_t bytes, uint64_t block,
                                      uint64_t *ns_of_node);

/* Operations (2 for each product) of `iterations` of a register-only loop of the ISA's dot-product instruction for
 * the mode, on all workers; 0 where it has none. */
MOELAB_API uint64_t moelab_peak(moelab_pool *pool, const char *isa, int32_t activation_mode, int64_t iterations);

/* --- A decode step: many small operations and steps in one run of the pool ---
 *
 * A call of Python between two steps costs more than the operation itself, because nothing of the interpreter is
 * in the cache after the weights of a layer have passed through it (docs/log.md, 2026-11-24, a decode step as one
 * native call). All numbers are float32 unless said; T tokens of one or more sequences. */

/* y[t] = weight * x[t] / sqrt(mean(x[t]^2) + eps), `size` numbers. */
typedef struct moelab_norm {
    uint32_t struct_bytes;
    uint32_t abi_version;
    const float *x;
    int64_t x_stride;
    const float *weight;
    float *y;
    int64_t y_stride, num_tokens, size;
    float eps;
} moelab_norm;

/* Latent attention (DeepSeek-V2, 2024, section 2.1.2), absorbed: `a` [T, a_stride] is the latent (kv_rank numbers)
 * and the key's rotated part (rope_dim), whose norm and rotation are written into the cache [rows, row_numbers] at
 * row_of_token and position_of_token; `q` [T, heads * (nope_dim + rope_dim)] becomes query_nope [heads * T,
 * nope_dim] and query_rope [heads * T, rope_dim] (row head * T + t); `query` [heads * T, query_stride] is
 * query_nope times W_UK. Attention of a token over the positions 0 .. position of its row gives mixed [heads * T,
 * mixed_stride], weighted sums of latents. A context is cut into moelab_attention_chunks parts, whose number
 * depends on its length only, so that no result depends on the workers. */
typedef struct moelab_attention {
    uint32_t struct_bytes;
    uint32_t abi_version;
    int64_t num_tokens, num_heads, kv_rank, nope_dim, rope_dim;
    const float *a;
    int64_t a_stride;
    const float *kv_norm; /* [kv_rank] */
    float eps, softmax_scale;
    const float *cos, *sin; /* [positions, rope_dim / 2] */
    int32_t interleave;     /* pairs (0, 1), (2, 3).. instead of halves; members are stored as halves */
    int32_t cache_bf16;     /* the cache holds bf16 instead of float32 */
    void *cache;
    int64_t row_numbers; /* numbers from one row of the cache to the next */
    const int64_t *row_of_token, *position_of_token;
    const float *q;
    int64_t q_stride;
    float *query_nope, *query_rope;
    const float *query;
    int64_t query_stride;
    float *partial; /* [T, max_chunks, heads, kv_rank + 2]: largest score, sum of weights, weighted sum of latents */
    int64_t max_chunks;
    float *mixed;
    int64_t mixed_stride;
    void (*attend)(const struct moelab_attention *attention, int64_t token, int64_t chunk, int64_t head_start,
                   int64_t head_stop);
} moelab_attention;

/* to [T, matrices * size] from rows [matrices * T, from_stride] (row matrix * T + t). */
typedef struct moelab_gather {
    uint32_t struct_bytes;
    uint32_t abi_version;
    const float *from;
    int64_t from_stride, num_tokens, num_matrices, size;
    float *to;
} moelab_gather;

/* Router of DeepSeek-V3 (2024, section 2.1.2) from logits [T, logits_stride]: sigmoid, bias for the choice only,
 * the best topk_group of n_group groups by their two best, top_k in rank order with the lower id first among
 * equals, gate weights normalised (if asked) and scaled. */
typedef struct moelab_route {
    uint32_t struct_bytes;
    uint32_t abi_version;
    const float *logits;
    int64_t logits_stride;
    const float *bias; /* [E] */
    int64_t num_tokens, num_experts, top_k, n_group, topk_group;
    int32_t normalise;
    float scaling_factor;
    float *choice;       /* [E] scratch */
    int32_t *expert_ids; /* [T, K] */
    float *gate_weights; /* [T, K] */
    float *scores;       /* [T, E] sigmoid of the logits, without bias; NULL: not asked */
    int64_t bad_token;   /* set with MOELAB_NOT_A_NUMBER */
} moelab_route;

/* sum[t] += a[t] (+ b[t]); size numbers each, rows of sum and b size numbers apart. */
typedef struct moelab_add {
    uint32_t struct_bytes;
    uint32_t abi_version;
    float *sum;
    const float *a;
    int64_t a_stride;
    const float *b; /* NULL: none */
    int64_t num_tokens, size;
} moelab_add;

enum moelab_op_kind {
    MOELAB_OP_NORM = 0,
    MOELAB_OP_LINEAR = 1,  /* moelab_forward */
    MOELAB_OP_EXPERTS = 2, /* moelab_forward */
    MOELAB_OP_LATENT = 3,  /* moelab_attention: a -> cache */
    MOELAB_OP_QUERY = 4,   /* moelab_attention: q -> query_nope, query_rope */
    MOELAB_OP_ATTEND = 5,  /* moelab_attention: query -> partial */
    MOELAB_OP_MERGE = 6,   /* moelab_attention: partial -> mixed */
    MOELAB_OP_GATHER = 7,
    MOELAB_OP_ROUTE = 8,
    MOELAB_OP_ADD = 9,
    MOELAB_NUM_OPS = 10
};

typedef struct moelab_op {
    uint32_t struct_bytes;
    uint32_t abi_version;
    int64_t kind;
    void *arguments; /* of the kind */
    uint64_t ns;     /* added to: time of the operation, with the meeting at its end, as the caller sees it */
} moelab_op;

/* Runs the operations one after the other on a pool (NULL: on the caller alone), all workers meeting after each.
 * The first status that is not MOELAB_OK ends the run; *failed_op (NULL: not asked) is then the number of its
 * operation. */
MOELAB_API int32_t moelab_run_ops(moelab_pool *pool, moelab_op *ops, int64_t num_ops, int64_t *failed_op);
MOELAB_API int64_t moelab_attention_chunks(int64_t length);
/* The attend function of an ISA; NULL where it has none. */
MOELAB_API void *moelab_attend(const char *isa, int32_t cache_bf16);

/* Repacking for loading: a matrix [rows, columns], its rows one after the other, into the tiles of weight_format.
 * `pack` takes the numbers of that format (int4: words of eight nibbles of q + 8, [rows, ceil(columns / 8)], low
 * nibble first; int8: q) and, for integers, scale [rows, ceil(columns / 32)] as bf16 bits. `quantise_pack` takes
 * float32 or bf16 (source_format) and rounds to the nearest. Strips of rows at multiples of 16 may be packed at
 * the same time. */
MOELAB_API int32_t moelab_pack(int32_t weight_format, void *tiles, const void *source, const uint16_t *scale,
                               int64_t rows, int64_t columns);
MOELAB_API int32_t moelab_quantise_pack(int32_t weight_format, void *tiles, int32_t source_format, const void *source,
                                        int64_t rows, int64_t columns);

#ifdef __cplusplus
}
#endif
#endif
