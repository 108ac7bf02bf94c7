"""anneal_moves: simulated annealing of a placement on the exact objective, one compiled loop.  Floor 3.

Kirkpatrick, Gelatt and Vecchi 1983, with moves that keep every byte budget (``move_proposals``). A move changes only
the layer-steps that use one of its two experts: their inverted lists are merged, so a move costs what those lists are
long. Layer-steps keep packed counts where they can (``packed_counts``), else ``dispatch`` is asked again.
Deterministic by seed. Does not know requests, bounds or plans.
"""

from __future__ import annotations

import numpy as np

from moelab.planner.compiled import compiled
from moelab.planner.draws import unit
from moelab.planner.move_proposals import NOBODY, fits, propose, take_room
from moelab.planner.packed_counts import (
    FIELD_OF_TWO,
    NOT_PACKED,
    hall_maximum,
    two_even_maximum,
    two_uneven_maximum,
    unit_of,
)
from moelab.planner.step_maximum import WHOLE, set_maximum


@compiled
def anneal_moves(
    offsets, keys, first_use, uses, often, num_uses, shape, num_nodes, code, room, tier_bytes, piece_sizes, slowness,
    barrier, weight, worth, keeps_fast, temperatures, num_moves, draws, field, keep, ceil_of, packed, cost, touched,
    fresh, jobs, sizes, tier_of, loads, scratch,
):  # fmt: skip
    """Moves ``code`` int64 [L E] (mask of copies, 0 cut) towards a smaller sum of weight x maximum; returns the change.

    ``offsets``, ``keys``: CSR of layer-steps; ``first_use``, ``uses``: the inverse; ``often`` float64 [S]: how often
    each counts; ``num_uses`` float64 [L E]: of each expert, so counted. ``shape``: (first layer, last layer + 1, E) of
    those that may change. ``room`` int64 [N]: bytes free on each tier, kept up to date; ``tier_bytes`` int64 [N, L]: of
    one expert. ``weight`` float64 [L]; ``worth``: of a copy, for each use of its expert. ``keeps_fast``: as
    ``move_proposals`` says. ``temperatures`` float64 [sweeps]; ``num_moves``: tries in each layer and sweep; ``draws``
    uint64 [1]: state of the generator. ``field``: bits of a packed count (``packed_counts``), with its tables ``keep``
    and ``ceil_of``. Scratch: ``packed`` int64 [S] or, not packed, ``cost`` float64 [S], ``touched`` int32 and ``fresh``
    float64 as long as any two lists of uses, and ``scratch_arrays``.
    """
    first_layer, last_layer, num_experts = shape
    num_tiers = len(slowness)
    is_even = num_tiers == 2 and slowness[0] == slowness[1] and piece_sizes[0] == piece_sizes[1] and barrier == 0
    each, piece = WHOLE * slowness[0], piece_sizes[0] / WHOLE
    _begin(
        offsets, keys, code, piece_sizes, slowness, barrier, field, packed, cost, jobs, sizes, tier_of, loads, scratch
    )  # fmt: skip
    change = 0.0
    for sweep in range(len(temperatures)):
        temperature = temperatures[sweep]
        for layer in range(first_layer, last_layer):
            for _ in range(num_moves):
                a, b, new_a, new_b = propose(
                    draws, code, layer, first_layer, last_layer, num_experts, num_nodes, keeps_fast
                )  # fmt: skip
                if a == NOBODY or not fits(code, room, tier_bytes, num_experts, a, b, new_a, new_b):
                    continue
                at_a, end_a, weight_a = first_use[a], first_use[a + 1], weight[a // num_experts]
                at_b, end_b, weight_b, old_b = 0, 0, 0.0, 0
                if b != NOBODY:
                    at_b, end_b, weight_b, old_b = first_use[b], first_use[b + 1], weight[b // num_experts], code[b]
                old_a = code[a]
                lost = weight_a * num_uses[a] * (_num_copies(old_a) - _num_copies(new_a))
                if b != NOBODY:
                    lost += weight_b * num_uses[b] * (_num_copies(old_b) - _num_copies(new_b))
                lost *= worth
                if field != NOT_PACKED:
                    shift_a = unit_of(new_a, field) - unit_of(old_a, field)
                    shift_b = 0 if b == NOBODY else unit_of(new_b, field) - unit_of(old_b, field)
                    delta = _change_of_packed(
                        uses, often, at_a, end_a, at_b, end_b, shift_a, shift_b, weight_a, weight_b, packed, field,
                        keep, ceil_of, is_even, each, piece, piece_sizes, slowness, barrier,
                    )  # fmt: skip
                    delta += lost
                    if delta <= 0 or unit(draws) < np.exp(-delta / temperature):
                        for use in range(at_a, end_a):
                            packed[uses[use]] += shift_a
                        for use in range(at_b, end_b):
                            packed[uses[use]] += shift_b
                        take_room(code, room, tier_bytes, num_experts, a, b, new_a, new_b)
                        change += delta
                else:
                    code[a] = new_a
                    if b != NOBODY:
                        code[b] = new_b
                    delta, num_touched = 0.0, 0
                    while at_a < end_a or at_b < end_b:
                        is_a = at_b >= end_b or (at_a < end_a and uses[at_a] <= uses[at_b])
                        is_b = at_a >= end_a or (at_b < end_b and uses[at_b] <= uses[at_a])
                        step = uses[at_a] if is_a else uses[at_b]
                        at_a += is_a
                        at_b += is_b
                        time = set_maximum(
                            keys[offsets[step] : offsets[step + 1]], code, piece_sizes, slowness, barrier, jobs, sizes,
                            tier_of, loads, scratch,
                        )  # fmt: skip
                        delta += (weight_a if is_a else weight_b) * often[step] * (time - cost[step])
                        touched[num_touched], fresh[num_touched] = step, time
                        num_touched += 1
                    code[a] = old_a
                    if b != NOBODY:
                        code[b] = old_b
                    delta += lost
                    if delta <= 0 or unit(draws) < np.exp(-delta / temperature):
                        for place in range(num_touched):
                            cost[touched[place]] = fresh[place]
                        take_room(code, room, tier_bytes, num_experts, a, b, new_a, new_b)
                        change += delta
    return change


@compiled
def _num_copies(mask):
    num = 0
    while mask:
        mask &= mask - 1
        num += 1
    return num


@compiled
def _begin(
    offsets, keys, code, piece_sizes, slowness, barrier, field, packed, cost, jobs, sizes, tier_of, loads, scratch
):  # fmt: skip
    """Every layer-step: packed counts, or its maximum."""
    for step in range(len(offsets) - 1):
        inside = keys[offsets[step] : offsets[step + 1]]
        if field != NOT_PACKED:
            packed[step] = 0
            for key in inside:
                packed[step] += unit_of(code[key], field)
        else:
            cost[step] = set_maximum(
                inside, code, piece_sizes, slowness, barrier, jobs, sizes, tier_of, loads, scratch
            )  # fmt: skip


@compiled
def _change_of_packed(
    uses, often, at_a, end_a, at_b, end_b, shift_a, shift_b, weight_a, weight_b, packed, field, keep, ceil_of, is_even,
    each, piece, piece_sizes, slowness, barrier,
):  # fmt: skip
    """Change of the objective if the counts of the steps of a move by ``shift_a`` and those of b by ``shift_b``."""
    delta = 0.0
    while at_a < end_a or at_b < end_b:
        is_a = at_b >= end_b or (at_a < end_a and uses[at_a] <= uses[at_b])
        is_b = at_a >= end_a or (at_b < end_b and uses[at_b] <= uses[at_a])
        step = uses[at_a] if is_a else uses[at_b]
        before = packed[step]
        at_a += is_a
        at_b += is_b
        after = before + is_a * shift_a + is_b * shift_b
        weight = (weight_a if is_a else weight_b) * often[step]
        if is_even:
            delta += weight * each * (two_even_maximum(after, piece) - two_even_maximum(before, piece))
        elif field == FIELD_OF_TWO:
            delta += weight * two_uneven_maximum(after, piece_sizes, slowness, barrier)
            delta -= weight * two_uneven_maximum(before, piece_sizes, slowness, barrier)
        else:
            more = hall_maximum(after, field, keep, ceil_of) - hall_maximum(before, field, keep, ceil_of)
            delta += weight * each * more
    return delta
