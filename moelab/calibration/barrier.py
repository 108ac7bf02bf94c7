"""The time of one meeting of all workers: a layer-step with next to no work, on the pool and on the caller. Floor 3."""

from __future__ import annotations

import numpy as np

from moelab.calibration.rounds import in_rounds, timed
from moelab.calibration.shelf import Shelf
from moelab.domain.allowed_cores import allowed_cores
from moelab.domain.plan_copies import whole_on
from moelab.kernels import Activation, ExpertLayout, Pool, RoutedExperts

_SHAPE = (64, 64)
_MEETINGS = 4  # after quantising, gate_up and down, and the end of the run
_CALLS = 300


def barrier_s(isa: str, activation: Activation) -> float | None:
    """Seconds, the median; ``None`` on one core. Starting the workers is in it, a fourth part of each call.

    Two experts on two nodes (virtual ones where the machine has one), because small steps of one node stay on the
    caller.
    """
    if len(allowed_cores()) < 2:
        return None
    layout = ExpertLayout(*_SHAPE, "int4_g32" if activation != "f32" else "float32")
    with Pool(virtual_nodes=2) as pool, Pool(1) as caller:

        def layer(of: Pool) -> RoutedExperts:
            placed = Shelf(layout, 2, of).placement(whole_on(np.arange(2) % of.num_nodes, 2))
            return RoutedExperts(layout, placed.addresses, isa, activation, of, owner=placed, placement=placed)

        x, ids = np.ones((1, layout.hidden_size), np.float32), np.arange(2)[None]
        gates = np.full((1, 2), 0.5, np.float32)
        together, alone = layer(pool), layer(caller)
        values = in_rounds(
            {
                "pool": lambda: timed(together.forward, x, ids, gates),
                "alone": lambda: timed(alone.forward, x, ids, gates),
            },
            seconds=0.5, most_rounds=_CALLS,
        )  # fmt: skip
    return max(0.0, float(np.median(values["pool"]) - np.median(values["alone"]))) / _MEETINGS
