"""What a replay says: one row for each kind of weights, prediction beside measurement.

Knows the fields, their units and how they are shown. Floor 4; pandas inside ``to_frame``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from moelab.kernels import Bandwidth

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ReplayRow:
    """One row; units stand in the names. Times are of the routed experts alone, batch as recorded.

    ``predicted_*_stored`` was written down before measuring; ``predicted_*`` is the same, rescaled by
    the read limit of this run only. ``percent_of_read_limit`` (median and range of paired ratios) is
    ``None`` where the weights fit the cache. ``reads_per_layer_step``, both hit rates and uploads
    belong to the simulated fast tier; every routed expert is really executed from RAM, hits as well,
    and ``predicted_ms_per_token_with_fast_tier`` says what the reads that the tier leaves would take.

    ``predicted_ms_per_token_calibrated*`` are by what the kernel was calibrated to take at this shape on these nodes
    (``calibrated_times``), contention and overheads in it, stored and rescaled alike; ``None`` where it was not.

    ``gb_per_s`` is all bytes over the measured time. What ends in ``per_node`` has one entry for each node, from what
    the kernels counted; ``bandwidth`` has it by layer too. The read limit of a node is what its workers read of its
    own bytes while all other nodes read theirs, ``read_limit_gb_per_s`` the sum over nodes: an even placement could
    reach it, an uneven one loses percents. ``node_imbalance`` says how uneven it is (bytes of the busiest node over the
    mean, averaged over layer-steps); the prediction lets the slowest node decide each layer-step. ``slowness``: of a
    byte on each node, as dispatch was told (``None``: equal), by whose rates (``slowness_of``).
    """

    name: str
    expert_shape: str
    predicted_ms_per_token_stored: float
    predicted_ms_per_token: float
    predicted_tok_per_s: float
    predicted_ms_per_token_calibrated_stored: float | None
    predicted_ms_per_token_calibrated: float | None
    calibrated_times: str | None
    measured_ms_per_token: float
    measured_ms_per_token_range: tuple[float, float]
    measured_tok_per_s: float
    predicted_ms_per_token_with_fast_tier: float | None
    gb_per_s: float
    gb_per_s_per_node: tuple[float, ...]
    read_limit_gb_per_s_per_node: tuple[float, ...]
    percent_of_read_limit_per_node: tuple[float, ...] | None
    bytes_of_node: tuple[int, ...]
    node_imbalance: float
    placement: str
    slowness: tuple[float, ...] | None
    slowness_of: str
    tail_us_per_layer_step: float | None
    read_limit_gb_per_s: float
    read_loop: str
    percent_of_read_limit: float | None
    percent_of_read_limit_range: tuple[float, float] | None
    expert_bytes: int
    executed_reads_per_layer_step: float
    reads_per_layer_step: float | None
    hit_rate_per_routing: float | None
    hit_rate_per_request: float | None
    uploads_per_layer_step: float | None
    scored_on: str
    isa: str
    activation: str
    weight_format: str
    num_workers: int
    num_nodes: int
    virtual_nodes: bool
    cache_resident: bool
    synthetic_weights: bool
    synthetic_routing: bool
    layers_run: int
    layers_of_model: int
    experts_run: int
    folding: str
    tokens: int
    layer_steps: int
    trace: str
    plan: str
    huge_pages: str
    memory_binding: str
    peak_memory_bytes: int
    weights_bytes: int
    max_relative_error: float
    relative_error_tolerance: float
    bandwidth: Bandwidth


@dataclass(frozen=True)
class ReplayResult:
    """All rows of one replay, with the machine and what to know of the run."""

    rows: tuple[ReplayRow, ...]
    machine: dict[str, Any]
    predictions: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``--json`` prints them."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "machine": self.machine,
            "predictions": list(self.predictions),
            "notes": list(self.notes),
            "seconds": self.seconds,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row for each kind of weights; by layer and node: ``result.rows[i].bandwidth.to_frame()``."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows]).drop(columns="bandwidth")

    def table(self) -> list[tuple[str, ...]]:
        """(label, text of each row) in the order in which people read; the first line is the heading."""
        return [("", *(_title(row) for row in self.rows))] + [
            (label, *(text(row) for row in self.rows))
            for label, text in _LINES
            if label not in _OF_SEVERAL_NODES or any(row.num_nodes > 1 for row in self.rows)
        ]

    def __repr__(self) -> str:
        table = self.table()
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        head, *body = self.table()
        html = "<table><thead><tr>" + "".join(f"<th>{escape(c)}</th>" for c in head) + "</tr></thead><tbody>"
        for label, *cells in body:
            html += f"<tr><th style='text-align:left'>{escape(label)}</th>"
            html += "".join(f"<td style='text-align:left'>{escape(c)}</td>" for c in cells) + "</tr>"
        html += "</tbody></table>"
        html += "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        for row in self.rows:
            html += f"<details><summary>{escape(row.bandwidth.title)}</summary>{row.bandwidth._repr_html_()}</details>"
        return html


def _title(row: ReplayRow) -> str:
    return {"own": "(a) own weights", "expert_shape": f"(b) {row.expert_shape} shape"}[row.name]


def _percent(row: ReplayRow) -> str:
    if row.percent_of_read_limit is None or row.percent_of_read_limit_range is None:
        return "cache_resident: no percentage" if row.cache_resident else "no percentage of own weights"
    low, high = row.percent_of_read_limit_range
    return f"{row.percent_of_read_limit:.0f}% (quartiles {low:.0f} to {high:.0f})"


def _calibrated(value: float | None) -> str:
    return _text(value, "{:.3f}", "not calibrated for this")


def _per_node(values: tuple[float, ...] | None, form: str = "{:.1f}") -> str:
    return "no percentage" if values is None else ", ".join(form.format(value) for value in values)


def _nodes(row: ReplayRow) -> str:
    if row.num_nodes == 1:
        return "1 virtual" if row.virtual_nodes else "1"
    kind = " virtual" if row.virtual_nodes else ""
    told = "" if row.slowness is None else f"; a byte takes {' : '.join(f'{each:.3g}' for each in row.slowness)}"
    return f"{row.num_nodes}{kind}, {row.placement}; busiest {row.node_imbalance:.2f} x the mean{told}"


def _text(value: float | None, form: str, absent: str = "no fast tier") -> str:
    return absent if value is None else form.format(value)


_LINES = (
    ("weights", lambda r: ("generated, " if r.synthetic_weights else "trained, ") + r.weight_format),
    ("routing", lambda r: "synthetic" if r.synthetic_routing else "recorded"),
    ("predicted ms/token, stored before", lambda r: f"{r.predicted_ms_per_token_stored:.3f}"),
    ("predicted ms/token, this run's limit", lambda r: f"{r.predicted_ms_per_token:.3f}"),
    ("the same by calibrated times, stored", lambda r: _calibrated(r.predicted_ms_per_token_calibrated_stored)),
    ("the same by calibrated times, this run's", lambda r: _calibrated(r.predicted_ms_per_token_calibrated)),
    (
        "measured ms/token",
        lambda r: "{:.3f} (quartiles {:.3f} to {:.3f})".format(r.measured_ms_per_token, *r.measured_ms_per_token_range),
    ),
    ("predicted tok/s", lambda r: f"{r.predicted_tok_per_s:.1f}"),
    ("measured tok/s", lambda r: f"{r.measured_tok_per_s:.1f}"),
    ("nodes, placement", _nodes),
    ("GB/s, counted", lambda r: f"{r.gb_per_s:.1f}"),
    ("GB/s per node, counted", lambda r: _per_node(r.gb_per_s_per_node)),
    ("read limit per node, GB/s", lambda r: _per_node(r.read_limit_gb_per_s_per_node)),
    ("% of read limit per node", lambda r: _per_node(r.percent_of_read_limit_per_node, "{:.0f}%")),
    ("read limit, GB/s", lambda r: f"{r.read_limit_gb_per_s:.1f} ({r.read_loop})"),
    ("% of read limit", _percent),
    ("tail, us per layer-step", lambda r: _text(r.tail_us_per_layer_step, "{:.1f}", "not counted by Numba")),
    ("expert reads per layer-step, executed", lambda r: f"{r.executed_reads_per_layer_step:.2f}"),
    ("reads per layer-step, simulated fast tier", lambda r: _text(r.reads_per_layer_step, "{:.2f}")),
    ("hit rate per routing", lambda r: _text(r.hit_rate_per_routing, "{:.1%}")),
    ("hit rate per request", lambda r: _text(r.hit_rate_per_request, "{:.1%}")),
    ("simulated tier scored on", lambda r: r.scored_on),
    ("uploads per layer-step", lambda r: _text(r.uploads_per_layer_step, "{:.2f}")),
    ("predicted ms/token with that tier", lambda r: _text(r.predicted_ms_per_token_with_fast_tier, "{:.3f}")),
    ("ISA, activation", lambda r: f"{r.isa}, {r.activation}, {r.num_workers} workers"),
    ("layers run / of the model", lambda r: f"{r.layers_run} / {r.layers_of_model}"),
    ("folding", lambda r: r.folding),
    ("tokens, layer-steps", lambda r: f"{r.tokens:,}, {r.layer_steps:,}"),
    ("weights, pages", lambda r: f"{r.weights_bytes / 1e9:.2f} GB, {r.huge_pages}"),
    ("peak memory", lambda r: f"{r.peak_memory_bytes / 2**30:.2f} GiB"),
    (
        "largest relative error to float64",
        lambda r: f"{r.max_relative_error:.2e} (tolerance {r.relative_error_tolerance:.0e})",
    ),
    ("trace", lambda r: r.trace),
    ("plan", lambda r: r.plan),
)
_OF_SEVERAL_NODES = ("GB/s per node, counted", "read limit per node, GB/s", "% of read limit per node")
"""Of one node the lines of the whole say the same."""
