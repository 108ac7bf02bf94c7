"""step_entries: which node computes which part of an expert in each layer-step, as ``dispatch`` chooses.  Floor 3.

What a prediction of time needs and ``step_maximum`` does not keep: all nodes, not the slowest. Does not know seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.dispatch import dispatch
from moelab.planner.compiled import compiled
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.step_maximum import CUT, WHOLE, TierTimes, scratch_arrays


@dataclass(frozen=True, eq=False)
class StepEntries:
    """Arrays [M]: in layer-step ``step`` tier ``node`` computes ``part`` of expert ``key`` (layer x E + expert)."""

    step: np.ndarray
    node: np.ndarray
    part: np.ndarray
    key: np.ndarray

    def of_nodes(self, num_nodes: int) -> StepEntries:
        """Without what fast tiers compute."""
        here = self.node < num_nodes
        return StepEntries(self.step[here], self.node[here], self.part[here], self.key[here])


def step_entries(steps: LayerSteps, masks: np.ndarray, times: TierTimes, piece_units: np.ndarray) -> StepEntries:
    """Under ``masks`` int64 [L, E]; ``piece_units`` [nodes]: units of a cut expert, which give the parts of its pieces.

    Dispatch is told the units of pieces, as the kernels tell it their bytes.
    """
    num_tiers = times.num_tiers
    most = len(steps.keys) * max(1, len(piece_units))
    parts = np.zeros(num_tiers, np.int64)
    parts[: len(piece_units)] = np.rint(piece_units / piece_units.sum() * WHOLE)
    step, node, key = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    size = np.empty(most, np.int64)
    count = _fill(
        steps.offsets, steps.keys, np.ascontiguousarray(masks, np.int64).ravel(), parts, times.slowness,
        *scratch_arrays(steps, num_tiers), step, node, size, key,
    )  # fmt: skip
    return StepEntries(step[:count], node[:count], size[:count] / WHOLE, key[:count])


@compiled
def _fill(
    offsets, keys, code, parts, slowness, jobs, sizes, tier_of, loads, scratch, out_step, out_node, out_size, out_key
):
    count = 0
    num_tiers = len(slowness)
    for step in range(len(offsets) - 1):
        first, num_jobs = count, 0
        for place in range(offsets[step], offsets[step + 1]):
            mask = code[keys[place]]
            if mask != CUT:
                jobs[num_jobs], sizes[num_jobs] = mask, WHOLE
                out_key[first + num_jobs] = keys[place]
                num_jobs += 1
                continue
            for tier in range(num_tiers):
                if parts[tier]:
                    jobs[num_jobs], sizes[num_jobs] = 1 << tier, parts[tier]
                    out_key[first + num_jobs] = keys[place]
                    num_jobs += 1
        dispatch(jobs[:num_jobs], sizes[:num_jobs], slowness, tier_of[:num_jobs], loads, scratch)
        for job in range(num_jobs):
            out_step[count], out_node[count], out_size[count] = step, tier_of[job], sizes[job]
            count += 1
    return count
