"""Floor 2. Replays a recorded trace under a plan and says what would have been read, and from where."""

from __future__ import annotations

from moelab.simulator.residency import ResidencyCheck, check_residency
from moelab.simulator.result import SimResult
from moelab.simulator.simulate import simulate

__all__ = ["ResidencyCheck", "SimResult", "check_residency", "simulate"]
