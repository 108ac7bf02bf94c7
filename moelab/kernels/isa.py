"""Which kernels run: the ISA is chosen once, by name, and the choice says why.

Order: the argument, the environment variable ``MOELAB_ISA``, else the fastest of those available here
(measured order, see docs/log.md: Numba before ``generic``, which is the plain truth, not the fast path).
A name that is unknown or not available raises. Floor 1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from moelab.kernels import native

ENVIRONMENT_VARIABLE = "MOELAB_ISA"
KNOWN_ISAS = ("numba", "generic", "avx2", "avx512", "amx")
# Fastest first; a native ISA that this library does not have or this CPU does not support is passed over.
AUTOMATIC_ORDER = ("amx", "avx512", "avx2", "numba", "generic")


@dataclass(frozen=True)
class IsaChoice:
    """The ISA that runs and the reason, for results and for ``doctor``."""

    isa: str
    why: str


@dataclass(frozen=True)
class IsaStatus:
    """One row of ``doctor``: is the ISA in this build, does this machine support it, and if not, why."""

    isa: str
    built: bool
    supported: bool
    why: str


def isa_table() -> list[IsaStatus]:
    """Every known ISA, in the order of ``KNOWN_ISAS``."""
    rows = [IsaStatus("numba", True, True, "compiled on first use for this CPU")]
    library, reason = native.library()
    for isa in KNOWN_ISAS[1:]:
        if library is None:
            rows.append(IsaStatus(isa, False, False, reason))
            continue
        built = bool(library.moelab_isa_built(isa.encode()))
        supported = built and bool(library.moelab_isa_supported(isa.encode()))
        why = "" if supported else ("not supported by this CPU" if built else "not in this build")
        rows.append(IsaStatus(isa, built, supported, why))
    return rows


def choose_isa(forced: str | None = None) -> IsaChoice:
    """``forced``, else ``MOELAB_ISA``, else the fastest available. Raises ``ValueError``."""
    table = {row.isa: row for row in isa_table()}
    available = [isa for isa in KNOWN_ISAS if table[isa].supported]
    for name, source in ((forced, "argument"), (os.environ.get(ENVIRONMENT_VARIABLE) or None, ENVIRONMENT_VARIABLE)):
        if name is None:
            continue
        if name not in table:
            raise ValueError(f"isa ({source}): expected one of {', '.join(available)}; got {name!r}")
        if not table[name].supported:
            raise ValueError(
                f"isa ({source}): expected one of {', '.join(available)}; got {name!r}, which is not available: "
                f"{table[name].why}"
            )
        return IsaChoice(name, f"forced by {source}")
    isa = next(isa for isa in AUTOMATIC_ORDER if table[isa].supported)
    return IsaChoice(isa, f"fastest of {', '.join(available)}")
