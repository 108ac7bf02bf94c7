"""What the placement bench found, as plain values: text, JSON, frame, a section of docs/placement.md.  Floor 6."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moelab.bench.placement.page import core_summary, core_table, memory_summary, memory_table, pieces_table
from moelab.domain.machine import Machine
from moelab.findings.page import replace_between

if TYPE_CHECKING:
    import pandas as pd

BEGIN = "<!-- measured: written by `moelab bench placement`, do not edit below -->"
END = "<!-- end of measured -->"


def measured_on() -> dict[str, str]:
    """``machine`` and ``date`` of a measurement that ends now: results that are kept outlive both."""
    here = Machine.detect()
    machine = f"{here.cpu or here.name}, {here.num_cores} cores"
    return {"machine": machine, "date": datetime.now(UTC).strftime("%Y-%m-%d")}


@dataclass(frozen=True)
class PlacementResult:
    """``core`` and ``memory`` by trace, ``pieces`` rows by expert shape and nodes; keys say their units.
    Each says its ``machine`` and ``date``; what was kept before they were noted has none."""

    core: dict[str, dict[str, Any]]
    memory: dict[str, dict[str, Any]]
    pieces: list[dict[str, Any]]

    @classmethod
    def load(cls, path: str | Path) -> PlacementResult:
        """Raises ``ValueError`` for a file of something else, or of a version whose columns it lacks."""
        document = json.loads(Path(path).read_text())
        if set(document) != {"core", "memory", "pieces"}:
            raise ValueError(
                f"{path} has {', '.join(document)}, expected core, memory, pieces: no result of this bench"
            )
        old = [
            f"{part} of {name}" for part, key in (("core", "step_us"), ("memory", "median_error_by_way"))
            for name, one in document[part].items() if key not in one
        ]  # fmt: skip
        old += ["pieces"] if any("over_whole" not in row for row in document["pieces"]) else []
        if old:
            raise ValueError(
                f"{path} has results of an earlier version ({', '.join(old)}), expected times by step, errors by way "
                "and intervals of ratios: measure them again into another file, or take them out"
            )
        return cls(**document)

    def save(self, path: str | Path) -> None:
        """As JSON, whole or not at all."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        partial.replace(path)

    def with_core(self, document: dict[str, Any]) -> PlacementResult:
        return replace(self, core=self.core | {document["trace"]: document})

    def with_memory(self, document: dict[str, Any]) -> PlacementResult:
        return replace(self, memory=self.memory | {document["trace"]: document})

    def with_pieces(self, rows: list[dict[str, Any]]) -> PlacementResult:
        return replace(self, pieces=rows)

    def to_dict(self) -> dict[str, Any]:
        return {"core": self.core, "memory": self.memory, "pieces": self.pieces}

    def to_frame(self) -> pd.DataFrame:
        """Plans of all traces, one row each."""
        import pandas as pd

        return pd.DataFrame([{"trace": name, **row} for name, one in self.core.items() for row in one["rows"]])

    def write_page(self, path: str | Path) -> Path:
        """Put the section between its markers; raises ``ValueError`` where the page lacks them."""
        return replace_between(path, BEGIN, END, self.markdown(), title="Placement on NUMA nodes")

    def markdown(self) -> str:
        parts = []
        if self.core:
            parts.append(core_summary(list(self.core.values())))
            parts += [core_table(one) for one in self.core.values()]
        if self.memory:
            parts.append(memory_summary(list(self.memory.values())))
            parts += [memory_table(one) for one in self.memory.values()]
        if self.pieces:
            parts.append(pieces_table(self.pieces))
        return "\n".join(parts)

    def __repr__(self) -> str:
        return self.markdown()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.markdown())}</pre>"
