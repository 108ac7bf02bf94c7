"""verify: check every byte of a trace folder and report all damage, not only the first.

Beyond what reading checks: the sha256 of every segment, every page, ids within range, finite gate
weights, the order of steps across segments. Changes nothing. Floor 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.domain.trace import NO_EXPERT, TraceHeader
from moelab.store.columns import Batch
from moelab.store.error import TraceStoreError
from moelab.store.folder import (
    HEADER,
    NUM_LOOKS,
    Plot,
    find_leftovers,
    manifest_size,
    plot_of_manifest,
    read_manifest_and_header,
)
from moelab.store.manifest import MANIFEST
from moelab.store.segment import Segment
from moelab.store.write_ahead_log import LogContent, read_log

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FileCheck:
    """One file: ``problem`` is ``None`` where every check passed; ``note`` says what is harmless."""

    file: str
    num_bytes: int
    num_tokens: int
    problem: str | None = None
    note: str = ""


@dataclass
class VerifyReport:
    """Every file of a trace folder with what was found; ``str`` is the text of ``moelab verify``."""

    path: str
    model: str = ""
    files: list[FileCheck] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(check.problem is None for check in self.files)

    @property
    def num_tokens(self) -> int:
        return sum(check.num_tokens for check in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        files = [asdict(check) for check in self.files]
        return {"path": self.path, "ok": self.ok, "model": self.model, "num_tokens": self.num_tokens, "files": files}

    def to_frame(self) -> pd.DataFrame:
        """One row for each file."""
        import pandas as pd

        return pd.DataFrame([asdict(check) for check in self.files])

    def __str__(self) -> str:
        width = max((len(check.file) for check in self.files), default=0)
        lines = [
            f"{check.file:{width}}  {check.num_bytes / 1e6:9.3f} MB  {check.num_tokens:>9,} tokens  "
            f"{'ok' if check.problem is None else 'DAMAGED: ' + check.problem}{'  ' + check.note if check.note else ''}"
            for check in self.files
        ]
        damaged = sum(check.problem is not None for check in self.files)
        verdict = f"{damaged} of {len(self.files)} files damaged" if damaged else f"{len(self.files)} files ok"
        return "\n".join([*lines, f"{self.path}: {verdict}, {self.num_tokens:,} tokens verified"])

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def verify(path: Path | str, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Check a trace folder. ``progress`` is called with (files done, files).

    Raises ``TraceStoreError`` only where ``path`` is no trace folder at all; damage stands in the report.
    """
    path = Path(path)
    for _ in range(NUM_LOOKS):
        size = manifest_size(path)
        report = _verify(path, progress)
        if report.ok or size == manifest_size(path):  # otherwise a live writer moved files under us: look again
            break
    return report


def _verify(path: Path, progress: Callable[[int, int], None] | None) -> VerifyReport:
    report = VerifyReport(str(path))
    try:
        manifest, header, header_sha256 = read_manifest_and_header(path)
        plot = plot_of_manifest(path / MANIFEST, manifest, header)
    except TraceStoreError as error:
        if error.file == path:
            raise
        report.files.append(FileCheck(error.file.name, _size(error.file), 0, str(error)))
        return report
    report.model = header.model
    note = f"{manifest.torn_bytes} torn bytes, never committed" if manifest.torn_bytes else ""
    leftovers: list[Path] = []
    problem = None
    try:
        leftovers = find_leftovers(path, [entry.name for entry in path.iterdir()], plot)
    except TraceStoreError as error:
        problem = str(error)
    report.files.append(FileCheck(HEADER, _size(path / HEADER), 0))
    report.files.append(FileCheck(MANIFEST, _size(path / MANIFEST), 0, problem, note))
    for leftover in leftovers:
        report.files.append(
            FileCheck(leftover.name, _size(leftover), 0, note="left by an interrupted writer, not read")
        )
    log = _read_log(path, plot, header_sha256) if plot.log is not None else None  # before a live writer seals it
    steps = _Steps()
    for number in range(len(plot.segments)):
        if progress is not None:
            progress(number, len(plot.segments))
        report.files.append(_verify_segment(path, number, plot, header, steps))
    if log is not None:
        report.files.append(log if isinstance(log, FileCheck) else _verify_log(plot, log, header, steps))
    if progress is not None:
        progress(len(plot.segments), len(plot.segments))
    return report


class _Steps:
    """The last step seen, across segments."""

    def __init__(self) -> None:
        self.last: int | None = None

    def check(self, step: np.ndarray) -> str | None:
        before = [] if self.last is None else [self.last]
        self.last = int(step[-1])
        return "steps decrease" if (np.diff(np.concatenate([before, step])) < 0).any() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _problem_of_values(batch: Batch, header: TraceHeader, steps: _Steps) -> str | None:
    experts, gates = batch["experts"], batch["gates"]
    outside = (experts >= header.num_experts) & (experts != NO_EXPERT)
    if outside.any():
        return f"expert id {int(experts[outside][0])}, expected ids below {header.num_experts} or NO_EXPERT"
    if not np.isfinite(gates).all():
        return "a gate weight that is not finite"
    return steps.check(batch["step"])


def _verify_segment(path: Path, number: int, plot: Plot, header: TraceHeader, steps: _Steps) -> FileCheck:
    line = plot.segments[number]
    file = path / line.file
    try:
        segment = Segment(file, line, plot.layout)
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        batch = segment.read(list(plot.layout.arrays.values()))
        if sha256 != line.sha256:
            raise TraceStoreError(file, expected=f"sha256 {line.sha256[:16]}", got=f"{sha256[:16]}: bytes changed")
        problem = _problem_of_values(batch, header, steps)
    except TraceStoreError as error:
        problem = str(error)
    return FileCheck(line.file, _size(file), 0 if problem else line.num_tokens, problem)


def _read_log(path: Path, plot: Plot, header_sha256: str) -> LogContent | FileCheck:
    assert plot.log is not None
    file = path / plot.log.file
    try:
        return read_log(file, plot.layout, header_sha256, plot.log.first_token, plot.committed_bytes)
    except TraceStoreError as error:
        return FileCheck(plot.log.file, _size(file), 0, str(error))


def _verify_log(plot: Plot, content: LogContent, header: TraceHeader, steps: _Steps) -> FileCheck:
    assert plot.log is not None
    problems = [problem for batch in content.batches if (problem := _problem_of_values(batch, header, steps))]
    note = f"{content.torn_bytes} torn bytes, never committed" if content.torn_bytes else "not closed"
    problem = problems[0] if problems else None
    num_bytes = content.good_bytes + content.torn_bytes
    return FileCheck(plot.log.file, num_bytes, 0 if problem else content.num_tokens, problem, note)
