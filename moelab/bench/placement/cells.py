"""Cells of the memory-bound judgement: (plan, policy, capacity, batch), predicted and measured by turns.  Floor 6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

WAYS = {
    "model": "contention model, reads and kernels of the moment",
    "reads": "contention model, reads of the moment",
    "beforehand": "contention model, calibration alone",
    "bytes": "total bytes over the read limit of the moment",
    "kernel_bytes": "total bytes over what kernels read in the moment",
}
"""How seconds are predicted, by name. ``beforehand`` alone is fixed before anything runs; ``kernel_bytes`` knows what
``model`` knows, and has no model."""


@dataclass(frozen=True, eq=False)
class Cell:
    """Seconds of all steps of the cell, arrays [rounds]: measured, and ``predicted`` in each of ``WAYS``.

    ``link``: were experts copied meanwhile? ``read_gb_per_s`` [rounds]: of all workers together, beside each run;
    ``kernel_share`` [rounds]: what two busy nodes, or kernels beside copies, reach of it.
    """

    plan: str
    policy: str
    capacity: float
    batch: int
    num_steps: int
    measured_s: np.ndarray
    predicted: Mapping[str, np.ndarray]
    read_gb_per_s: np.ndarray
    kernel_share: np.ndarray
    link: bool = False

    def error(self, way: str = "model") -> float:
        """Median over rounds of predicted over measured, - 1."""
        return float(np.median(self.predicted[way] / self.measured_s) - 1)

    @property
    def ms_per_step(self) -> float:
        return float(1e3 * np.median(self.measured_s) / self.num_steps)

    @property
    def predicted_ms_per_step(self) -> float:
        return float(1e3 * np.median(self.predicted["model"]) / self.num_steps)


@dataclass(frozen=True, eq=False)
class MemoryBound:
    """``read_gb_per_s`` (smallest, median, largest) of both nodes together over all rounds."""

    trace: str
    kernel: str
    num_layers: int
    num_rounds: int
    cells: list[Cell]
    read_gb_per_s: tuple[float, float, float]

    def median_error(self, way: str = "model") -> float:
        """Median over cells of the absolute error."""
        return float(np.median([abs(cell.error(way)) for cell in self.cells]))

    @property
    def span(self) -> float:
        """Largest time of a step over the smallest."""
        times = [cell.ms_per_step for cell in self.cells]
        return max(times) / min(times)
