"""Which kernels run: the ISA is chosen once, by name, and the choice says why.

Order: the argument, the environment variable ``MOELAB_ISA``, else the fastest of those available here
(measured order, docs/log.md, 2026-11-22, kernels: Numba before ``generic``, which is the plain truth, not the fast
path; AMX was never measured, see docs/amx.md). A name that is unknown or not available raises.

``amx`` is AMX for any number of tokens; ``amx+avx512``, the automatic choice where there is AMX, computes experts of
few tokens (``MOELAB_AMX_MIN_TOKENS`` of kernels/moelab_kernels.h), float32 weights, and quantised weights with bf16
activations, which AMX rounds, with AVX-512. Floor 1.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache

from moelab.kernels import native

ENVIRONMENT_VARIABLE = "MOELAB_ISA"
KNOWN_ISAS = ("numba", "generic", "avx2", "avx512", "amx", "amx+avx512")
# Fastest first; a native ISA that this library does not have or this CPU does not support is passed over.
AUTOMATIC_ORDER = ("amx+avx512", "avx512", "avx2", "numba", "generic")

# Answers of ``moelab_amx``. These are news on a machine that is thought to have AMX: an automatic choice says them.
AMX_IN_CPU_ONLY = {
    2: "the CPU has AMX, but the operating system does not save its tiles (XCR0 bits 17 and 18): boot one that does",
    3: "the CPU has AMX, but the kernel refused this process its tiles (arch_prctl ARCH_REQ_XCOMP_PERM): it needs "
    "Linux 5.16 and signal stacks larger than 11 KB in every thread",
}
NO_AMX = {1: "not supported by this CPU: AMX-TILE, AMX-INT8 and AMX-BF16 are needed", **AMX_IN_CPU_ONLY}


@dataclass(frozen=True)
class IsaChoice:
    """The ISA that runs and the reason, for results and for ``doctor``."""

    isa: str
    why: str


@dataclass(frozen=True)
class IsaStatus:
    """One row of ``doctor``: is the ISA in this build, does this machine support it, and if not (wholly), why."""

    isa: str
    built: bool
    supported: bool
    why: str


def isa_table() -> list[IsaStatus]:
    """Every known ISA, in the order of ``KNOWN_ISAS``."""
    return list(_isa_table(*native.library()))


@cache  # every matrix of a model asks
def _isa_table(library: ctypes.CDLL | None, reason: str) -> tuple[IsaStatus, ...]:
    rows = [IsaStatus("numba", True, True, "compiled on first use for this CPU")]
    for isa in KNOWN_ISAS[1:]:
        if library is None:
            rows.append(IsaStatus(isa, False, False, reason))
            continue
        built = bool(library.moelab_isa_built(isa.encode()))
        supported = built and bool(library.moelab_isa_supported(isa.encode()))
        why = "" if supported else _why_not(library, isa, built)
        if isa == "avx512" and supported and not library.moelab_avx512_bf16():
            why = "no AVX512_BF16: bf16 weights with bf16 activations by avx2"
        rows.append(IsaStatus(isa, built, supported, why))
    return tuple(rows)


def _why_not(library: ctypes.CDLL, isa: str, built: bool) -> str:
    if not built:
        return "not in this build"
    return (
        NO_AMX.get(library.moelab_amx(None), "needs avx512") if isa.startswith("amx") else "not supported by this CPU"
    )


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
    refused = table["amx"].why
    return IsaChoice(
        isa, f"fastest of {', '.join(available)}" + (f"; {refused}" if refused in AMX_IN_CPU_ONLY.values() else "")
    )
