"""Floor 2. What a trace says by itself: popularity, reuse, miss-ratio curves."""

from __future__ import annotations

from moelab.analysis.miss_ratio_curve import MissRatioCurve, miss_ratio_curve
from moelab.analysis.popularity import Popularity, popularity
from moelab.analysis.reuse import ReuseDistances, reuse_distances

__all__ = ["MissRatioCurve", "Popularity", "ReuseDistances", "miss_ratio_curve", "popularity", "reuse_distances"]
