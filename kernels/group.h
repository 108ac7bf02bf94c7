/* The (token, slot) pairs of a layer-step sorted by node, then expert, then token; with a placement by expert and
 * token, because the pieces of an expert share its pairs. */
#ifndef MOELAB_GROUP_H
#define MOELAB_GROUP_H

#include "place.h"

/* Fills the lists of the job and stop_of_node [num_nodes], the number of active experts, or of entries of the
 * placement, up to each node. */
static inline int32_t group_pairs(moelab_forward *f, int32_t num_nodes, int64_t *stop_of_node) {
    const int32_t unrouted = 65535;
    const int64_t num_slots = f->num_tokens * f->top_k, num_experts = f->num_experts;
    int64_t *count = f->count_of_expert;
    for (int64_t i = 0; i < num_slots; i++) {
        const int32_t expert = f->expert_ids[i];
        if (expert == unrouted) continue;
        if (expert < 0 || expert >= num_experts) {
            for (int64_t e = 0; e < num_experts; e++) count[e] = 0;
            f->bad_token = i / f->top_k;
            return MOELAB_BAD_EXPERT;
        }
        count[expert]++;
    }
    moelab_moe_job *job = f->job;
    const void **weights = (const void **)job->expert_weights;
    int64_t *pair_start = (int64_t *)job->pair_start, active = 0, total = 0;
    int32_t *token_of_pair = (int32_t *)job->token_of_pair;
    moelab_placement *placed = f->placement;
    int64_t *expert_of_active = f->pair_of_slot; /* filled later; an active expert has at least one slot */
    for (int32_t n = 0; n < (placed ? 1 : num_nodes); n++) {
        for (int64_t e = 0; e < num_experts; e++) {
            if (count[e] <= 0 || (!placed && num_nodes > 1 && f->node_of_expert[e] != n)) continue;
            if (placed)
                expert_of_active[active] = e;
            else
                weights[active] = (const void *)f->address_of_expert[e];
            pair_start[active++] = total;
            const int64_t following = total + count[e];
            count[e] = -1 - total; /* negative: placed; from now on it says where the next pair goes */
            total = following;
        }
        stop_of_node[n] = active;
    }
    const int32_t status = placed ? choose_copies(placed, active, expert_of_active, stop_of_node) : MOELAB_OK;
    bool nowhere = status != MOELAB_OK;
    for (int64_t e = 0; num_nodes > 1 && e < num_experts; e++) nowhere = nowhere || count[e] > 0;
    if (nowhere) { /* on a node that does not exist */
        for (int64_t i = 0; i < num_experts; i++) count[i] = 0;
        return status ? status : MOELAB_BAD_SHAPE;
    }
    pair_start[active] = total;
    for (int64_t i = 0; i < num_slots; i++) {
        const int32_t expert = f->expert_ids[i];
        if (expert == unrouted) {
            f->pair_of_slot[i] = -1;
            continue;
        }
        const int64_t pair = -1 - count[expert]--;
        token_of_pair[pair] = (int32_t)(i / f->top_k);
        f->pair_of_slot[i] = pair;
    }
    for (int64_t e = 0; e < num_experts; e++) count[e] = 0;
    job->num_experts = active;
    job->num_pairs = total;
    job->num_tokens = f->num_tokens;
    return MOELAB_OK;
}

#endif
