"""Cells of the memory-bound judgement: (plan, policy, capacity, batch), predicted and measured by turns.  Floor 6."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Cell:
    """Arrays [rounds], seconds of all steps of the cell: measured; predicted by the contention model from what the
    calibration's own calls took in the same round; by the calibration as it was, with the read rates of the round
    alone; and bytes over the read limit of that round. ``link``: were experts copied meanwhile?
    """

    plan: str
    policy: str
    capacity: float
    batch: int
    num_steps: int
    measured_s: np.ndarray
    predicted_s: np.ndarray
    calibrated_s: np.ndarray
    naive_s: np.ndarray
    link: bool = False

    @property
    def error(self) -> float:
        """Median over rounds of predicted over measured, - 1."""
        return float(np.median(self.predicted_s / self.measured_s) - 1)

    @property
    def calibrated_error(self) -> float:
        return float(np.median(self.calibrated_s / self.measured_s) - 1)

    @property
    def naive_error(self) -> float:
        return float(np.median(self.naive_s / self.measured_s) - 1)

    @property
    def ms_per_step(self) -> float:
        return float(1e3 * np.median(self.measured_s) / self.num_steps)

    @property
    def predicted_ms_per_step(self) -> float:
        return float(1e3 * np.median(self.predicted_s) / self.num_steps)


@dataclass(frozen=True, eq=False)
class MemoryBound:
    """``read_gb_per_s`` (smallest, median, largest) of both nodes together over all rounds."""

    trace: str
    kernel: str
    num_layers: int
    num_rounds: int
    cells: list[Cell]
    read_gb_per_s: tuple[float, float, float]

    @property
    def median_error(self) -> float:
        """Median over cells of the absolute error."""
        return float(np.median([abs(cell.error) for cell in self.cells]))

    @property
    def median_calibrated_error(self) -> float:
        return float(np.median([abs(cell.calibrated_error) for cell in self.cells]))

    @property
    def median_naive_error(self) -> float:
        return float(np.median([abs(cell.naive_error) for cell in self.cells]))

    @property
    def span(self) -> float:
        """Largest time of a step over the smallest."""
        times = [cell.ms_per_step for cell in self.cells]
        return max(times) / min(times)
