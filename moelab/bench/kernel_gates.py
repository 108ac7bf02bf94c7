"""What ``moelab bench kernels`` runs, what the project asks of each row, and whether the row keeps it.

Knows rows (``kernel_row``), not how they are measured. A row without a gate has no verdict, and none is given on a
figure that is missing. Floor 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from moelab.bench.kernel_row import KernelRow
from moelab.kernels import Activation, WeightFormat

# The rows of the project's table; "all" threads are the pool's.
QUICK: tuple[tuple[str, WeightFormat, Activation, int, str], ...] = (
    ("avx512", "int4_g32", "int8", 1, "all"), ("avx512", "int4_g32", "int8", 1, "one"),
    ("avx512", "int4_g32", "bf16", 1, "all"), ("avx2", "int4_g32", "int8", 1, "all"),
    ("avx512", "int4_g32", "int8", 4, "all"), ("avx512", "int4_g32", "int8", 16, "all"),
    ("avx512", "int4_g32", "int8", 128, "all"), ("amx", "int4_g32", "int8", 128, "all"),
)  # fmt: skip
MORE: tuple[tuple[str, WeightFormat, Activation, int, str], ...] = (
    ("numba", "int4_g32", "int8", 1, "all"), ("generic", "int4_g32", "int8", 1, "all"),
    ("avx2", "int4_g32", "bf16", 1, "all"), ("numba", "int4_g32", "bf16", 1, "all"),
    ("avx512", "int8_g32", "int8", 1, "all"), ("avx512", "int8_g32", "bf16", 1, "all"),
    ("avx2", "int8_g32", "int8", 1, "all"), ("avx2", "int8_g32", "bf16", 1, "all"),
    ("avx512", "bf16", "bf16", 1, "all"), ("avx2", "bf16", "bf16", 1, "all"),
    ("avx512", "float32", "f32", 1, "all"), ("avx2", "float32", "f32", 1, "all"),
)  # fmt: skip


class Gate(NamedTuple):
    """``percent`` of the read limit, or of the register-only loop (``of_peak``), or a time of a call in microseconds.

    ``beside``: how many times our time the peers whose names begin with ``peers`` shall take at least at this batch;
    ``per_token``: no slower a token than batch 1 of the same run.
    """

    percent: float | None = None
    of_peak: bool = False
    us: float | None = None
    beside: float | None = None
    peers: tuple[str, ...] = ()
    per_token: bool = False


# (ISA, weights, activations, batch) of a case; ``call``: of a layer with nothing to compute, in the library.
GATES: dict[tuple[str, str, str, int] | str, Gate] = {
    ("avx512", "int4_g32", "int8", 1): Gate(92.0),  # on all cores and on one
    ("avx512", "int4_g32", "bf16", 1): Gate(90.0),
    ("avx2", "int4_g32", "int8", 1): Gate(90.0),
    ("avx2", "int8_g32", "int8", 1): Gate(90.0),
    ("avx512", "int4_g32", "int8", 4): Gate(90.0),
    ("avx512", "int4_g32", "int8", 16): Gate(beside=1.3, peers=("torch bf16", "ggml"), per_token=True),
    ("avx512", "int4_g32", "int8", 128): Gate(65.0, of_peak=True, beside=1.0, peers=("torch bf16",)),
    "call": Gate(us=15.0),
}
EMPTY_CALL = "empty call"  # the name of its row
AHEAD = 1.0  # of every peer at every batch: it takes at least our time


def judged(rows: Sequence[KernelRow]) -> list[KernelRow]:
    """The rows of one run with ``gate``, ``gate_percent`` and ``within_gate``, where the project asks something."""
    return [replace(row, **_verdict(row, rows)) for row in rows]


def _verdict(row: KernelRow, rows: Sequence[KernelRow]) -> dict[str, Any]:
    if row.kind == "peer":
        least, times = _times_asked(row), row.times_ours if row.num_agreeing is None else None
        return {"gate": f"{least:g}x", "within_gate": None if times is None else times >= least}
    gate = _gate_of(row)
    if gate is None:
        return {}
    texts: list[str] = []
    parts: list[bool | None] = []
    if gate.percent is not None:
        found = row.percent_of_peak if gate.of_peak else row.percent_of_read_limit
        texts.append(f"{gate.percent:g}%" + (" peak" if gate.of_peak else ""))
        parts.append(None if found is None else found >= gate.percent)
    if gate.us is not None:
        texts.append(f"{gate.us:g} us")
        parts.append(None if row.ms_median is None else 1e3 * row.ms_median <= gate.us)
    if gate.per_token:
        texts.append("per token")
        parts.append(_no_slower_a_token(row, rows))
    peers = [peer for peer in rows if peer.kind == "peer" and peer.batch == row.batch and _is_of(peer, gate)]
    if peers:
        texts.append(f"{gate.beside:g}x")
        parts += [_verdict(peer, rows)["within_gate"] for peer in peers]
    # One part that is missed decides; one that is not known leaves the rest open.
    within = False if False in parts else None if None in parts else True
    return {"gate": ", ".join(texts), "gate_percent": gate.percent, "within_gate": within}


def _gate_of(row: KernelRow) -> Gate | None:
    if row.kind == "call":
        return GATES["call"] if row.name == EMPTY_CALL else None
    if row.kind != "case" or row.isa is None or row.weights is None or row.activation is None or row.batch is None:
        return None
    return GATES.get((row.isa, row.weights, row.activation, row.batch))


def _times_asked(peer: KernelRow) -> float:
    """The most that any case of its batch asks of it."""
    of_batch = [gate for key, gate in GATES.items() if isinstance(key, tuple) and key[3] == peer.batch]
    return max([AHEAD, *(gate.beside or AHEAD for gate in of_batch if _is_of(peer, gate))])


def _is_of(peer: KernelRow, gate: Gate) -> bool:
    return gate.beside is not None and (peer.name or "").startswith(gate.peers)


def _no_slower_a_token(row: KernelRow, rows: Sequence[KernelRow]) -> bool | None:
    ones = [
        other.ms_median
        for other in rows
        if (other.kind, other.isa, other.weights, other.activation, other.threads, other.batch)
        == (row.kind, row.isa, row.weights, row.activation, row.threads, 1)
    ]
    if not ones or ones[0] is None or row.ms_median is None or row.batch is None:
        return None
    return row.ms_median / row.batch <= ones[0]
