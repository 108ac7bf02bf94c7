/* The (token, slot) pairs of a layer-step sorted by node, then expert, then token. */
#include "moelab_kernels.h"

extern "C" MOELAB_API int64_t moelab_group(moelab_moe_job *job, const int32_t *expert_ids, int64_t num_tokens,
                                           int64_t top_k, int64_t num_experts, const int64_t *address_of_expert,
                                           const int32_t *node_of_expert, int32_t num_nodes, int64_t *count,
                                           int64_t *pair_of_slot, int64_t *expert_stop_of_node) {
    const int32_t unrouted = 65535;
    const int64_t num_slots = num_tokens * top_k;
    for (int64_t i = 0; i < num_slots; i++) {
        const int32_t expert = expert_ids[i];
        if (expert == unrouted) continue;
        if (expert < 0 || expert >= num_experts) {
            for (int64_t e = 0; e < num_experts; e++) count[e] = 0;
            return -1 - i / top_k;
        }
        count[expert]++;
    }
    const void **weights = (const void **)job->expert_weights;
    int64_t *pair_start = (int64_t *)job->pair_start, active = 0, total = 0;
    int32_t *token_of_pair = (int32_t *)job->token_of_pair;
    for (int32_t n = 0; n < num_nodes; n++) {
        for (int64_t e = 0; e < num_experts; e++) {
            if (count[e] == 0 || (node_of_expert && node_of_expert[e] != n)) continue;
            weights[active] = (const void *)address_of_expert[e];
            pair_start[active++] = total;
            const int64_t following = total + count[e];
            count[e] = -1 - total; /* negative: seen; from now on the place of its next pair */
            total = following;
        }
        expert_stop_of_node[n] = active;
    }
    pair_start[active] = total;
    for (int64_t i = 0; i < num_slots; i++) {
        const int32_t expert = expert_ids[i];
        if (expert == unrouted) {
            pair_of_slot[i] = -1;
            continue;
        }
        const int64_t pair = -1 - count[expert]--;
        token_of_pair[pair] = (int32_t)(i / top_k);
        pair_of_slot[i] = pair;
    }
    for (int64_t e = 0; e < num_experts; e++) count[e] = 0;
    job->num_experts = active;
    job->num_pairs = total;
    job->num_tokens = num_tokens;
    return active;
}
