"""Columns of the counts of one request, as the simulator, the live engine and shadows write them.  Floor 1."""

from __future__ import annotations

HITS, MISSES, UPLOADS, PREFETCHES, EVICTIONS, ROUTED_HITS, ROUTINGS, LATE = range(8)
"""Distinct hits, distinct misses, uploads (admitted), prefetches, evictions, routings that hit, routings, late copies
(only a live engine has them: the simulator's copies arrive in time)."""

NUM_COLUMNS = 8

LAYER_STEPS = 8
"""Column behind those in sums by phase and layer: requests of the layer that routed anything."""
