"""measured_share: which of the kernels that a machine measured stands for a plan's experts.  Floor 1.

A machine has rows ``isa/weight format/activation``, of several runs of ``moelab calibrate``. The row is the one that an
engine there would run: of the format, of the fastest ISA in the automatic order, of the format's first activation. What
was not measured is said, never quietly another format's. Does not know shapes (``ExpertTimes`` does).
"""

from __future__ import annotations

from dataclasses import dataclass

from moelab.domain.machine import Machine
from moelab.kernels.isa import AUTOMATIC_ORDER
from moelab.kernels.job import ACTIVATIONS_OF_FORMAT


@dataclass(frozen=True)
class KernelShare:
    """``share``: kernel rate / read rate; ``kernel``: the row it is of, in words where the machine has none such."""

    share: float
    kernel: str
    is_measured: bool


def kernel_share(
    machine: Machine, weight_format: str, *, activation: str | None = None, isa: str | None = None
) -> KernelShare:
    """Of experts in ``weight_format``; ``activation`` and ``isa`` where they are named, as an engine chooses otherwise.

    Without a row of the format the slowest that was measured, without any 1, which is a ceiling: ``kernel`` says so.
    """
    rows = {tuple(name.split("/")): share for name, share in machine.kernel_efficiency.items()}
    if not rows:
        return KernelShare(1.0, f"none: machine {machine.name} has no measured kernel, 1 is a ceiling", False)
    fitting = {
        row: share
        for row, share in rows.items()
        if row[1] == weight_format and activation in (None, row[2]) and isa in (None, row[0])
    }
    if not fitting:
        wanted = "/".join(each for each in (isa, weight_format, activation) if each)
        slowest = min(rows, key=lambda row: rows[row])
        words = f"{'/'.join(slowest)}, the slowest measured: machine {machine.name} has none of {wanted}"
        return KernelShare(rows[slowest], words, False)
    chosen = min(fitting, key=_order)
    return KernelShare(fitting[chosen], "/".join(chosen), True)


def _order(row: tuple[str, ...]) -> tuple[int, int]:
    """Rank of a row by what an engine chooses first; names that this version does not know come last."""
    isa, weight_format, activation = row
    modes = ACTIVATIONS_OF_FORMAT.get(weight_format, ())  # type: ignore[call-overload]
    return (
        AUTOMATIC_ORDER.index(isa) if isa in AUTOMATIC_ORDER else len(AUTOMATIC_ORDER),
        modes.index(activation) if activation in modes else len(modes),
    )
