"""Share: who computes which experts of a layer-step, the device in its slots or the kernels from home.  Floor 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.domain.trace import NO_EXPERT


@dataclass(frozen=True, slots=True)
class Share:
    """What of a layer-step the device computes: `experts` in rising order, in `slots`; `home_ids` int32 [T, K] is the
    rest (`NO_EXPERT` where the device computes). `expert_ids` and `gate_weights` [T, K] are all of it."""

    experts: list[int]
    slots: list[int]
    expert_ids: np.ndarray
    gate_weights: np.ndarray
    home_ids: np.ndarray

    @classmethod
    def all_at_home(cls, expert_ids: np.ndarray, gate_weights: np.ndarray) -> Share:
        """The device computes nothing."""
        return cls([], [], expert_ids, gate_weights, expert_ids)

    def part(self, wanted: np.ndarray) -> Share:
        """Of it the slots that are true in `wanted` bool [T, K]."""
        expert_ids = np.where(wanted, self.expert_ids, NO_EXPERT)
        here = [index for index, expert in enumerate(self.experts) if (expert_ids == expert).any()]
        return Share(
            [self.experts[index] for index in here],
            [self.slots[index] for index in here],
            expert_ids,
            self.gate_weights,
            np.where(wanted, self.home_ids, NO_EXPERT).astype(np.int32),
        )
