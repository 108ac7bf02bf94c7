"""Floor 2. What a trace says by itself: popularity, reuse, lag overlap, co-activation, stability, miss-ratio curves."""

from __future__ import annotations

from moelab.analysis.analyse import Analysis, analyse
from moelab.analysis.coactivation import Coactivation, coactivation
from moelab.analysis.lag_overlap import LagOverlap, lag_overlap
from moelab.analysis.miss_ratio_curve import MissRatioCurve, miss_ratio_curve
from moelab.analysis.popularity import Popularity, popularity
from moelab.analysis.reuse import ReuseDistances, reuse_distances
from moelab.analysis.stability import Stability, stability

__all__ = [
    "Analysis",
    "Coactivation",
    "LagOverlap",
    "MissRatioCurve",
    "Popularity",
    "ReuseDistances",
    "Stability",
    "analyse",
    "coactivation",
    "lag_overlap",
    "miss_ratio_curve",
    "popularity",
    "reuse_distances",
    "stability",
]
