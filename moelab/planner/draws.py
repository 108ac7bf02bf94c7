"""draws: random numbers inside compiled loops, splitmix64 (Steele, Lea and Flood 2014) with a plain state.  Floor 3.

So that a search depends on its seed alone, not on a generator that all compiled code of a thread shares.
"""

from __future__ import annotations

import numpy as np

from moelab.planner.compiled import compiled

_STEP, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11, _32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11), np.uint64(32)


@compiled
def _next(state):
    state[0] += _STEP
    bits = state[0]
    bits = (bits ^ bits >> _30) * _MIX_1
    bits = (bits ^ bits >> _27) * _MIX_2
    return bits ^ bits >> _31


@compiled
def unit(state):
    """float64 in [0, 1) from ``state`` uint64 [1], which moves on."""
    return float(_next(state) >> _11) / 9007199254740992.0


@compiled
def below(state, num):
    """int64 in [0, num), num below 2**32."""
    return np.int64((_next(state) >> _32) * np.uint64(num) >> _32)
