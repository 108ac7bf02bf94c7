"""How commands print: one JSON object, or a short table for people. Knows nothing of what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def check_report(path: str | None) -> None:
    """Before any work: raises ``ValueError`` where the page of ``--report`` could not be written."""
    if path and not Path(path).resolve().parent.is_dir():
        raise ValueError(f"--report is {path}, but its folder does not exist: create it or choose another path")


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: NumPy scalars and arrays, pydantic models, tuples, NaN as null."""
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    json.dump(plain(document), sys.stdout, indent=1, allow_nan=False)
    print()


def print_rows(title: str, rows: Mapping[str, Any]) -> None:
    """Names and values, aligned, under a title."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, number(value))
    Console().print(table)


def print_table(title: str, frame: pd.DataFrame) -> None:
    """A frame under a title, numbers to the right; NaN is left empty."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in frame.columns:
        table.add_column(str(name), justify="right" if frame[name].dtype.kind in "iuf" else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*("" if isinstance(value, float) and np.isnan(value) else number(value) for value in row))
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width of its own; 80 would cut the names
        console = Console(width=160)
    console.print(table)


def number(value: Any) -> str:
    """Four significant digits for floats, names before their values, everything else as it is."""
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(number(item) for item in value)
    return str(value)
