"""check_residency: does the simulated cache hold what a recorded engine's cache held, row by row?  Floor 2.

A trace whose engine wrote down, for each (token, layer, slot), whether the expert was resident (extra
``residency``: 0 miss, 1 hit, 2 prefetch hit, 255 not recorded) is the strictest test of a simulator: not one
rate, but every row. The simulated side is rebuilt from the log of decisions, a second path beside the
loop's own counters. A hit is a hit whether it was fetched on demand or ahead of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import NO_EXPERT, Trace
from moelab.policies.signature import EVICT
from moelab.simulator.result import SimResult

if TYPE_CHECKING:
    import pandas as pd

EXTRA = "residency"
NOT_RECORDED = 255


@dataclass(frozen=True, eq=False)
class ResidencyCheck:
    """Rows (token, layer, slot) with a recorded residency, and what the simulation says of each.

    ``token``, ``layer``, ``slot`` int64 [N]; ``recorded``, ``simulated`` bool [N]: resident before its request.
    """

    token: np.ndarray
    layer: np.ndarray
    slot: np.ndarray
    recorded: np.ndarray
    simulated: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.recorded)

    @property
    def agree(self) -> int:
        return int((self.recorded == self.simulated).sum())

    def summary(self) -> dict[str, Any]:
        """The two counts, as ``--json`` names them."""
        return {"residency_rows": self.rows, "residency_agree": self.agree}

    def to_frame(self) -> pd.DataFrame:
        """The rows that disagree, in the order of the trace."""
        import pandas as pd

        wrong = self.recorded != self.simulated
        names = ("token", "layer", "slot", "recorded", "simulated")
        return pd.DataFrame({name: getattr(self, name)[wrong] for name in names})

    def __repr__(self) -> str:
        return f"ResidencyCheck({self.agree} of {self.rows} rows agree)"

    def _repr_html_(self) -> str:
        return f"<b>ResidencyCheck</b>: {self.agree} of {self.rows} rows agree" + self.to_frame().head(20).to_html()


def check_residency(trace: Trace, plan: Plan, result: SimResult) -> ResidencyCheck:
    """Compare all recorded rows; ``result`` is ``simulate(trace, plan, log=True)``.

    Raises ``ValueError`` where the trace carries no residency or the run kept no log.
    """
    if EXTRA not in trace.extras:
        raise ValueError(
            f"the trace of {trace.header.model} carries no recorded residency, so there is nothing to compare with: "
            "give a capture of an engine that wrote it down (BigMoeOnEdge's route_trace)"
        )
    if result.log is None:
        raise ValueError("this run kept no log of decisions: simulate with log=True")
    recorded = trace.extras[EXTRA]
    token, layer, slot = np.nonzero((recorded != NOT_RECORDED) & (trace.experts != NO_EXPERT))
    num_layers, num_experts = trace.header.num_layers, trace.header.num_experts
    key = layer * num_experts + trace.experts[token, layer, slot]
    step = np.unique(trace.tokens.step, return_inverse=True)[1][token]
    clock = step * num_layers + layer

    initial = np.zeros((num_layers, num_experts), bool)
    for fast in plan.fast_tiers:
        initial |= plan.resident(fast.tier)
    # One line of events for all experts: by key, and by clock within it; the last event before a use decides.
    events = result.log
    stride = len(result.phase_of_step) * num_layers + 1
    event_place = (events[:, 2] * num_experts + events[:, 3]) * stride + events[:, 0]
    order = np.argsort(event_place, kind="stable")
    event_place, arrives = event_place[order], events[order, 1] != EVICT
    last = np.searchsorted(event_place, key * stride + clock) - 1
    has_event = (last >= 0) & (event_place[last] // stride == key) if len(events) else np.zeros(len(key), bool)
    simulated = initial.ravel()[key]
    simulated[has_event] = arrives[last[has_event]]
    return ResidencyCheck(token, layer, slot, recorded[token, layer, slot] != 0, simulated)
