"""Where a trace comes from: a store folder or any foreign file that a format can read.

Knows how to tell them apart and says what was expected otherwise. Floor 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from moelab.domain.trace import Trace, TraceHeader
from moelab.formats import FORMATS
from moelab.store import StoredTrace, open_trace


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
    path = Path(path)
    if not path.exists():
        raise ValueError(f"trace {path} does not exist: give a trace folder or a file that a format can read")
    if path.is_dir():
        return open_trace(path)
    for module in FORMATS.values():
        if module.matches(path):
            return _Read(module.read(path))
    raise ValueError(
        f"trace {path} is no trace folder and no known format: expected a folder written by `moelab record` "
        f"or one of {', '.join(FORMATS)}"
    )
