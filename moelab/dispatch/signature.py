"""The one signature of ``dispatch`` and its answers, and how this room compiles.  Floor 1.

Fields, all C-contiguous and owned by the caller; nothing is allocated:

``masks``      int64 [M] bit v is set where tier v holds a copy of active job m (an expert, or a piece of one).
``sizes``      int64 [M] bytes of the job.
``slowness``   float64 [N] time of one byte on tier v, in any unit (a relative byte size of the tier belongs in here).
``tier_of``    int32 [M] out: the tier that serves job m.
``loads``      float64 [N] out: time of each tier, sum of bytes x slowness.
``scratch``    int64 [``scratch_length(M, N)``].

The answer: ``EXACT`` (no assignment has a smaller maximum of ``loads``), ``BOUNDED`` (the search was cut off, the best
found stands in the outputs) or ``NO_COPY`` (some mask is empty or names no tier of N; outputs are not filled).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit, types

from moelab.first_compile import LISTENER as _  # noqa: F401  says when compiling takes long
from moelab.source_stamp import stamped

EXACT, BOUNDED, NO_COPY = 0, 1, -1
MOST_TIERS = 62
"""Bits of a mask that can name a tier."""

_i64 = types.int64[::1]
SIGNATURE = types.int64(_i64, _i64, types.float64[::1], types.int32[::1], types.float64[::1], _i64)
"""First-class type of ``dispatch``: a caller that takes it as an argument is compiled once."""


def compiled(*signature: Any) -> Callable[[Callable], Any]:
    """Compile with a signature, or on first use without one; cached on disk, no allocation, GIL released."""
    options: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
    return lambda function: njit(*signature, **options)(stamped(function))
