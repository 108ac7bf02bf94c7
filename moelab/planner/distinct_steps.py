"""distinct_steps: layer-steps that use the same experts, once each, with how often they occur.  Floor 3.

What a placement costs depends on the SET of experts alone, and a layer meets many sets again and again: of
gpt-oss-20b's layer-steps six in seven repeat another one. So a search looks at one of each and multiplies. Sets are
found by a 64-bit hash and compared, so that a collision costs time and no result. Does not know placements.
"""

from __future__ import annotations

import numpy as np

from moelab.planner.layer_steps import LayerSteps

ODD = np.uint64(0x9E3779B97F4A7C15)
"""Of the hash: 2^64 over the golden ratio (Knuth, The Art of Computer Programming 3, section 6.4)."""


def distinct_steps(steps: LayerSteps) -> tuple[LayerSteps, np.ndarray]:
    """(the first of each set of ``steps``, in their order; float64: how often each occurs, its sum is S).

    Clusters are those of the firsts. ``steps`` itself where no set occurs twice.
    """
    sizes = steps.sizes
    first_of = np.arange(len(sizes))
    for size in np.unique(sizes):
        index = np.flatnonzero(sizes == size)
        rows = steps.keys[steps.offsets[index][:, None] + np.arange(size)]
        hashed = np.zeros(len(index), np.uint64)
        for column in rows.T:
            hashed = (hashed ^ column.astype(np.uint64)) * ODD
            hashed ^= hashed >> np.uint64(29)
        _, first, same = np.unique(hashed, return_index=True, return_inverse=True)
        alike = (rows[first[same]] == rows).all(1)
        first_of[index[alike]] = index[first[same[alike]]]
    is_first = first_of == np.arange(len(sizes))
    often = np.bincount(first_of, minlength=len(sizes))[is_first].astype(np.float64)
    return (steps, often) if is_first.all() else (steps.take(is_first), often)
