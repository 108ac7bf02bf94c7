"""StoredTrace: a trace folder opened for reading, whole or in parts; also one that is still recorded.

Knows which rows and columns to read. Does not know Parquet (``segment``) or recovery (``folder``).
Floor 1; xarray, dask and pandas are imported only by the methods that return them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from moelab.domain.summary import summary_html
from moelab.domain.trace import TOKEN_COLUMNS, Phase, TokenTable, Trace, TraceHeader, summarise
from moelab.store.columns import Batch, StoredArray, array_space, trace_of_batch
from moelab.store.folder import Folder, read_folder
from moelab.store.segment import Segment

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Rows = slice | Sequence[int] | np.ndarray


def open_trace(path: Path | str) -> StoredTrace:
    """Open a trace folder; raises ``TraceStoreError`` for a damaged or foreign one.

    Checks the manifest, the header, length and footer of every segment, and the whole log; the pages
    of a column are checked when it is read. An interrupted recording opens too: ``torn_bytes`` of it
    were never committed. A recording that goes on is seen as it was at the moment of opening.
    """
    return StoredTrace(read_folder(Path(path)))


class StoredTrace:
    """What ``open_trace`` returns. T counts sealed tokens and those in the log."""

    def __init__(self, folder: Folder) -> None:
        self.path = folder.path
        self.header: TraceHeader = folder.header
        self._folder = folder
        self._layout = folder.plot.layout
        self._parts: list[_Part] = [_Part(segment.line.num_tokens, segment=segment) for segment in folder.segments]
        if folder.log is not None and folder.log.num_tokens:
            batches = folder.log.batches
            merged = {name: np.concatenate([b[name] for b in batches]) for name in self._layout.arrays}
            self._parts.append(_Part(folder.log.num_tokens, batch=merged))

    @property
    def num_tokens(self) -> int:
        return sum(part.num_tokens for part in self._parts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, L, K)."""
        return (self.num_tokens, self.header.num_layers, self.header.top_k)

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the optional arrays."""
        return tuple(self._layout.extras)

    def __getattr__(self, name: str) -> NoReturn:
        fix = (
            "give open_trace(..).load(), a trace in memory" if hasattr(Trace, name) or name == "experts" else "no such"
        )
        raise AttributeError(f"a stored trace has no {name!r}: {fix}")

    @property
    def sealed(self) -> bool:
        """True where no token stands only in the log: the recording was closed."""
        return self._folder.log is None or not self._folder.log.num_tokens

    @property
    def torn_bytes(self) -> int:
        """Bytes after the last whole batch and manifest line: a write that was cut off, never committed."""
        log = self._folder.log
        return self._folder.manifest.torn_bytes + (log.torn_bytes if log else 0)

    @cached_property
    def tokens(self) -> TokenTable:
        """The token table of all rows."""
        batch = self._read([self._layout.arrays[name] for name in TOKEN_COLUMNS], slice(0, self.num_tokens), None)
        return TokenTable(**batch)

    def load(
        self,
        rows: Rows | None = None,
        *,
        phase: Phase | None = None,
        layers: Sequence[int] | None = None,
        extras: Sequence[str] | None = None,
    ) -> Trace:
        """Trace in memory of some rows (slice, rising indices or boolean mask), one phase, some layers.

        ``extras`` names the optional arrays to read: all by default, ``()`` for none. With ``layers`` the
        header says which model layers are left. Raises ``TraceStoreError`` where a page that is read is
        damaged and ``ValueError`` for rows, layers or extras that are not there.
        """
        if layers is not None:
            layers = [int(layer) for layer in layers]
        header = self.header if layers is None else self.header.select_layers(layers)
        batch = self._read(self._layout.select(extras), self._select_rows(rows, phase), layers)
        return trace_of_batch(header, batch)

    def iter_chunks(
        self, num_tokens: int = 16_384, *, layers: Sequence[int] | None = None, extras: Sequence[str] | None = None
    ) -> Iterator[Trace]:
        """The trace in consecutive pieces of ``num_tokens`` (the last may be shorter), one segment in memory."""
        if num_tokens < 1:
            raise ValueError(f"num_tokens is {num_tokens}, expected at least 1")
        header = self.header if layers is None else self.header.select_layers(layers)
        arrays = self._layout.select(extras)
        waiting: list[Batch] = []
        num_waiting = 0
        for part in self._parts:
            batch, start = part.read(arrays, layers), 0
            while start < part.num_tokens:
                stop = min(part.num_tokens, start + num_tokens - num_waiting)
                waiting.append({name: array[start:stop] for name, array in batch.items()})
                num_waiting += stop - start
                start = stop
                if num_waiting == num_tokens:
                    yield trace_of_batch(header, _merge(waiting))
                    waiting, num_waiting = [], 0
        if num_waiting:
            yield trace_of_batch(header, _merge(waiting))

    def _select_rows(self, rows: Rows | None, phase: Phase | None) -> slice | np.ndarray:
        """Contiguous slice or rising row numbers."""
        total = self.num_tokens
        if rows is None:
            rows = slice(None)
        if isinstance(rows, slice):
            start, stop, stride = rows.indices(total)
            if stride == 1 and phase is None:
                return slice(start, max(start, stop))
            chosen = np.arange(total)[rows]
        else:
            chosen = np.asarray(rows)
            if chosen.dtype == bool:
                if chosen.shape != (total,):
                    raise ValueError(f"mask has the shape {chosen.shape}, expected [T] = ({total},)")
                chosen = np.flatnonzero(chosen)
            chosen = chosen.astype(np.int64, casting="safe") if chosen.size else np.zeros(0, np.int64)
        if len(chosen) and (chosen[0] < 0 or chosen[-1] >= total or (np.diff(chosen) <= 0).any()):
            raise ValueError(f"rows must rise from 0 to at most {total - 1}: sort them and leave each once")
        if phase is not None:
            chosen = chosen[self.tokens.phase[chosen] == int(phase)]
        return chosen

    def _read(self, arrays: list[StoredArray], rows: slice | np.ndarray, layers: Sequence[int] | None) -> Batch:
        num_rows = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        out = array_space(arrays, num_rows, layers)
        first = done = 0
        for part in self._parts:
            last = first + part.num_tokens
            local: slice | np.ndarray
            if isinstance(rows, slice):
                local = slice(max(rows.start, first) - first, max(min(rows.stop, last), first) - first)
                count = max(local.stop - local.start, 0)
            else:
                local = rows[np.searchsorted(rows, first) : np.searchsorted(rows, last)] - first
                count = len(local)
            target = {name: values[done : done + count] for name, values in out.items()}
            if count == part.num_tokens:
                part.read(arrays, layers, out=target)
            elif count:
                batch = part.read(arrays, layers)
                for name, values in target.items():
                    values[...] = batch[name][local]
            done += count
            first = last
        return out

    def to_xarray(self) -> xr.Dataset:
        """Lazy Dataset (token, layer, slot): one dask chunk for each segment and layer, read when computed."""
        import dask.array as da
        import xarray as xr

        num_tokens, num_layers, top_k = self.shape
        chunks = (tuple(part.num_tokens for part in self._parts) or (0,), (1,) * num_layers, (top_k,))

        def lazy(name: str) -> Any:
            array = self._layout.arrays[name]

            def read_chunk(block_id: tuple[int, int, int]) -> np.ndarray:
                return self._parts[block_id[0]].read([array], [block_id[1]], use_threads=False)[name]

            if not num_tokens:
                return np.zeros(self.shape, array.dtype)
            return da.map_blocks(read_chunk, chunks=chunks, dtype=array.dtype, meta=np.empty((0, 0, 0), array.dtype))

        dims = ("token", "layer", "slot")
        tokens = {name: ("token", getattr(self.tokens, name)) for name in TOKEN_COLUMNS}
        return xr.Dataset(
            {"experts": (dims, lazy("experts")), "gate_weights": (dims, lazy("gates"))},
            coords={**tokens, "model_layer": ("layer", list(self.header.model_layer_of_layer))},
            attrs=self.header.model_dump(mode="json"),
        )

    def to_frame(
        self, rows: Rows | None = None, *, phase: Phase | None = None, layers: Sequence[int] | None = None
    ) -> pd.DataFrame:
        """One row for each routed (token, layer, slot); choose rows or layers where the trace is large."""
        return self.load(rows, phase=phase, layers=layers, extras=()).to_frame()

    def summary(self) -> dict[str, Any]:
        """What ``repr`` and ``_repr_html_`` show; plain values."""
        stored = f"{len(self._folder.segments)} segments"
        if not self.sealed:
            stored += f" + {self._parts[-1].num_tokens} tokens in the log (not closed)"
        if self.torn_bytes:
            stored += f", {self.torn_bytes} torn bytes ignored"
        return {"folder": self.path.name, "stored": stored, **summarise(self.header, self.tokens)}

    def __repr__(self) -> str:
        return "StoredTrace\n" + "\n".join(f"  {name}: {value}" for name, value in self.summary().items())

    def _repr_html_(self) -> str:
        return summary_html("StoredTrace", self.summary())


class _Part:
    """A segment, or the merged batches of the log."""

    def __init__(self, num_tokens: int, *, segment: Segment | None = None, batch: Batch | None = None) -> None:
        self.num_tokens, self._segment, self._batch = num_tokens, segment, batch

    def read(
        self,
        arrays: list[StoredArray],
        layers: Sequence[int] | None,
        *,
        out: Batch | None = None,
        use_threads: bool = True,
    ) -> Batch:
        if self._segment is not None:
            return self._segment.read(arrays, layers, out=out, use_threads=use_threads)
        assert self._batch is not None
        batch = {}
        for array in arrays:
            values = self._batch[array.name]
            batch[array.name] = values if layers is None or array.num_layers is None else values[:, list(layers)]
            if out is not None:
                out[array.name][...] = batch[array.name]
        return batch


def _merge(batches: list[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
