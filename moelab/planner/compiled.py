"""compiled: the loops of the planners, cached under a stamp of this room and of ``dispatch``.  Floor 3.

They inline ``moelab.dispatch``, so that machine code on disk must not outlive its sources either (``source_stamp``).
Without reference counts: the caller owns all memory, nothing is allocated inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from moelab.source_stamp import stamp_of_room, stamped


def compiled(function: Callable) -> Any:
    """Compile on first use, cached on disk, GIL released."""
    function.__qualname__ += f"_{stamp_of_room('dispatch')}"
    options: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
    return njit(**options)(stamped(function))
