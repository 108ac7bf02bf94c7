"""Floor 4. How far synthetic routing is from real routing: moments, placement figures, fit and comparison."""

from __future__ import annotations

from moelab.realism.compare import Comparison, compare
from moelab.realism.fit import fit
from moelab.realism.moments import moments
from moelab.realism.placement_figures import placement_figures

__all__ = ["Comparison", "compare", "fit", "moments", "placement_figures"]
