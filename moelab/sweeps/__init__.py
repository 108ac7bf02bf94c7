"""Floor 4. Many policies at many capacities over one trace: resumable rows, in threads or on a Dask cluster."""

from __future__ import annotations

from moelab.sweeps.cell import Cell
from moelab.sweeps.result import SweepResult
from moelab.sweeps.sweep import sweep

__all__ = ["Cell", "SweepResult", "sweep"]
