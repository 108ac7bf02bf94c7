"""What a bench returns: rows of plain values under a title, as a table for people, JSON or a frame. Floor 6."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


class Column(NamedTuple):
    """A column of the table: ``key`` of the rows under ``heading``, with the range or quartiles of ``spread``.

    Where one value is not enough to be read, ``text`` makes the cell of the whole row; ``key`` decides whether any row
    has something to show.
    """

    heading: str
    key: str
    spread: str | None = None
    text: Callable[[Mapping[str, Any]], str] | None = None


@dataclass(frozen=True)
class BenchResult:
    """``rows`` have the same keys, with their units in the names; ``gate``: figures of the whole, beside them.

    ``columns`` are what the table for people shows (empty: everything); JSON and the frame have all.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    gate: Mapping[str, Any] = field(default_factory=dict)
    columns: Sequence[Column] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"title": self.title, **self.gate, "rows": [dict(row) for row in self.rows]}

    def to_frame(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame([dict(row) for row in self.rows])

    def table(self) -> list[list[str]]:
        """Texts: the headings, then one line for each row. A column without a value in any row is left out."""
        if not self.rows:
            return []
        chosen = self.columns or [Column(key, key) for key in self.rows[0]]
        shown = [column for column in chosen if any(row[column.key] is not None for row in self.rows)]
        return [[column.heading for column in shown], *([_cell(row, column) for column in shown] for row in self.rows)]

    def __repr__(self) -> str:
        if not self.rows:
            return self.title
        if len(self.rows) == 1 and not self.columns:  # names down: one wide line would be hard to read
            (row,) = self.rows
            width = max(map(len, row))
            return "\n".join([self.title, *(f"{name.ljust(width)}  {_text(value)}" for name, value in row.items())])
        table = self.table()
        # A line that is one text, such as why something is missing, may run over the columns.
        aligned = [line for line in table if any(line[1:])]
        widths = [max(map(len, texts)) for texts in zip(*aligned, strict=True)] if aligned else [0] * len(table[0])
        lines = ("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in table)
        return "\n".join([self.title, *(line.rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        html = f"<table><caption>{escape(self.title)}</caption>"
        for number, line in enumerate(self.table()):
            tag = "td" if number else "th"
            html += "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in line) + "</tr>"
        return html + "</table>"


def _cell(row: Mapping[str, Any], column: Column) -> str:
    if column.text is not None:
        return column.text(row)
    spread = None if column.spread is None else row[column.spread]
    return _text(row[column.key]) + ("" if spread is None else f" ({_text(spread)})")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple | list):
        return " to ".join(_text(item) for item in value)
    return str(value)
