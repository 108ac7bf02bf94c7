"""Bandwidth: bytes and time that the kernels counted, as GB/s and percent of the read limit, by layer and node.

The limit of a node is what its workers read of its own memory in the same run while all other nodes read theirs. A
percentage stands only beside a limit of memory: weights that fit the last-level cache have none. Does not measure
anything itself. Floor 1; pandas inside ``to_frame``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.kernels.counts import Counts

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class BandwidthRow:
    """One layer on one node, or all layers (``layer`` ``None``). L counts MoE layers.

    ``ms_per_call`` is the node's own work, until its last worker was done with gate_up and with down;
    ``tail_us_per_call`` the time between the first and the last worker of the layer, whatever their node, after both
    (``None`` where it is not counted: Numba).
    """

    layer: int | None
    node: int
    num_calls: int
    num_bytes: int
    ms_per_call: float
    gb_per_s: float
    read_limit_gb_per_s: float
    percent_of_read_limit: float | None
    tail_us_per_call: float | None


@dataclass(frozen=True)
class Bandwidth:
    """``rows`` by layer and node, ``totals`` by node. ``basis`` says how rates and percentages were taken.

    ``dense`` by node: everything else that the kernels read, linear layers, shared experts and head; not in ``totals``.
    """

    title: str
    rows: tuple[BandwidthRow, ...]
    totals: tuple[BandwidthRow, ...]
    read_loop: str
    virtual_nodes: bool
    cache_resident: bool
    basis: str
    dense: tuple[BandwidthRow, ...] = ()

    @classmethod
    def of(
        cls, title: str, counts: Counts, read_limit_gb_per_s_of_node: tuple[float, ...], *, read_loop: str,
        virtual_nodes: bool = False, cache_resident: bool = False, dense: Counts | None = None,
    ) -> Bandwidth:  # fmt: skip
        """All bytes over all the time that was counted, beside limits that were measured in the same run."""

        def row(layer: int | None, node: int, counts: Counts = counts) -> BandwidthRow:
            at = slice(None) if layer is None else slice(layer, layer + 1)
            num_bytes, seconds = int(counts.num_bytes[at, node].sum()), float(counts.seconds[at, node].sum())
            calls, tail_s = int(counts.num_calls[at].sum()), float(counts.tail_s[at].sum())
            rate, limit = num_bytes / seconds / 1e9 if seconds else 0.0, read_limit_gb_per_s_of_node[node]
            return BandwidthRow(
                layer=layer, node=node, num_calls=calls, num_bytes=num_bytes,
                ms_per_call=1e3 * seconds / calls if calls else 0.0, gb_per_s=rate, read_limit_gb_per_s=limit,
                percent_of_read_limit=None if cache_resident or not num_bytes or not limit else 100 * rate / limit,
                tail_us_per_call=None if np.isnan(tail_s) else 1e6 * tail_s / calls if calls else 0.0,
            )  # fmt: skip

        num_layers, num_nodes = counts.num_bytes.shape
        return cls(
            title, tuple(row(layer, node) for layer in range(num_layers) for node in range(num_nodes)),
            tuple(row(None, node) for node in range(num_nodes)), read_loop, virtual_nodes, cache_resident,
            "bytes and time summed over all calls; the limit was read after them, over other bytes",
            () if dense is None or not dense.num_calls.any() else tuple(
                row(None, node, dense) for node in range(dense.num_bytes.shape[1])
            ),
        )  # fmt: skip

    @property
    def num_nodes(self) -> int:
        return len(self.totals)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``--json`` prints them."""
        return asdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row for each layer and node; the dense ones are not in it."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def notes(self) -> list[str]:
        """What to know beside the table."""
        notes = [f"Read loop: {self.read_loop}. {self.basis[0].upper()}{self.basis[1:]}."]
        if self.num_nodes > 1:
            notes.append("The limit of a node: its workers read its own bytes while all other nodes read theirs.")
        if self.virtual_nodes:
            notes.append("Virtual nodes: cores and arenas of one machine divided, which share its memory.")
        if self.cache_resident:
            notes.append("The weights fit the last-level cache: rates are the cache's, and no percentage is given.")
        return notes

    def table(self) -> list[tuple[str, ...]]:
        """Texts; the first line is the heading, then the totals, then the layers, then the dense ones."""
        lines = [tuple(name for name, _ in _COLUMNS)]
        lines += [tuple(text(row) for _, text in _COLUMNS) for row in (*self.totals, *self.rows)]
        return lines + [("dense", *(text(row) for _, text in _COLUMNS[1:])) for row in self.dense]

    def __repr__(self) -> str:
        table = self.table()
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
        return "\n".join([self.title, *lines, *self.notes()])

    def _repr_html_(self) -> str:
        head, *body = self.table()
        html = f"<table><caption>{escape(self.title)}</caption><thead><tr>"
        html += "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr></thead><tbody>"
        for line in body:
            html += "<tr>" + "".join(f"<td style='text-align:right'>{escape(cell)}</td>" for cell in line) + "</tr>"
        return html + "</tbody></table>" + "".join(f"<p>{escape(note)}</p>" for note in self.notes())


_COLUMNS: tuple[tuple[str, Callable[[BandwidthRow], str]], ...] = (
    ("layer", lambda row: "all" if row.layer is None else str(row.layer)),
    ("node", lambda row: f"node{row.node}"),
    ("calls", lambda row: f"{row.num_calls:,}"),
    ("MB/call", lambda row: f"{row.num_bytes / 1e6 / max(1, row.num_calls):.2f}"),
    ("ms/call", lambda row: f"{row.ms_per_call:.3f}"),
    ("GB/s", lambda row: f"{row.gb_per_s:.1f}"),
    ("read limit, GB/s", lambda row: f"{row.read_limit_gb_per_s:.1f}"),
    ("% of read limit", lambda row: "" if row.percent_of_read_limit is None else f"{row.percent_of_read_limit:.0f}"),
    ("tail, us/call", lambda row: "" if row.tail_us_per_call is None else f"{row.tail_us_per_call:.1f}"),
)
