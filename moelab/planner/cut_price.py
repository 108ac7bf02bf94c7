"""cut_price: what row pieces cost beyond their bytes, as the machine was measured to take, or bytes alone.  Floor 3.

In our kernels a cut expert costs no meeting of the workers beyond those that every layer-step has, so that the price is
shorter runs of rows: ``piece_factor`` of ``ExpertTimes`` where all nodes work. Where memory decides it vanishes, where
cores decide it stays.
"""

from __future__ import annotations

from dataclasses import dataclass

from moelab.cost_model.node_time import entry_s
from moelab.domain.machine import Machine

NOISE = 0.03
"""Pieces that were measured to be cheaper than wholes by less are as dear: nothing makes short runs of rows faster."""


@dataclass(frozen=True)
class CutPrice:
    """What cutting experts into row pieces costs beyond their bytes; a measurement, never a guess.

    ``slice_factor``: time of the pieces over the time of the whole at equal bytes (short rows are slower); ``barrier``:
    what a layer-step with a cut expert takes longer, in units of one expert's time on a node; ``source``: who measured.
    """

    slice_factor: float = 1.0
    barrier: float = 0.0
    source: str = "not measured: bytes alone"


def measured_price(
    machine: Machine | None, hidden_size: int | None, intermediate_size: int | None, num_nodes: int
) -> CutPrice:
    """Of experts of that shape in ``num_nodes`` pieces; says so where the machine was not calibrated for it."""
    times = None if machine is None else machine.times_of(hidden_size, intermediate_size)
    if machine is None or times is None or num_nodes < 2 or not times.piece_factor:
        return CutPrice()
    busy = num_nodes if num_nodes <= len(machine.nodes) else 1  # nodes that are composed share nothing
    whole, piece = (float(entry_s(times, part, 1, busy=busy)) for part in (1.0, 1.0 / num_nodes))
    factor = num_nodes * piece / whole
    return CutPrice(
        slice_factor=1.0 if 1 - NOISE <= factor < 1 else factor,
        barrier=0.0,
        source=f"measured: {times.name}, {machine.source} of {machine.name}, {times.date or machine.date}, "
        f"residual {times.residual:.1%}" + ("; in doubt: see the machine's notes" if machine.notes else ""),
    )
