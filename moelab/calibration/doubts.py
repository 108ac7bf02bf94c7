"""doubts: why a calibration should not be trusted: the machine was busy with something else meanwhile; and where it
holds for its minutes alone, because the machine itself moved.  Floor 3.

Judged on the machine document alone, against fixed limits. Does not measure again.
"""

from __future__ import annotations

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.spread import Spread
from moelab.domain.units import GB

MOST_SPREAD = 0.5  # middle half of a read rate's rounds over their median
MOST_WIDTH = 0.10  # middle half of a figure's rounds over their median: predictions in ms may be off by as much
MOST_RESIDUAL = 0.05  # median relative error of a fit
MOST_OF_READS = 1.1  # a kernel's rate over that of a pure read by the same workers in the same rounds


def doubts_of(machine: Machine) -> tuple[str, ...]:
    """One sentence for each figure beyond its limit: what, how much, the limit, what to do; none where all is well."""
    again = "calibrate again while the machine is idle"
    found = []
    spread = machine.residuals.get("reads_spread", 0.0)
    if spread > MOST_SPREAD:
        limit = f"expected at most {MOST_SPREAD:.0%}"
        found.append(f"read rates spread over {spread:.0%} of their median, {limit}: {again}")
    for times in machine.expert_times:
        if times.residual > MOST_RESIDUAL:
            found.append(
                f"{times.name}: residual of the fit {times.residual:.1%}, expected at most {MOST_RESIDUAL:.0%}: {again}"
            )
        seconds = times.expert_s[min(times.expert_s)]
        rate = times.expert_bytes / seconds / GB if seconds else np.inf
        if rate > MOST_OF_READS * times.read_gb_per_s:
            found.append(
                f"{times.name}: the kernel reads {rate:.1f} GB/s, a pure read {times.read_gb_per_s:.1f}, expected at "
                f"most {MOST_OF_READS:g} times that: {again}, or take experts that do not fit the cache"
            )
    return tuple(found)


def unsteady_of(machine: Machine) -> str | None:
    """One sentence where reads of a node or a kernel moved by more than ``MOST_WIDTH`` in the rounds: which, by how
    much, what follows, what to do. None where nothing did, or where nobody noted it (older files)."""
    moved = [f"{name} {each.width:.0%}" for name, each in _spreads(machine).items() if each.width > MOST_WIDTH]
    if not moved:
        return None
    return (
        f"quartiles of the rounds are apart by more than {MOST_WIDTH:.0%}: {', '.join(moved)}. Predictions in ms may "
        "be off by as much, or by more in another hour: calibrate again on a quieter machine, or use ratios of them"
    )


def width_of(machine: Machine) -> float:
    """The widest middle half of what was noted, over its median; 0 where nothing was."""
    return max((each.width for each in _spreads(machine).values()), default=0.0)


def _spreads(machine: Machine) -> dict[str, Spread]:
    found = {f"{node.name} reads": node.read_gb_per_s_spread for node in machine.nodes}
    found |= {times.name: times.expert_s_spread for times in machine.expert_times}
    return {name: each for name, each in found.items() if each is not None}
