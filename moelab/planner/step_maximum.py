"""step_maximum: time of the slowest tier in each layer-step under a placement; dispatch chooses replicas.  Floor 3.

This is the objective (decision 3): F = mean over layer-steps of the minimum over assignments of the maximum over tiers
of bytes / rate. Unit: the time that one expert takes on a node of mean rate, so that K / N is the ideal for equal
layers. An expert is whole on the tiers of its mask, or cut into one piece for each node (mask 0). Two tiers, single
copies and copies on the first two of more have closed forms; the rest asks ``moelab.dispatch`` itself. Does not know
how placements are found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.dispatch import dispatch, scratch_length
from moelab.planner.compiled import compiled
from moelab.planner.layer_steps import LayerSteps

WHOLE = 2**20
"""Parts of a whole expert, so that pieces are integers."""

CUT = 0
"""Mask of an expert that is cut over the nodes."""


@dataclass(frozen=True, eq=False)
class TierTimes:
    """``num_nodes`` of the N tiers are nodes, which come first.

    ``slowness`` float64 [N]: time of one part (1 / ``WHOLE`` of an expert) on each tier.
    ``piece_sizes`` int64 [N]: parts that a cut expert costs on each tier, 0 on fast tiers; more than ``WHOLE`` in
    sum where pieces are measured to be slower than wholes. ``barrier``: time that a layer-step with a cut expert takes
    longer, in the same unit; measured, or 0.
    """

    num_nodes: int
    slowness: np.ndarray
    piece_sizes: np.ndarray
    barrier: float = 0.0

    @property
    def num_tiers(self) -> int:
        return len(self.slowness)

    @classmethod
    def equal_nodes(cls, num_nodes: int) -> TierTimes:
        """Nodes of one rate; ``WHOLE`` need not divide by their number, so the first pieces are one part larger."""
        pieces = np.full(num_nodes, WHOLE // num_nodes, np.int64)
        pieces[: WHOLE % num_nodes] += 1
        return cls(num_nodes, np.full(num_nodes, 1 / WHOLE), pieces)


def step_maxima(steps: LayerSteps, masks: np.ndarray, times: TierTimes) -> np.ndarray:
    """float64 [S], not weighted by layer; ``masks`` int64 [L, E], bit v: tier v holds a whole copy, ``CUT``: none."""
    out = np.empty(steps.num_layer_steps)
    scratch = scratch_arrays(steps, times.num_tiers)
    code = np.ascontiguousarray(masks, np.int64).ravel()
    _all_maxima(
        steps.offsets, steps.keys, code, times.piece_sizes, times.slowness, times.barrier, *scratch, out
    )  # fmt: skip
    return out


def scratch_arrays(steps: LayerSteps, num_tiers: int) -> tuple[np.ndarray, ...]:
    """Memory of one compiled evaluation: jobs of the largest layer-step, every expert of it cut."""
    jobs = int(steps.sizes.max(initial=1)) * num_tiers
    return (
        np.empty(jobs, np.int64),
        np.empty(jobs, np.int64),
        np.empty(jobs, np.int32),
        np.empty(num_tiers),
        np.empty(scratch_length(jobs, num_tiers), np.int64),
    )


@compiled
def _all_maxima(offsets, keys, code, piece_sizes, slowness, barrier, jobs, sizes, tier_of, loads, scratch, out):
    for step in range(len(offsets) - 1):
        out[step] = set_maximum(
            keys[offsets[step] : offsets[step + 1]], code, piece_sizes, slowness, barrier, jobs, sizes, tier_of, loads,
            scratch,
        )  # fmt: skip


@compiled
def set_maximum(keys, code, piece_sizes, slowness, barrier, jobs, sizes, tier_of, loads, scratch):
    """Time of one layer-step; ``code`` int64 [L E] is the mask of every expert."""
    num_tiers = len(slowness)
    for tier in range(num_tiers):
        loads[tier] = 0
    on_both, num_cut, is_closed = 0, 0, True
    for key in keys:
        mask = code[key]
        if mask == 3:
            on_both += 1
        elif mask == CUT:
            num_cut += 1
        elif mask & (mask - 1):
            is_closed = False
        else:
            tier = 0
            while not mask >> tier & 1:
                tier += 1
            loads[tier] += WHOLE * slowness[tier]
    if is_closed:
        most = 0.0
        for tier in range(num_tiers):
            loads[tier] += num_cut * piece_sizes[tier] * slowness[tier]
            most = max(most, loads[tier])
        if on_both:
            rest = 0.0
            for tier in range(2, num_tiers):
                rest = max(rest, loads[tier])
            most = max(rest, _two(loads[0], loads[1], on_both, WHOLE * slowness[0], WHOLE * slowness[1]))
        return most + (barrier if num_cut else 0.0)
    num_jobs = 0
    for key in keys:
        mask = code[key]
        if mask != CUT:
            jobs[num_jobs], sizes[num_jobs] = mask, WHOLE
            num_jobs += 1
        else:
            for tier in range(num_tiers):
                if piece_sizes[tier]:
                    jobs[num_jobs], sizes[num_jobs] = 1 << tier, piece_sizes[tier]
                    num_jobs += 1
    dispatch(jobs[:num_jobs], sizes[:num_jobs], slowness, tier_of[:num_jobs], loads, scratch)
    most = 0.0
    for tier in range(num_tiers):
        most = max(most, loads[tier])
    return most + (barrier if num_cut else 0.0)


@compiled
def two_maximum(on_0, on_1, on_both, num_cut, piece_sizes, slowness, barrier):
    """The same for two tiers from the numbers of experts on each alone, on both, and cut."""
    each_0, each_1 = WHOLE * slowness[0], WHOLE * slowness[1]
    fixed_0 = on_0 * each_0 + num_cut * piece_sizes[0] * slowness[0]
    fixed_1 = on_1 * each_1 + num_cut * piece_sizes[1] * slowness[1]
    return _two(fixed_0, fixed_1, on_both, each_0, each_1) + (barrier if num_cut else 0.0)


@compiled
def _two(fixed_0, fixed_1, on_both, each_0, each_1):
    """Of those on both, as many go to tier 0 as even the times, rounded either way."""
    if on_both == 0:
        return max(fixed_0, fixed_1)
    even = (fixed_1 + on_both * each_1 - fixed_0) / (each_0 + each_1)
    low = int(np.floor(min(max(even, 0.0), float(on_both))))
    high = min(low + 1, on_both)
    at_low = max(fixed_0 + low * each_0, fixed_1 + (on_both - low) * each_1)
    at_high = max(fixed_0 + high * each_0, fixed_1 + (on_both - high) * each_1)
    return min(at_low, at_high)
