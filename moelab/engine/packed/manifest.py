"""Manifest of a packed folder: which bytes lie where, their checksums, and the stamp of the checkpoint they came from.

It does not know tensors or memory. Floor 2.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moelab.kernels.job import WeightFormat

MANIFEST = "manifest.json"
LINEARS = "linears.bin"
FORMAT = "moelab packed weights"
VERSION = 2  # 1: sections one behind the other, CRC-32
CHUNK_BYTES = 2 << 20  # of one checksum: what a worker reads and checks at once
SECTION_ALIGNMENT = 4096  # of offsets: reads past the page cache begin there
AGAIN = "remove the folder and run `moelab pack` again"


class PackedError(ValueError):
    """A packed folder that cannot be used: names the file, expected, got and the fix."""

    def __init__(self, where: object, expected: object, got: object, fix: str = AGAIN) -> None:
        super().__init__(f"{where}: expected {expected}, got {got}; {fix}")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Section(_Record):
    """Packed weights of one name; `shape` is [E, stride in bytes] of experts, [R, C] or [M, R, C] of a matrix."""

    name: str
    file: str
    offset: int = Field(ge=0)
    num_bytes: int = Field(ge=1)
    shape: list[int]
    # 64 bits; a core checks 33 GB/s so, and 4 by CRC-32 (docs/log.md, 2026-11-26, loading what was packed before).
    xxh3_of_chunk: list[int]


def next_offset(num_bytes: int) -> int:
    """Where a section begins behind so many bytes of a file."""
    return -(-num_bytes // SECTION_ALIGNMENT) * SECTION_ALIGNMENT


class SourceFile(_Record):
    """A safetensors file as it was when it was packed."""

    name: str
    num_bytes: int
    mtime_ns: int
    header_sha256: str
    samples_sha256: str  # of 64 places spread over the file
    crc32_of_chunk: list[int]


class Manifest(_Record):
    """`layout_version` is that of the tiles; sizes are those of the experts."""

    format: str
    version: int
    layout_version: int
    weight_format: WeightFormat
    hidden_size: int
    intermediate_size: int
    num_experts: int
    dense_weights: str | None
    config_sha256: str
    source: list[SourceFile]
    sections: list[Section]

    def to_bytes(self) -> bytes:
        """JSON whose last line is the CRC-32 of everything before it."""
        body = self.model_dump_json(indent=1).encode() + b"\n"
        return body + f"{zlib.crc32(body):08x}\n".encode()

    def section(self, name: str, folder: Path) -> Section:
        for section in self.sections:
            if section.name == name:
                return section
        raise PackedError(folder / MANIFEST, f"a section {name}", "none", AGAIN)


def read_manifest(folder: Path) -> Manifest:
    """PackedError for anything but a whole manifest of this version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise PackedError(path, "the manifest of a packed folder", "no such file", "make one with `moelab pack`")
    data = path.read_bytes()
    body, _, last = data.removesuffix(b"\n").rpartition(b"\n")
    body += b"\n"
    if not data.endswith(b"\n") or last != f"{zlib.crc32(body):08x}".encode():
        raise PackedError(path, f"checksum {zlib.crc32(body):08x} in its last line", repr(last[:40].decode("latin1")))
    try:
        plain = json.loads(body)
        for field, expected in (("format", FORMAT), ("version", VERSION)):
            if plain.get(field) != expected:
                raise PackedError(path, f"{field} {expected!r}", repr(plain.get(field)))
        return Manifest.model_validate_json(body)
    except (ValidationError, json.JSONDecodeError, AttributeError) as error:
        raise PackedError(path, "a manifest", str(error).splitlines()[0]) from error
