"""TraceWriter: append batches of routing to a trace folder so that no committed byte is ever lost.

What counts as committed: a batch survives a kill of this process once ``append`` has returned (it is
in the write-ahead log), and a power cut once ``commit`` or ``close`` has returned, or its segment is
sealed. Does not know who records. Floor 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from moelab.domain.trace import TokenTable, Trace, TraceHeader
from moelab.store import durable
from moelab.store.columns import Batch, Layout, batch_of_trace, extras_of_trace
from moelab.store.error import TraceStoreError
from moelab.store.folder import HEADER, Folder, encode_header, read_folder, read_header
from moelab.store.manifest import MANIFEST, ColumnsLine, CommitLine, CreatedLine, LogLine, ManifestWriter, encode
from moelab.store.segment import segment_name, write_segment
from moelab.store.write_ahead_log import FILE_HEADER_BYTES, LogContent, WriteAheadLog, create_log, log_name
from moelab.store.writer_lock import LOCK, WriterLock

SEGMENT_TOKENS = 16_384
_NOT_FINITE = 0x7C00  # float16 bits without the sign: infinity, and NaN above it


@dataclass(frozen=True)
class Recovery:
    """What opening an interrupted recording found: tokens in the log, torn bytes cut off, files removed."""

    num_log_tokens: int = 0
    torn_bytes: int = 0
    removed_files: tuple[str, ...] = ()


class TraceWriter:
    """Appends to the trace folder ``path``; creates it, or resumes one of the same header.

    Raises ``TraceStoreError`` for a folder of another header, a damaged one, or one that another
    writer holds. ``recovery`` says what a resumed folder had lost its writer with.
    """

    def __init__(self, path: Path | str, header: TraceHeader, segment_tokens: int = SEGMENT_TOKENS) -> None:
        if segment_tokens < 1:
            raise ValueError(f"segment_tokens is {segment_tokens}, expected at least 1: leave it at {SEGMENT_TOKENS}")
        self.path, self.header, self.segment_tokens = Path(path), header, segment_tokens
        self._check_ours()
        if not self.path.exists():
            self.path.mkdir(parents=True)
            durable.sync_folder(self.path.parent)
        self._lock = WriterLock(self.path)
        self._log: WriteAheadLog | None = None
        self._broken = False
        self._closed = False
        try:
            if not (self.path / MANIFEST).exists():
                self._create()
            self._resume(read_folder(self.path))
        except BaseException:
            self._lock.release()
            raise

    def _check_ours(self) -> None:
        """Nothing is touched in a folder that is not ours or is of another trace."""
        if self.path.exists() and not self.path.is_dir():
            raise TraceStoreError(self.path, expected="a folder", got="a file", fix="choose another path")
        if (self.path / HEADER).exists():
            stored, _ = read_header(self.path / HEADER)
            if stored != self.header:
                names = [n for n in TraceHeader.model_fields if getattr(stored, n) != getattr(self.header, n)]
                raise TraceStoreError(
                    self.path / HEADER, expected=f"the header that is being recorded ({self.header.model})",
                    got=f"one that differs in {', '.join(names)} ({stored.model})", fix="record into another folder",
                )  # fmt: skip
        elif self.path.exists():
            foreign = sorted(p.name for p in self.path.iterdir() if p.name != LOCK and not p.name.endswith(".tmp"))
            if foreign:
                raise TraceStoreError(
                    self.path, expected="an empty or new folder, or a trace folder", got=f"a folder with {foreign[0]}",
                    fix="record into another folder",
                )  # fmt: skip

    def _create(self) -> None:
        parts = [p.name for p in self.path.iterdir() if p.suffix in (".parquet", ".log")]
        if parts:
            raise TraceStoreError(self.path / MANIFEST, expected=f"lines for {parts[0]}", got="no such file")
        durable.publish(self.path / HEADER, encode_header(self.header))
        _, sha256 = read_header(self.path / HEADER)
        line, _ = encode(CreatedLine(header_sha256=sha256), 0, "")
        durable.publish(self.path / MANIFEST, line)

    def _resume(self, folder: Folder) -> None:
        torn = folder.manifest.torn_bytes
        if torn:
            durable.truncate(self.path / MANIFEST, folder.manifest.good_bytes)
        for path in folder.leftovers:
            durable.remove(path)
        plot = folder.plot
        self._layout: Layout | None = plot.layout if plot.columns_known else None
        self._header_sha256 = folder.header_sha256
        self._num_segments, self._first_token = len(plot.segments), plot.num_sealed
        self._buffer: Batch | None = None
        self._filled = 0
        self._last_step: int | None = None
        if folder.segments:
            self._last_step = int(folder.segments[-1].read([plot.layout.arrays["step"]])["step"][-1])
        if folder.log is not None and plot.log is not None:
            path = self.path / plot.log.file
            if folder.log.torn_bytes:
                durable.truncate(path, folder.log.good_bytes)
                torn += folder.log.torn_bytes
            self._log = WriteAheadLog(path, folder.log, self._first_token + folder.log.num_tokens)
            for batch in folder.log.batches:
                self._keep(batch, slice(None))
        log_tokens = folder.log.num_tokens if folder.log else 0
        self.recovery = Recovery(log_tokens, torn, tuple(path.name for path in folder.leftovers))
        self._manifest = ManifestWriter(self.path / MANIFEST, folder.manifest)

    @property
    def num_tokens(self) -> int:
        """Tokens of the folder, those in the log included."""
        return self._first_token + self._filled

    def append(self, experts: np.ndarray, gate_weights: np.ndarray, tokens: TokenTable, **extras: np.ndarray) -> None:
        """Add a batch: ``experts`` uint16 and ``gate_weights`` float16 [T, L, K], T table rows, extras [T, ...].

        It is kept whole or not at all, unless it is longer than a segment. The first batch decides
        which extras the folder has. Raises ``ValueError`` for what contradicts the header, the
        extras or the order of steps, and keeps nothing of that batch.
        """
        self._check_open()
        trace = Trace(self.header, experts, gate_weights, tokens, extras)
        self._check_batch(trace)
        if not trace.num_tokens:
            return
        self._broken = True  # until this batch is whole in the log: an interrupt in between must not go on
        self._write(batch_of_trace(trace), trace)
        self._last_step = int(tokens.step[-1])
        self._broken = False

    def append_trace(self, trace: Trace) -> None:
        """Add a whole trace of the same header."""
        if trace.header != self.header:
            raise ValueError(f"trace of {trace.header.model} has another header than {self.path}: use another folder")
        self.append(trace.experts, trace.gate_weights, trace.tokens, **trace.extras)

    def _check_open(self) -> None:
        if self._closed or self._broken:
            got = "a closed one" if self._closed else "one whose last write failed or was interrupted"
            raise TraceStoreError(
                self.path, expected="an open writer", got=got, fix="open a new TraceWriter: it recovers"
            )

    def _check_batch(self, trace: Trace) -> None:
        if trace.num_tokens and (trace.gate_weights.view(np.uint16) & 0x7FFF).max() >= _NOT_FINITE:
            token, layer, slot = np.argwhere(~np.isfinite(trace.gate_weights))[0]
            raise ValueError(
                f"gate_weights[{token}, {layer}, {slot}] is {trace.gate_weights[token, layer, slot]}, expected a "
                "finite number: a router that overflows float16 must be scaled before it is recorded"
            )
        if trace.num_tokens and self._last_step is not None and trace.tokens.step[0] < self._last_step:
            raise ValueError(
                f"step {trace.tokens.step[0]} follows step {self._last_step}, expected steps that never decrease"
            )
        specs = extras_of_trace(trace)
        if self._layout is not None and specs != self._layout.extras:
            raise ValueError(f"extra arrays are {specs}, expected {self._layout.extras} as in the first batch")
        if self._layout is None:
            Layout(self.header, specs)  # raises for names that clash

    def _write(self, batch: Batch, trace: Trace) -> None:
        if self._layout is None:
            specs = extras_of_trace(trace)
            self._layout = Layout(self.header, specs)
            self._manifest.append(ColumnsLine(extras=specs))
        num_tokens, limit = trace.num_tokens, self.segment_tokens
        if self._filled and num_tokens <= limit and self._filled + num_tokens > limit:
            self._seal()  # a short segment rather than a batch in two
        start = 0
        while start < num_tokens:
            rows = slice(start, min(num_tokens, start + max(limit - self._filled, 0)))
            if rows.stop > start:
                log = self._open_log()
                if self._filled or rows.stop - start < limit:  # a full segment goes straight to its file
                    log.append(self._layout.to_bytes(batch, rows), rows.stop - start)
                self._keep(batch, rows)
            start = rows.stop
            if self._filled >= limit:
                self._seal()

    def _open_log(self) -> WriteAheadLog:
        if self._log is None:
            path = self.path / log_name(self._num_segments)
            create_log(path, self._header_sha256, self._first_token)
            self._manifest.append(LogLine(file=path.name, first_token=self._first_token))
            self._log = WriteAheadLog(path, LogContent([], 0, FILE_HEADER_BYTES, 0), self._first_token)
        return self._log

    def _keep(self, batch: Batch, rows: slice) -> None:
        """Copy rows into the buffer of the next segment; grows it for a log of longer segments."""
        assert self._layout is not None
        needed = self._filled + len(batch["step"][rows])
        if self._buffer is None:
            self._buffer = self._layout.empty(max(self.segment_tokens, needed))
        elif needed > len(self._buffer["step"]):
            larger = self._layout.empty(2 * needed)
            for array in self._layout.arrays.values():
                at = np.s_[: self._filled] if array.num_layers is None else np.s_[:, : self._filled]
                larger[array.name][at] = self._buffer[array.name][at]
            self._buffer = larger
        self._filled = self._layout.fill(self._buffer, self._filled, batch, rows)
        self._last_step = int(batch["step"][rows][-1])

    def _seal(self) -> None:
        """The buffer becomes a segment and replaces its log."""
        assert self._layout is not None
        assert self._buffer is not None
        assert self._log is not None
        path = self.path / segment_name(self._num_segments)
        line = write_segment(path, self._layout, self._buffer, self._first_token, self._filled)
        self._manifest.append(line)
        self._log.close()
        durable.remove(self._log.path)
        self._log = None
        self._num_segments += 1
        self._first_token += self._filled
        self._filled = 0

    def commit(self) -> None:
        """Return when everything appended would survive a power cut; costs one fsync."""
        self._check_open()
        if self._log is None or not self._filled:
            return
        self._broken = True
        self._log.sync()
        line = CommitLine(file=self._log.path.name, bytes=self._log.num_bytes, stop_token=self._log.next_token)
        self._manifest.append(line, sync=False)
        self._broken = False

    flush = commit

    def close(self) -> None:
        """Seal what the log holds and let the folder go; a second call does nothing.

        After a failed or interrupted write nothing is sealed: the next writer or reader recovers.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._filled and not self._broken:
                self._seal()
            self._manifest.close()
            if self._log is not None:
                self._log.close()
        finally:
            self._lock.release()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def save_trace(trace: Trace, path: Path | str, segment_tokens: int = SEGMENT_TOKENS) -> Path:
    """Write a whole trace into a new folder; raises ``TraceStoreError`` where it already holds one."""
    with TraceWriter(path, trace.header, segment_tokens) as writer:
        if writer.num_tokens:
            raise TraceStoreError(
                writer.path, expected="a new folder", got=f"{writer.num_tokens} recorded tokens",
                fix="choose another path, or append with TraceWriter",
            )  # fmt: skip
        writer.append_trace(trace)
    return Path(path)
