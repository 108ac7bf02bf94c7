"""replica_gains: changes of masks that gain most per byte, one after the other, over all layers and tiers.  Floor 3.

The exact gain of a change is what it takes off the sum of maxima, over the layer-steps that use the expert. Greedy, and
lazy (Minoux 1978): after a change only the gains of its layer are stale, and one is computed again when it comes to the
top. The objective is not submodular (a copy may gain only after another), so a stale gain may be too low: greedy is a
start for ``anneal``, not an optimum. So a use has a small worth of its own: memory that no copy gains with goes to the
hottest experts, and an expert that a fast tier takes counts by its part of the mean load too (that a step of four
loses one seldom lowers its maximum, that it loses two does). Three changes: another copy on a node, a place on a fast
tier, a cut over all nodes. Does not know how many bytes a planner wants to spend.
"""

from __future__ import annotations

import numpy as np

from moelab.planner.compiled import compiled
from moelab.planner.node_problem import NodeProblem
from moelab.planner.step_maximum import CUT, scratch_arrays, set_maximum, step_maxima

COPY, PROMOTE, CUT_UP = 0, 1, 2
"""Kinds of change: a copy on a node more; served by a fast tier alone; cut over all nodes."""

LITTLE = 1e-6
"""Worth of a use, in experts: decides only where nothing gains."""


def add_replicas(problem: NodeProblem, masks: np.ndarray, room: np.ndarray) -> np.ndarray:
    """``masks`` int64 [L, E] with copies added where they gain most per byte, within ``room`` int64 [N]."""
    return _changed(problem, masks, COPY, np.where(np.arange(len(room)) < problem.num_nodes, room, 0), LITTLE)


def promote_to_fast(problem: NodeProblem, masks: np.ndarray, room: np.ndarray) -> np.ndarray:
    """``masks`` with experts moved to the fast tiers, which have ``room`` int64 [N] bytes, where that gains most."""
    on_fast = np.where(np.arange(len(room)) >= problem.num_nodes, room, 0)
    is_free = (problem.times.slowness[problem.num_nodes :] < problem.times.slowness.max() / 10).all()
    return _changed(problem, masks, PROMOTE, on_fast, 1 / problem.num_nodes if is_free else 0.0)


def cut_experts(problem: NodeProblem, masks: np.ndarray, most: int) -> np.ndarray:
    """``masks`` with up to ``most`` experts of one copy cut over all nodes, where that gains most."""
    room = np.zeros(len(problem.tiers), np.int64)
    room[0] = most * problem.tier_bytes[0].max()  # one expert's bytes each; a cut needs no memory of its own
    return _changed(problem, masks, CUT_UP, room)


def _changed(problem: NodeProblem, masks: np.ndarray, kind: int, room: np.ndarray, bonus: float = 0.0) -> np.ndarray:
    steps, times = problem.train, problem.times
    code = np.ascontiguousarray(masks, np.int64).ravel().copy()
    num_candidates = code.size * times.num_tiers
    first_use, uses = steps.inverted
    cost = step_maxima(steps, masks, times)
    _take_best(
        steps.offsets, steps.keys, first_use, uses, problem.shape, problem.num_nodes, kind, code, room.copy(),
        problem.tier_bytes, times.piece_sizes, times.slowness, times.barrier, bonus, problem.layer_weight, cost,
        np.zeros(num_candidates), np.zeros(num_candidates, np.int64), np.zeros(problem.shape[0], np.int64),
        np.full(problem.shape[0], -1), *scratch_arrays(steps, times.num_tiers),
    )  # fmt: skip
    return code.reshape(masks.shape)


@compiled
def _take_best(
    offsets, keys, first_use, uses, shape, num_nodes, kind, code, room, tier_bytes, piece_sizes, slowness, barrier,
    bonus, weight, cost, gain, version_of, version, top, jobs, sizes, tier_of, loads, scratch,
):  # fmt: skip
    """``gain`` per byte and the ``version`` of its layer at which it was computed, of key x N + tier; ``top`` [L]."""
    num_layers, num_experts = shape
    num_tiers = len(slowness)
    for layer in range(num_layers):
        for key in range(layer * num_experts, (layer + 1) * num_experts):
            for tier in range(num_tiers):
                place = key * num_tiers + tier
                mask = _after(code[key], tier, kind, num_nodes)
                gain[place] = -1.0
                if mask >= 0:
                    saved = _saved(
                        offsets, keys, first_use, uses, code, key, mask, piece_sizes, slowness, barrier, bonus, cost,
                        False, jobs, sizes, tier_of, loads, scratch,
                    )  # fmt: skip
                    gain[place] = saved * weight[layer] / tier_bytes[tier, layer]
        top[layer] = _highest(gain, layer * num_experts * num_tiers, num_experts * num_tiers, room, tier_bytes, layer)
    while True:
        best = -1
        for layer in range(num_layers):
            if top[layer] >= 0 and (best < 0 or gain[top[layer]] > gain[top[best]]):
                best = layer
        if best < 0:
            return
        place = top[best]
        key, tier = place // num_tiers, place % num_tiers
        mask = _after(code[key], tier, kind, num_nodes)
        if room[tier] < tier_bytes[tier, best] or mask < 0:
            gain[place] = -1.0
        else:
            is_fresh = version_of[place] == version[best]
            saved = _saved(
                offsets, keys, first_use, uses, code, key, mask, piece_sizes, slowness, barrier, bonus, cost, is_fresh,
                jobs, sizes, tier_of, loads, scratch,
            )  # fmt: skip
            if is_fresh:
                code[key] = mask
                room[tier] -= tier_bytes[tier, best]
                version[best] += 1
                gain[place] = -1.0
                for other in range(num_tiers):  # what the change allows or forbids to this expert
                    at, following = key * num_tiers + other, _after(mask, other, kind, num_nodes)
                    gain[at] = -1.0
                    if following >= 0:
                        again = _saved(
                            offsets, keys, first_use, uses, code, key, following, piece_sizes, slowness, barrier, bonus,
                            cost, False, jobs, sizes, tier_of, loads, scratch,
                        )  # fmt: skip
                        gain[at] = again * weight[best] / tier_bytes[other, best]
                        version_of[at] = version[best]
            else:
                gain[place] = saved * weight[best] / tier_bytes[tier, best]
                version_of[place] = version[best]
        for layer in range(num_layers):
            if layer == best or room[tier] < tier_bytes[tier, layer]:
                top[layer] = _highest(
                    gain, layer * num_experts * num_tiers, num_experts * num_tiers, room, tier_bytes, layer
                )


@compiled
def _after(mask, tier, kind, num_nodes):
    """The mask after the change, -1 where there is none."""
    if kind == COPY:
        return mask | 1 << tier if tier < num_nodes and 0 < mask < 1 << num_nodes and not mask >> tier & 1 else -1
    if kind == PROMOTE:
        return 1 << tier if tier >= num_nodes and 0 < mask < 1 << num_nodes else -1
    return CUT if tier == 0 and 0 < mask < 1 << num_nodes and not mask & (mask - 1) else -1


@compiled
def _highest(gain, first, num, room, tier_bytes, layer):
    """Place of the highest gain above 0 whose tier has room, -1 without one."""
    best, num_tiers = -1, len(room)
    for place in range(first, first + num):
        has_room = room[place % num_tiers] >= tier_bytes[place % num_tiers, layer]
        if gain[place] > 0 and has_room and (best < 0 or gain[place] > gain[best]):
            best = place
    return best


@compiled
def _saved(
    offsets, keys, first_use, uses, code, key, mask, piece_sizes, slowness, barrier, bonus, cost, is_kept, jobs, sizes,
    tier_of, loads, scratch,
):  # fmt: skip
    """What the layer-steps that use ``key`` take less under ``mask``, with a bonus; ``is_kept``: into ``cost``."""
    before, saved = code[key], 0.0
    code[key] = mask
    for use in range(first_use[key], first_use[key + 1]):
        step = uses[use]
        time = set_maximum(
            keys[offsets[step] : offsets[step + 1]], code, piece_sizes, slowness, barrier, jobs, sizes, tier_of, loads,
            scratch,
        )  # fmt: skip
        saved += cost[step] - time
        if is_kept:
            cost[step] = time
    code[key] = before
    return saved + bonus * (first_use[key + 1] - first_use[key])
