"""Segment: one immutable Parquet file of up to ``segment_tokens`` tokens.

Three nets, because each has holes: Parquet's own page checksums (they skip page headers and the
footer), a CRC-32 of every column chunk with its page headers, checked whenever the column is read,
and a CRC-32 of the footer, checked at opening; the last two and a sha256 of the file stand in the
manifest. Does not know the log or which tokens are committed. Floor 1.

Ids are BYTE_STREAM_SPLIT + zstd 3; gates are PLAIN + zstd 3, 11% larger than BYTE_STREAM_SPLIT, which
DuckDB cannot read for float16 (``docs/log.md``). Encodings may change: readers follow the file.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moelab.domain.trace import TOKEN_COLUMNS
from moelab.store import durable
from moelab.store.columns import Batch, Layout, StoredArray, array_space
from moelab.store.error import TraceStoreError
from moelab.store.manifest import SegmentLine

_MAGIC = b"PAR1"
_TAIL = 8  # length of the footer, magic
_DICTIONARY = ("request", "phase", "domain")


def segment_name(index: int) -> str:
    return f"segment-{index:06d}.parquet"


def _footer(data: bytes) -> bytes:
    (length,) = struct.unpack("<I", data[-_TAIL:-4])
    return data[-_TAIL - length :]


def _chunk_ranges(metadata: pq.FileMetaData) -> dict[str, tuple[int, int, int]]:
    """Column name -> (index, offset, bytes) of its one chunk, page headers and dictionary included."""
    group = metadata.row_group(0)
    ranges = {}
    for index in range(group.num_columns):
        chunk = group.column(index)
        offset = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
        ranges[chunk.path_in_schema.split(".")[0]] = (index, offset, chunk.total_compressed_size)
    return ranges


def write_segment(path: Path, layout: Layout, buffer: Batch, first_token: int, num_tokens: int) -> SegmentLine:
    """Write the first ``num_tokens`` rows of a buffer and publish the file; returns its manifest line."""
    table = layout.to_table(buffer, num_tokens)
    encoding = {}
    for array in layout.arrays.values():
        split = array.dtype.itemsize > 1 and array.dtype != np.float16
        for column in array.columns() if array.width is not None and split else ():
            encoding[f"{column}.list.element"] = "BYTE_STREAM_SPLIT"
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=num_tokens, compression="zstd", compression_level=3,
        use_dictionary=list(_DICTIONARY), column_encoding=encoding, write_statistics=list(TOKEN_COLUMNS),
        write_page_checksum=True,
    )  # fmt: skip
    data = sink.getvalue().to_pybytes()
    footer = _footer(data)
    metadata = pq.read_metadata(pa.BufferReader(data))
    ranges = sorted(_chunk_ranges(metadata).values())
    durable.publish(path, data)
    return SegmentLine(
        file=path.name, first_token=first_token, num_tokens=num_tokens, bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(), footer_bytes=len(footer), footer_crc32=f"{zlib.crc32(footer):08x}",
        column_crc32="".join(f"{zlib.crc32(memoryview(data)[at : at + size]):08x}" for _, at, size in ranges),
    )  # fmt: skip


class Segment:
    """A sealed file. Opening checks its length and footer; reading checks every column that is read."""

    def __init__(self, path: Path, line: SegmentLine, layout: Layout) -> None:
        self.path, self.line, self.layout = path, line, layout
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size != line.bytes:
                    raise TraceStoreError(path, expected=f"{line.bytes} bytes", got=f"{size}: truncated or foreign")
                file.seek(-line.footer_bytes, 2)
                footer = file.read()
        except FileNotFoundError:
            raise TraceStoreError(
                path, expected=f"the segment of tokens {line.first_token} to {line.stop_token - 1}", got="no such file"
            ) from None
        got = f"{zlib.crc32(footer):08x}"
        if got != line.footer_crc32:
            raise TraceStoreError(path, expected=f"footer checksum {line.footer_crc32}", got=f"{got}: a damaged footer")
        # A file of nothing but the footer parses, because offsets are only followed when columns are read.
        self._metadata = pq.read_metadata(pa.BufferReader(_MAGIC + footer))
        self._ranges = _chunk_ranges(self._metadata)
        expected = {column for array in layout.arrays.values() for column in array.columns()}
        if set(self._ranges) != expected or self._metadata.num_rows != line.num_tokens:
            raise TraceStoreError(
                path, expected=f"{len(expected)} columns x {line.num_tokens} tokens as header and manifest say",
                got=f"{len(self._ranges)} x {self._metadata.num_rows}: a foreign file",
            )  # fmt: skip

    def read(
        self,
        arrays: Sequence[StoredArray],
        layers: Sequence[int] | None = None,
        *,
        out: Batch | None = None,
        use_threads: bool = True,
    ) -> Batch:
        """Arrays [T, ...] of the whole segment, in ``out`` where given; per layer only ``layers``, in that order."""
        columns = [column for array in arrays for column in array.columns(layers)]
        try:
            self._check_chunks(columns)
            with pq.ParquetFile(self.path, metadata=self._metadata, page_checksum_verification=True) as parquet:
                table = parquet.read(columns=columns, use_threads=use_threads)
        except TraceStoreError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise TraceStoreError(self.path, expected="readable Parquet pages", got=f"{error}") from error
        batch = array_space(arrays, len(table), layers) if out is None else out
        for array in arrays:
            for position, name in enumerate(array.columns(layers)):
                target = batch[array.name] if array.num_layers is None else batch[array.name][:, position]
                target[...] = array.from_arrow(table[name])
        return batch

    def _check_chunks(self, columns: Sequence[str]) -> None:
        with self.path.open("rb") as file:
            for name in columns:
                index, offset, size = self._ranges[name]
                file.seek(offset)
                got = f"{zlib.crc32(file.read(size)):08x}"
                expected = self.line.column_crc32[8 * index : 8 * index + 8]
                if got != expected:
                    raise TraceStoreError(
                        self.path, expected=f"checksum {expected} of column {name}", got=f"{got}: damaged pages"
                    )
