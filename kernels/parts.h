/* Units of a phase, expert by expert or piece by piece: what of them lies in one block of weights. */
#ifndef MOELAB_PARTS_H
#define MOELAB_PARTS_H

#include "moelab_kernels.h"
#include "numbers.h"

/* Units [first, first + count) of an expert, whose pairs are those of active expert `expert`; the block `weights`
 * begins with unit `origin` and has `up_rows` tile rows of gate_proj and as many of up_proj. */
struct part {
    int64_t expert, first, count, origin, up_rows;
    const uint8_t *weights;
};

/* The largest entry that begins at `unit` or before, empty ones skipped. */
static inline int64_t entry_of(const int64_t *start, int64_t num_entries, int64_t unit) {
    int64_t low = 0, high = num_entries;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (start[middle] <= unit)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* The part that begins at unit_start; `units` of a whole expert. */
static inline part part_at(const moelab_moe_job *job, bool is_down, int64_t units, int64_t unit_start,
                           int64_t unit_stop) {
    const int64_t tile_rows = tiles_of(job->intermediate_size, 16);
    part p;
    const moelab_placement *placed = job->placement;
    if (!placed) {
        p.expert = unit_start / units;
        p.first = unit_start % units;
        p.count = units - p.first;
        p.origin = 0;
        p.up_rows = tile_rows;
        p.weights = (const uint8_t *)job->expert_weights[p.expert];
    } else {
        const int64_t *start = is_down ? placed->down_start : placed->up_start;
        const int64_t entry = entry_of(start, placed->num_entries, unit_start), group = placed->group_of_entry[entry];
        p.expert = placed->expert_of_entry[entry];
        p.origin = is_down ? placed->row_of_entry[entry] : group;
        p.first = p.origin + unit_start - start[entry];
        p.count = start[entry + 1] - unit_start;
        const int64_t rows = 2 * (placed->up_start[entry + 1] - placed->up_start[entry]);
        p.up_rows = rows < tile_rows - 2 * group ? rows : tile_rows - 2 * group;
        p.weights = (const uint8_t *)placed->weights_of_entry[entry];
    }
    if (p.count > unit_stop - unit_start) p.count = unit_stop - unit_start;
    return p;
}

#endif
