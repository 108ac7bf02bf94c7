"""Layout: which arrays a trace folder holds and how they become Parquet columns or raw bytes.

One Parquet column for each MoE layer: ``experts_00`` FixedSizeList<uint16>[K] and ``gates_00``
FixedSizeList<float16>[K], so that Polars and DuckDB unnest them without moelab; the token table and
the optional extras stand beside them. Nothing is nullable. Does not know files. Floor 1.

A *batch* is a dict of arrays by name, token first: the token table's columns, ``experts`` [T, L, K],
``gates`` [T, L, K] and the extras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa

from moelab.domain.trace import TOKEN_COLUMNS, TokenTable, Trace, TraceHeader

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class StoredArray:
    """One array of the folder; ``shape`` is that of one token; per layer where its first axis is L."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    num_layers: int | None

    @property
    def width(self) -> int | None:
        """Elements of one column and token; ``None`` where the column is a plain scalar."""
        shape = self.shape if self.num_layers is None else self.shape[1:]
        return prod(shape) if shape else None

    @property
    def bytes_per_token(self) -> int:
        return self.dtype.itemsize * prod(self.shape)

    def columns(self, layers: Sequence[int] | None = None) -> list[str]:
        """Names of its Parquet columns, of some layers only where it is per layer."""
        if self.num_layers is None:
            return [self.name]
        return [f"{self.name}_{layer:02d}" for layer in (range(self.num_layers) if layers is None else layers)]

    def field(self, name: str) -> pa.Field:
        element = pa.from_numpy_dtype(self.dtype)
        if self.width is not None:
            element = pa.list_(pa.field("element", element, nullable=False), self.width)
        return pa.field(name, element, nullable=False)

    def to_arrow(self, values: np.ndarray, field: pa.Field) -> pa.Array:
        """Column of values [T] or [T, ...]."""
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return flat if self.width is None else pa.FixedSizeListArray.from_arrays(flat, type=field.type)

    def from_arrow(self, column: pa.ChunkedArray) -> np.ndarray:
        """Inverse of ``to_arrow``: [T, ...]."""
        array = column.combine_chunks()
        if self.width is not None:
            array = array.flatten()
        inner = self.shape if self.num_layers is None else self.shape[1:]
        return array.to_numpy(zero_copy_only=False).reshape(len(column), *inner)


class Layout:
    """All arrays of a folder, in the order of their columns; ``extras`` maps a name to (dtype, shape)."""

    def __init__(self, header: TraceHeader, extras: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        num_layers, top_k = header.num_layers, header.top_k
        self.extras = {name: (str(np.dtype(dtype)), tuple(shape)) for name, (dtype, shape) in extras.items()}
        arrays = [StoredArray(name, np.dtype(dtype), (), None) for name, dtype in TOKEN_COLUMNS.items()]
        arrays.append(StoredArray("experts", np.dtype(np.uint16), (num_layers, top_k), num_layers))
        arrays.append(StoredArray("gates", np.dtype(np.float16), (num_layers, top_k), num_layers))
        for name, (dtype, shape) in self.extras.items():
            per_layer = num_layers if shape and shape[0] == num_layers else None
            arrays.append(StoredArray(name, np.dtype(dtype), tuple(shape), per_layer))
        self.arrays = {array.name: array for array in arrays}
        names = [column for array in arrays for column in array.columns()]
        if len(set(names)) != len(names) or len(self.arrays) != len(arrays):
            raise ValueError(f"extra arrays {sorted(extras)} clash with column names of the trace: rename them")

    @property
    def bytes_per_token(self) -> int:
        return sum(array.bytes_per_token for array in self.arrays.values())

    def select(self, extras: Sequence[str] | None) -> list[StoredArray]:
        """The trace's own arrays and the named extras; raises ``ValueError`` for a name that is not there."""
        unknown = set(extras or ()) - set(self.extras)
        if unknown:
            raise ValueError(f"extra arrays {sorted(unknown)} are not stored: choose from {sorted(self.extras)}")
        return [a for a in self.arrays.values() if a.name not in self.extras or extras is None or a.name in extras]

    def empty(self, num_tokens: int) -> Batch:
        """Buffer of one segment; arrays per layer are LAYER first here, so that columns are contiguous."""
        buffer = {}
        for array in self.arrays.values():
            rest = array.shape
            shape = (num_tokens, *rest) if array.num_layers is None else (rest[0], num_tokens, *rest[1:])
            buffer[array.name] = np.empty(shape, array.dtype)
        return buffer

    def fill(self, buffer: Batch, start: int, batch: Batch, rows: slice) -> int:
        """Copy rows of a batch into a buffer at ``start``; returns where they end."""
        for array in self.arrays.values():
            values = batch[array.name][rows]
            stop = start + len(values)
            if array.num_layers is None:
                buffer[array.name][start:stop] = values
            else:
                buffer[array.name][:, start:stop] = values.swapaxes(0, 1)
        return stop

    def to_table(self, buffer: Batch, num_tokens: int) -> pa.Table:
        """Arrow table of the first rows of a buffer."""
        fields: list[pa.Field] = []
        values: list[pa.Array] = []
        for array in self.arrays.values():
            for layer, name in enumerate(array.columns()):
                source = buffer[array.name] if array.num_layers is None else buffer[array.name][layer]
                fields.append(array.field(name))
                values.append(array.to_arrow(source[:num_tokens], fields[-1]))
        return pa.table(values, schema=pa.schema(fields))

    def to_bytes(self, batch: Batch, rows: slice) -> bytes:
        """Raw little-endian arrays one after the other: the payload of a log frame."""
        parts = []
        for array in self.arrays.values():
            values = np.ascontiguousarray(batch[array.name][rows], array.dtype.newbyteorder("<"))
            parts.append(values.reshape(-1).view(np.uint8).data)
        return b"".join(parts)

    def from_bytes(self, payload: bytes | memoryview, num_tokens: int) -> Batch:
        """Inverse of ``to_bytes``."""
        batch, offset = {}, 0
        for array in self.arrays.values():
            count = num_tokens * prod(array.shape)
            values = np.frombuffer(payload, array.dtype.newbyteorder("<"), count, offset)
            batch[array.name] = values.astype(array.dtype, copy=False).reshape(num_tokens, *array.shape)
            offset += num_tokens * array.bytes_per_token
        return batch


def array_space(arrays: Sequence[StoredArray], num_tokens: int, layers: Sequence[int] | None) -> Batch:
    """Uninitialised arrays, token first; those per layer with room for ``layers`` only."""
    out = {}
    for array in arrays:
        chosen = layers is not None and array.num_layers is not None
        shape = (len(layers or ()), *array.shape[1:]) if chosen else array.shape
        out[array.name] = np.empty((num_tokens, *shape), array.dtype)
    return out


def batch_of_trace(trace: Trace) -> Batch:
    """The arrays of a trace by their stored names."""
    columns = {name: getattr(trace.tokens, name) for name in TOKEN_COLUMNS}
    return {**columns, "experts": trace.experts, "gates": trace.gate_weights, **trace.extras}


def trace_of_batch(header: TraceHeader, batch: dict[str, Any]) -> Trace:
    """Trace of stored arrays, checked by its constructor."""
    rest = dict(batch)
    tokens = TokenTable(**{name: rest.pop(name) for name in TOKEN_COLUMNS})
    return Trace(header, rest.pop("experts"), rest.pop("gates"), tokens, rest)


def extras_of_trace(trace: Trace) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and per-token shape of the extras; raises ``ValueError`` for what Parquet columns cannot hold."""
    specs = {}
    for name, array in trace.extras.items():
        if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
            raise ValueError(
                f"extra array {name} is {array.dtype}, expected integers or floats of 1 to 8 bytes: cast it"
            )
        if 0 in array.shape[1:]:
            raise ValueError(f"extra array {name} has the shape {array.shape}, expected no empty axis: leave it out")
        specs[name] = (array.dtype.name, tuple(array.shape[1:]))
    return specs
