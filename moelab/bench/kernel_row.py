"""One row of ``moelab bench kernels`` and the columns that its table shows people.

Knows what a row can say, not who measures it nor what a gate asks (``kernel_gates``). Floor 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moelab.bench.result import Column

Kind = Literal["case", "call", "peer", "crossover", "absent"]


@dataclass(frozen=True)
class KernelRow:
    """One case: times of the layer-step in ms, paired percent of the read limit with quartiles, error to float64.

    ``kind``: ``case`` (our kernels), ``call`` (a layer with next to nothing to compute), ``peer``, ``crossover``
    (``batch`` is tokens of an expert, ``times_ours`` the time of the ISA in ``name`` by AMX's), ``absent`` (a peer or
    an ISA that cannot run here: no numbers, a ``reason``). ``isa`` is the ISA, ``None`` for a peer, which is ``name``.
    Of ``num_steps`` steps ``num_left_out`` are in no percentage of the read limit: the reads around them differ. What
    ends in ``per_state`` is of the slow and the fast state of the memory, where a row has steps of both.
    ``num_agreeing`` has a value where too few steps of a peer lie between equal reads: then all are in the figures.
    ``carried``: the numbers that ``activation`` is multiplied as (``int16`` in most of mode bf16).
    ``percent_of_peak`` is of a register-only loop of the same instruction, where the ISA has one (mode bf16: of
    vdpbf16ps, which has as many products in a cycle as two vpdpbusd for 16 bits); ``tail_us`` the time between the
    first and the last worker, after gate_up and down, mean of a call, ``tail_percent`` its share. What ends in
    ``per_node`` is what the kernels counted (``gb_per_s`` is of the whole call), of ``virtual_nodes`` where that is
    true. In a row of a peer ``times_ours`` is the median of the paired ratios of its time and ours
    (``relative_error``: to ours). ``gate``: what the project asks of the row, in words (``per token``: no slower
    a token than batch 1; ``1.3x``: how many times our time a peer takes at least); ``gate_percent`` its number
    where it is one of ``percent_of_read_limit`` (or of ``percent_of_peak``); ``within_gate`` judges the median of all
    compared steps, whatever state of the memory they met.
    """

    kind: Kind
    isa: str | None = None
    name: str | None = None
    version: str | None = None
    reason: str | None = None
    weights: str | None = None
    activation: str | None = None
    carried: str | None = None
    batch: int | None = None
    threads: int | None = None
    ms_median: float | None = None
    ms_min: float | None = None
    ms_max: float | None = None
    gb_per_s: float | None = None
    read_limit_gb_per_s: float | None = None
    read_loop: str | None = None
    percent_of_read_limit: float | None = None
    percent_quartiles: tuple[float, float] | None = None
    gflops: float | None = None
    percent_of_peak: float | None = None
    tail_percent: float | None = None
    relative_error: float | None = None
    num_steps: int | None = None
    num_left_out: int | None = None
    num_agreeing: int | None = None
    read_limit_gb_per_s_per_state: tuple[float, float] | None = None
    percent_of_read_limit_per_state: tuple[float, float] | None = None
    percent_quartiles_per_state: tuple[tuple[float, float], tuple[float, float]] | None = None
    num_steps_per_state: tuple[int, int] | None = None
    gb_per_s_per_node: tuple[float, ...] | None = None
    percent_of_read_limit_per_node: tuple[float, ...] | None = None
    tail_us: float | None = None
    virtual_nodes: bool | None = None
    times_ours: float | None = None
    times_ours_quartiles: tuple[float, float] | None = None
    gate: str | None = None
    gate_percent: float | None = None
    within_gate: bool | None = None


def label(row: Mapping[str, Any]) -> str:
    """The first column: the ISA and what is beside it, or who, and why there are no numbers."""
    text = " ".join(part for part in (row["isa"], row["name"]) if part)
    if row["version"]:
        text += f" ({row['version'].removeprefix(text.split()[0]).strip()})"
    return text if row["reason"] is None else f"{text}: {row['reason']}"


def numbers(row: Mapping[str, Any]) -> str:
    """Weights x activations, and what those are carried as if it is something else: ``int4 x bf16 (int16)``."""
    short, activation, carried = (row["weights"] or "").removesuffix("_g32"), row["activation"], row["carried"]
    if activation in (None, short):  # "its own", of a peer
        return short
    return f"{short} x {activation}" + ("" if carried in (None, activation) else f" ({carried})")


def left_out(row: Mapping[str, Any]) -> str:
    """``3 of 120``; a row of too few comparable steps says that it left out none."""
    if row["num_left_out"] is None:
        return ""
    if row["num_agreeing"] is not None:
        return f"0, {row['num_agreeing']} agree"
    return f"{row['num_left_out']} of {row['num_steps']}"


def states(row: Mapping[str, Any]) -> str:
    """Percent of the read limit in the slow and in the fast state of the memory."""
    percents = row["percent_of_read_limit_per_state"]
    return "" if percents is None else ", ".join(f"{percent:.3g}" for percent in percents)


COLUMNS = (
    Column("case", "kind", text=label), Column("numbers", "weights", text=numbers), Column("batch", "batch"),
    Column("workers", "threads"), Column("ms", "ms_median"), Column("GB/s", "gb_per_s"),
    Column("limit", "read_limit_gb_per_s"), Column("% limit (quartiles)", "percent_of_read_limit", "percent_quartiles"),
    Column("slow, fast", "percent_of_read_limit_per_state", text=states),
    Column("left out", "num_left_out", text=left_out),
    Column("% peak", "percent_of_peak"), Column("error", "relative_error"),
    Column("gate", "gate"), Column("within", "within_gate"),
    Column("x ours (quartiles)", "times_ours", "times_ours_quartiles"),
)  # fmt: skip
