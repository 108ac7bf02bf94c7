"""Write-ahead log: the batches since the last segment, each one a frame with two checksums.

Knows frames. Does not know segments or the manifest. Floor 1.

A batch survives a kill of the process from the moment ``append`` returns (one unbuffered write), and
a power cut from the moment ``sync`` returns. A frame that ends before its announced length is a torn
tail: dropped and reported. Anything else that is wrong is damage: the frame header has a checksum of
its own, so a flipped length is never taken for a torn tail.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from moelab.store import durable
from moelab.store.columns import Batch, Layout
from moelab.store.error import RESTORE, TraceStoreError

_FILE = struct.Struct("<8sI32sQI")  # magic, version, sha256 of header.json, first token, crc32
_FILE_MAGIC = b"MOELABWL"
_VERSION = 1
_FRAME = struct.Struct("<4sIQQIII")  # magic, sequence, first token, payload bytes, tokens, payload crc32, crc32
_FRAME_MAGIC = b"WALB"
FILE_HEADER_BYTES = _FILE.size


def log_name(index: int) -> str:
    return f"wal-{index:06d}.log"


@dataclass
class LogContent:
    """Whole frames of a log as batches in order; ``good_bytes`` end with the last one."""

    batches: list[Batch]
    num_tokens: int
    good_bytes: int
    torn_bytes: int


def create_log(path: Path, header_sha256: str, first_token: int) -> None:
    """Publish a log without frames."""
    head = _FILE.pack(_FILE_MAGIC, _VERSION, bytes.fromhex(header_sha256), first_token, 0)[:-4]
    durable.publish(path, head + struct.pack("<I", zlib.crc32(head)))


def read_log(path: Path, layout: Layout, header_sha256: str, first_token: int, committed_bytes: int = 0) -> LogContent:
    """All whole frames; raises ``TraceStoreError`` for damage or where committed bytes are missing."""
    try:
        data = memoryview(path.read_bytes())
    except FileNotFoundError:
        raise TraceStoreError(
            path, expected=f"the log of tokens from {first_token} on", got="no such file",
            fix=f"it was removed, or manifest.jsonl lost the line that sealed it: {RESTORE}",
        ) from None  # fmt: skip
    expected = _FILE.pack(_FILE_MAGIC, _VERSION, bytes.fromhex(header_sha256), first_token, 0)[:-4]
    if data[: _FILE.size] != expected + struct.pack("<I", zlib.crc32(expected)):
        raise TraceStoreError(path, expected="the head of this folder's log", got="a damaged or foreign file")
    content = LogContent([], 0, _FILE.size, 0)
    while content.good_bytes < len(data):
        frame = _read_frame(path, data, content, layout, first_token)
        if frame is None:
            break
        content.batches.append(frame)
    content.torn_bytes = len(data) - content.good_bytes
    if content.good_bytes < committed_bytes:
        raise TraceStoreError(
            path,
            expected=f"at least {committed_bytes} committed bytes",
            got=f"{content.good_bytes} whole ones: truncated",
        )
    return content


def _read_frame(path: Path, data: memoryview, content: LogContent, layout: Layout, first_token: int) -> Batch | None:
    """The next batch, or ``None`` where it is torn; moves ``content`` on."""
    start, sequence = content.good_bytes, len(content.batches)
    where = f"frame {sequence} at byte {start}"
    if len(data) - start < _FRAME.size:
        return None
    head = data[start : start + _FRAME.size]
    magic, got_sequence, got_first, payload_bytes, num_tokens, payload_crc, head_crc = _FRAME.unpack(head)
    if magic != _FRAME_MAGIC or zlib.crc32(head[:-4]) != head_crc:
        raise TraceStoreError(path, expected=f"the checksum of {where}", got="a damaged frame header")
    at = (got_sequence, got_first, payload_bytes)
    wanted = (sequence, first_token + content.num_tokens, num_tokens * layout.bytes_per_token)
    if at != wanted:
        raise TraceStoreError(path, expected=f"(sequence, first token, bytes) {wanted} in {where}", got=f"{at}")
    payload = data[start + _FRAME.size : start + _FRAME.size + payload_bytes]
    if len(payload) < payload_bytes:
        return None
    if zlib.crc32(payload) != payload_crc:
        raise TraceStoreError(path, expected=f"the checksum of the payload of {where}", got="damaged bytes")
    content.good_bytes += _FRAME.size + payload_bytes
    content.num_tokens += num_tokens
    return layout.from_bytes(payload, num_tokens)


class WriteAheadLog:
    """Appends frames to a log that was created or recovered."""

    def __init__(self, path: Path, content: LogContent, next_token: int) -> None:
        self.path = path
        self.num_bytes = content.good_bytes
        self.next_token = next_token
        self._sequence = len(content.batches)
        self._file = durable.open_append(path)

    def append(self, payload: bytes, num_tokens: int) -> None:
        """One frame, written by one call."""
        head = _FRAME.pack(
            _FRAME_MAGIC, self._sequence, self.next_token, len(payload), num_tokens, zlib.crc32(payload), 0
        )[:-4]
        frame = b"".join((head, struct.pack("<I", zlib.crc32(head)), payload))
        durable.append(self._file, frame)
        self._sequence += 1
        self.num_bytes += len(frame)
        self.next_token += num_tokens

    def sync(self) -> None:
        durable.sync(self._file)

    def close(self) -> None:
        self._file.close()
