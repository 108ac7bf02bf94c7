"""Folder: what a trace folder holds according to its manifest, checked against its files.

Knows the order in which files appear, and so which leftovers an interrupted writer explains and which
mean that a committed file or line is gone. Does not read columns. Floor 1.

Order of a recording: header.json, manifest (``created``) | log without frames, its ``log`` line |
frames, ``commit`` lines | segment, its ``segment`` line, log removed. So a file that the manifest does
not name is explained only as the next log without frames, or as the next segment while its log is
still there; a log that the manifest calls open is always there.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from moelab.domain.trace import TraceHeader
from moelab.store.columns import Layout
from moelab.store.error import RESTORE, TraceStoreError
from moelab.store.manifest import (
    MANIFEST,
    ColumnsLine,
    CommitLine,
    CreatedLine,
    LogLine,
    Manifest,
    SegmentLine,
    read_manifest,
)
from moelab.store.segment import Segment, segment_name
from moelab.store.write_ahead_log import FILE_HEADER_BYTES, LogContent, log_name, read_log

HEADER = "header.json"
FORMAT = "moelab trace"
NUM_LOOKS = 100  # at a folder that a live writer changes under us
_OURS = re.compile(r"(segment-\d{6}\.parquet|wal-\d{6}\.log)(\.tmp)?|(header\.json|manifest\.jsonl)\.tmp")


@dataclass
class Plot:
    """What the manifest says, before any file is opened."""

    layout: Layout
    columns_known: bool = False
    segments: list[SegmentLine] = field(default_factory=list)
    log: LogLine | None = None
    committed_bytes: int = 0

    @property
    def num_sealed(self) -> int:
        return self.segments[-1].stop_token if self.segments else 0


@dataclass
class Folder:
    """An opened trace folder: segments in order, then the batches of the open log."""

    path: Path
    header: TraceHeader
    header_sha256: str
    manifest: Manifest
    plot: Plot
    segments: list[Segment]
    log: LogContent | None
    leftovers: list[Path]


def encode_header(header: TraceHeader) -> bytes:
    """The bytes of header.json."""
    content = {"format": FORMAT, "store_version": 1, "trace": header.model_dump(mode="json")}
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def read_header(path: Path, expected_sha256: str | None = None) -> tuple[TraceHeader, str]:
    """Header and its sha256; raises ``TraceStoreError`` where it is not the one that was committed."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise TraceStoreError(path, expected="the header of a trace folder", got="no such file") from None
    sha256 = hashlib.sha256(data).hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise TraceStoreError(path, expected=f"sha256 {expected_sha256[:16]}", got=f"{sha256[:16]}: changed or damaged")
    try:
        content = json.loads(data)
        if content["format"] != FORMAT or content["store_version"] != 1:
            raise ValueError(f"{content['format']!r} version {content['store_version']!r}")
        return TraceHeader.model_validate(content["trace"]), sha256
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise TraceStoreError(
            path, expected=f"format {FORMAT!r} version 1", got=f"{error}", fix="give a folder written by moelab"
        ) from None


def plot_of_manifest(path: Path, manifest: Manifest, header: TraceHeader) -> Plot:
    """Follow the lines; raises ``TraceStoreError`` where one contradicts those before it."""
    plot = Plot(Layout(header, {}))
    for number, line in enumerate(manifest.lines[1:], 2):
        index = len(plot.segments)
        if isinstance(line, ColumnsLine) and not index and plot.log is None:
            plot.layout, plot.columns_known = Layout(header, line.extras), True
        elif isinstance(line, LogLine) and plot.log is None and plot.columns_known:
            wanted: object = (log_name(index), plot.num_sealed)
            if (line.file, line.first_token) != wanted:
                raise TraceStoreError(path, expected=f"{wanted} in line {number}", got=f"{line}")
            plot.log, plot.committed_bytes = line, 0
        elif isinstance(line, CommitLine) and plot.log is not None and line.file == plot.log.file:
            plot.committed_bytes = line.bytes
        elif isinstance(line, SegmentLine) and plot.log is not None:
            wanted = (segment_name(index), plot.num_sealed)
            if (line.file, line.first_token) != wanted or line.num_tokens < 1:
                raise TraceStoreError(path, expected=f"{wanted} in line {number}", got=f"{line}")
            plot.segments.append(line)
            plot.log = None
        else:
            raise TraceStoreError(path, expected=f"a line {number} that fits those before it", got=f"{line}")
    return plot


def find_leftovers(folder: Path, names: list[str], plot: Plot) -> list[Path]:
    """Files that an interrupted writer left; raises ``TraceStoreError`` for those that only a loss explains."""
    leftovers = []
    live = {line.file for line in plot.segments} | ({plot.log.file} if plot.log else set())
    index = len(plot.segments)
    past = {log_name(i) for i in range(index)}  # sealed; only their removal was interrupted
    for name in sorted(names):
        if name in live or not _OURS.fullmatch(name):
            continue
        path = folder / name
        explained = name in past or name.endswith(".tmp") or (name == segment_name(index) and plot.log is not None)
        if name == log_name(index) and plot.log is None:
            explained = not path.exists() or path.stat().st_size <= FILE_HEADER_BYTES
        if not explained:
            raise TraceStoreError(
                folder / MANIFEST, expected=f"a line for {name}", got=f"{len(plot.segments)} segments without it",
                fix=f"the manifest was truncated or the file is foreign: {RESTORE}",
            )  # fmt: skip
        leftovers.append(path)
    return leftovers


def is_trace_folder(path: Path) -> bool:
    """Has the folder a file that only a trace folder has? It may still be damaged."""
    return (path / HEADER).exists() or (path / MANIFEST).exists()


def read_manifest_and_header(path: Path) -> tuple[Manifest, TraceHeader, str]:
    """The two files that say what the others are."""
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing there"
        raise TraceStoreError(path, expected="a trace folder", got=got, fix="give a folder written by `moelab record`")
    if not is_trace_folder(path):
        raise TraceStoreError(
            path, expected=f"{HEADER} and {MANIFEST}", got="neither: a foreign folder",
            fix="give a folder written by `moelab record`",
        )  # fmt: skip
    manifest = read_manifest(path / MANIFEST)
    if not manifest.lines or not isinstance(manifest.lines[0], CreatedLine):
        raise TraceStoreError(path / MANIFEST, expected="a first line of kind 'created'", got="none")
    header, sha256 = read_header(path / HEADER, manifest.lines[0].header_sha256)
    return manifest, header, sha256


def read_folder(path: Path) -> Folder:
    """Open everything; raises ``TraceStoreError`` for damage. Safe beside a live writer."""
    for _ in range(NUM_LOOKS):
        size = manifest_size(path)
        try:
            return _read_folder(path)
        except TraceStoreError as error:
            # A writer may have sealed the log between our look at the manifest and at the file: look again if so.
            failure = error
            if manifest_size(path) == size:
                break
    raise failure


def manifest_size(path: Path) -> int:
    """Bytes of the manifest now, 0 without one: it grows with every change of the folder."""
    try:
        return (path / MANIFEST).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _read_folder(path: Path) -> Folder:
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    manifest, header, sha256 = read_manifest_and_header(path)
    plot = plot_of_manifest(path / MANIFEST, manifest, header)
    log = None
    if plot.log is not None:  # first, because a live writer removes it; segments stay
        log = read_log(path / plot.log.file, plot.layout, sha256, plot.log.first_token, plot.committed_bytes)
    leftovers = find_leftovers(path, names, plot)
    segments = [Segment(path / line.file, line, plot.layout) for line in plot.segments]
    return Folder(path, header, sha256, manifest, plot, segments, log, leftovers)
