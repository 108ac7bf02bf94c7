"""Where a trace comes from: a store folder, or any foreign file or folder that a format can read.

Knows how to tell them apart and says what was expected otherwise. Counts are a source of the analysis
only: whoever needs a trace is told so. Floor 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from moelab.domain.counts import CountsTable
from moelab.domain.trace import Trace, TraceHeader
from moelab.formats import COUNT_FORMATS, FORMATS
from moelab.store import StoredTrace, is_trace_folder, open_trace


class TraceSource(Protocol):
    """What every command needs of a trace."""

    @property
    def header(self) -> TraceHeader: ...

    def load(self) -> Trace: ...


class _Read:
    """A foreign file, already in memory."""

    def __init__(self, trace: Trace) -> None:
        self.header = trace.header
        self._trace = trace

    def load(self) -> Trace:
        return self._trace


def open_source(path: str | Path) -> StoredTrace | _Read:
    """Open a trace by path; raises ``ValueError`` (expected, got, fix) where nothing can read it."""
    path = _existing(path)
    if path.is_dir() and is_trace_folder(path):
        return open_trace(path)
    for module in FORMATS.values():
        if module.matches(path):
            return _Read(module.read(path))
    for name, module in COUNT_FORMATS.items():
        if module.matches(path):
            raise ValueError(
                f"{path} holds counts ({name}), expected a trace: counts have no order, so they can be analysed "
                "(`moelab analyse`), not simulated, planned on or replayed"
            )
    if path.is_dir():
        return open_trace(path)  # says what a trace folder has
    raise ValueError(
        f"trace {path} is no trace folder and no known format: expected a folder written by `moelab record` "
        f"or one of {', '.join(FORMATS)}; arrays of your own become a trace by moelab.Trace.from_arrays"
    )


def read_counts(path: str | Path) -> CountsTable | None:
    """The counts at ``path``, ``None`` where no count format matches."""
    path = _existing(path)
    for module in COUNT_FORMATS.values():
        if module.matches(path):
            return module.read(path)
    return None


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise ValueError(f"trace {path} does not exist: give a trace folder or a file that a format can read")
    return path
