"""What a bench returns: rows of plain values under a title, as text, JSON or a frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class BenchResult:
    """``rows`` have the same keys, with their units in the names; ``gate``: figures of the whole, beside them."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    gate: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"title": self.title, **self.gate, "rows": [dict(row) for row in self.rows]}

    def to_frame(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame([dict(row) for row in self.rows])

    def __repr__(self) -> str:
        """Names down, one column for each row."""
        columns = [[_text(row[name]) for name in self.rows[0]] for row in self.rows]
        names = list(self.rows[0])
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(
                [name.ljust(max(map(len, names))), *(c[i].ljust(w) for c, w in zip(columns, widths, strict=True))]
            )
            for i, name in enumerate(names)
        ]
        return "\n".join([self.title, *(line.rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        return f"<b>{escape(self.title)}</b>{self.to_frame().T.to_html(header=False)}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple | list):
        if value and isinstance(value[0], tuple | list):
            return "; ".join(_text(item) for item in value)
        return " to ".join(_text(item) for item in value)
    return str(value)
