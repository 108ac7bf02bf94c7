"""Manifest: the append-only commit record of a trace folder, one JSON object a line.

Every line carries its number, the checksum of the line before and a checksum of itself, so that a
flipped, missing or swapped line is noticed; a last line without its newline is a torn write that
was never committed. Does not know what stands in the files. Floor 1.

Lines: ``created`` (sha256 of header.json), ``columns`` (the extras), ``log`` (a write-ahead log was
opened), ``commit`` (so many bytes of it are durable), ``segment`` (a segment is sealed and replaces
its log).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from moelab.store import durable
from moelab.store.error import TraceStoreError

MANIFEST = "manifest.jsonl"
_PREFIX = b'{"checksum":"'
_HEX = 16
_BODY = len(_PREFIX) + _HEX


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CreatedLine(_Line):
    kind: Literal["created"] = "created"
    store_version: Literal[1] = 1
    header_sha256: str


class ColumnsLine(_Line):
    """Extra arrays: name -> (dtype, shape of one token)."""

    kind: Literal["columns"] = "columns"
    extras: dict[str, tuple[str, tuple[int, ...]]]


class LogLine(_Line):
    kind: Literal["log"] = "log"
    file: str
    first_token: int


class CommitLine(_Line):
    """``bytes`` of the open log were synced, holding the trace up to token ``stop_token``."""

    kind: Literal["commit"] = "commit"
    file: str
    bytes: int
    stop_token: int


class SegmentLine(_Line):
    """``column_crc32``: 8 hex digits for each column chunk, page headers included, in file order."""

    kind: Literal["segment"] = "segment"
    file: str
    first_token: int
    num_tokens: int
    bytes: int
    sha256: str
    footer_bytes: int
    footer_crc32: str
    column_crc32: str

    @property
    def stop_token(self) -> int:
        return self.first_token + self.num_tokens


ManifestLine = CreatedLine | ColumnsLine | LogLine | CommitLine | SegmentLine
_adapter: TypeAdapter[ManifestLine] = TypeAdapter(Annotated[ManifestLine, Field(discriminator="kind")])


@dataclass
class Manifest:
    """Lines in order, the checksum of the last one, and the bytes of good and torn lines."""

    lines: list[ManifestLine]
    last_checksum: str
    good_bytes: int
    torn_bytes: int


def _checksum(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:_HEX]


def encode(line: ManifestLine, sequence: int, previous: str) -> tuple[bytes, str]:
    """One line with its newline, and its checksum (sha256 of everything after the checksum itself)."""
    content: dict[str, Any] = {"previous": previous, "sequence": sequence, **line.model_dump(mode="json")}
    body = b'",' + json.dumps(content, separators=(",", ":")).encode()[1:]
    checksum = _checksum(body)
    return _PREFIX + checksum.encode() + body + b"\n", checksum


def read_manifest(path: Path) -> Manifest:
    """All committed lines; raises ``TraceStoreError`` for a line that is damaged or out of order."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise TraceStoreError(path, expected="the commit record of a trace folder", got="no such file") from None
    manifest = Manifest([], "", data.rfind(b"\n") + 1, 0)
    manifest.torn_bytes = len(data) - manifest.good_bytes
    for sequence, raw in enumerate(data[: manifest.good_bytes].split(b"\n")[:-1]):
        checksum, body = raw[len(_PREFIX) : _BODY].decode("ascii", "replace"), raw[_BODY:]
        if not raw.startswith(_PREFIX) or checksum != _checksum(body):
            raise TraceStoreError(
                path, expected=f"checksum {_checksum(body)} in line {sequence + 1}", got=f"{checksum!r}: a damaged line"
            )
        content = json.loads(raw)
        del content["checksum"]
        got = (content.pop("sequence"), content.pop("previous"))
        if got != (sequence, manifest.last_checksum):
            raise TraceStoreError(
                path, expected=f"line {sequence} after {manifest.last_checksum or 'nothing'}",
                got=f"line {got[0]} after {got[1]}: lines are missing or swapped",
            )  # fmt: skip
        try:
            manifest.lines.append(_adapter.validate_python(content))
        except ValidationError:
            raise TraceStoreError(
                path, expected="a line that store version 1 knows",
                got=f"kind {content.get('kind')!r} in line {sequence + 1}", fix="upgrade moelab: a newer one wrote it",
            ) from None  # fmt: skip
        manifest.last_checksum = checksum
    return manifest


class ManifestWriter:
    """Appends lines; ``sync=False`` for lines whose loss is harmless."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._sequence = len(manifest.lines)
        self._previous = manifest.last_checksum
        self._file = durable.open_append(path)

    def append(self, line: ManifestLine, *, sync: bool = True) -> None:
        data, self._previous = encode(line, self._sequence, self._previous)
        self._sequence += 1
        durable.append(self._file, data)
        if sync:
            durable.sync(self._file)

    def close(self) -> None:
        self._file.close()
