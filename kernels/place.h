/* Which copy of which piece each node computes in one layer-step: the entries of a placement, node by node. */
#ifndef MOELAB_PLACE_H
#define MOELAB_PLACE_H

#include "fits.h"
#include "parts.h"

/* Fills the placement's entries for the experts that have tokens, and entry_stop_of_node [N]. Where all have one copy
 * nobody is asked. */
static inline int32_t choose_copies(moelab_placement *p, int64_t num_active, const int64_t *expert_of_active,
                                    int64_t *entry_stop_of_node) {
    int64_t num_jobs = 0;
    bool several = false;
    for (int64_t active = 0; active < num_active; active++) {
        const int64_t expert = expert_of_active[active];
        if (p->piece_of_expert[expert] == p->piece_of_expert[expert + 1]) return MOELAB_NO_HOME;
        for (int64_t piece = p->piece_of_expert[expert]; piece < p->piece_of_expert[expert + 1]; piece++) {
            const int64_t mask = p->nodes_of_piece[piece];
            p->piece_of_job[num_jobs] = piece;
            p->expert_of_job[num_jobs] = active;
            p->masks[num_jobs] = mask;
            p->sizes[num_jobs] = p->piece_bytes[piece];
            int32_t node = 0;
            while (node < p->num_nodes && !(mask >> node & 1)) node++;
            if (node == p->num_nodes) return MOELAB_BAD_SHAPE;
            p->node_of_job[num_jobs++] = node;
            several = several || (mask & (mask - 1));
        }
    }
    if (several && (!p->dispatch || p->dispatch(num_jobs, p->masks, p->sizes, p->num_nodes, p->slowness, p->node_of_job,
                                                p->loads, p->scratch) < 0))
        return MOELAB_BAD_SHAPE;
    int64_t entry = 0;
    p->up_start[0] = p->down_start[0] = 0;
    for (int64_t node = 0; node < p->num_nodes; node++) {
        for (int64_t job = 0; job < num_jobs; job++) {
            if (p->node_of_job[job] != node) continue;
            const int64_t piece = p->piece_of_job[job];
            p->expert_of_entry[entry] = p->expert_of_job[job];
            p->weights_of_entry[entry] = (const void *)p->address_of_copy[piece * p->num_nodes + node];
            if (!p->weights_of_entry[entry]) return MOELAB_BAD_SHAPE;
            p->group_of_entry[entry] = p->first_group[piece];
            p->row_of_entry[entry] = p->first_row[piece];
            p->up_start[entry + 1] = p->up_start[entry] + p->num_groups[piece];
            p->down_start[entry + 1] = p->down_start[entry] + p->num_rows[piece];
            if (p->late_of_expert && p->late_of_expert[expert_of_active[p->expert_of_job[job]]])
                p->late_bytes_of_node[node] += p->piece_bytes[piece];
            entry++;
        }
        entry_stop_of_node[node] = entry;
    }
    p->num_entries = entry;
    return MOELAB_OK;
}

#endif
