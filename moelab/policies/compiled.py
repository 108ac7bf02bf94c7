"""compiled: how every function of a policy, of the contract and of the replay loop is compiled.  Floor 1.

Machine code is cached on disk under a name that holds the checksum of the room's sources (``source_stamp``).
Numba's reference counts are off (``_nrt=False``): the caller keeps all memory alive, and counting cost up to a
third of a request. So compiled functions here cannot allocate, which a policy must not do anyway: what it
remembers lies in its state, where a copy is a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from moelab.first_compile import LISTENER as _  # noqa: F401  says when compiling takes long
from moelab.source_stamp import stamped

OPTIONS: dict[str, Any] = {"cache": True, "_nrt": False}
"""For ``njit``, where ``compiled`` does not do (a signature, ``nogil``)."""


def compiled(function: Callable) -> Any:
    """Compile on first use, cached on disk, without reference counts."""
    return njit(**OPTIONS)(stamped(function))


def inlined(function: Callable) -> Any:
    """The same for a small helper whose call should cost nothing."""
    return njit(forceinline=True, **OPTIONS)(stamped(function))


@inlined
def at(index):
    """An index that is known not to be negative: Numba tests every signed one, which took a fifth of a request."""
    return np.uint64(index)
