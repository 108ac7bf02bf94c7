"""GGUF headers: metadata and tensor list of a file, without reading a weight.  Floor 1.

Layout after ggml's published specification of versions 2 and 3 (little-endian): magic, version, counts, key-value
pairs, then name, dimensions, type and offset of every tensor. A model in several files is read by its first:
`NAME-00001-of-00013.gguf`. Arrays longer than 1,024 entries (vocabularies) are skipped and kept as their length.

It does not know what the tensors mean (`moelab.sizing.gguf_model`) and never maps the data.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from moelab.domain.weight_formats import WEIGHT_FORMATS

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_ARRAY = 1024
_LONGEST_STRING = 2**27  # a chat template is thousands; a length beyond this is a damaged file
_SPLIT = re.compile(r"(.*)-00001-of-(\d{5})\.gguf$")

# ggml's type number -> weight format of the house, or (values, bytes) of a block.
TYPES: dict[int, str | tuple[int, int]] = {
    0: "float32", 1: "float16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "bf16", 39: "mxfp4",
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """One tensor; `shape` as ggml writes it: the reduction axis first."""

    name: str
    shape: tuple[int, ...]
    type_number: int

    @property
    def params(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def num_bytes(self) -> int:
        """Exact bytes. ValueError for a type that is not known here."""
        kind = TYPES.get(self.type_number)
        if kind is None:
            raise ValueError(
                f"{self.name}: expected a ggml type among {sorted(TYPES)}, got {self.type_number}; "
                "a fork's own format has no size here"
            )
        columns = self.shape[0] if self.shape else 1
        rows = self.params // columns if columns else 0
        if isinstance(kind, str):
            return WEIGHT_FORMATS[kind](rows, columns)
        return self.params * kind[1] // kind[0]


@dataclass(frozen=True)
class GgufHeader:
    """Metadata of the first file and the tensors of all."""

    path: Path
    num_files: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """`general.architecture`; ValueError where the file has none."""
        return str(self.value("general.architecture"))

    def value(self, key: str) -> Any:
        """A metadata value; ValueError names the key that is missing."""
        if key not in self.metadata:
            raise ValueError(f"{self.path.name}: expected the key {key}, got none; convert the model again")
        return self.metadata[key]

    def own(self, key: str, default: Any = None) -> Any:
        """`{architecture}.{key}`, or `default`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def matches(path: str | Path) -> bool:
    """Is this a GGUF file (by its first bytes)."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def read_header(path: str | Path) -> GgufHeader:
    """The header of a file, or of all files of a split model by its first.

    ValueError names the file that is truncated, foreign or missing; FileNotFoundError the one asked for.
    """
    path = Path(path)
    metadata, tensors = _read_one(path)
    num_files = int(metadata.get("split.count", 1) or 1)
    if num_files > 1:
        split = _SPLIT.match(path.name)
        if split is None or int(split[2]) != num_files:
            raise ValueError(f"{path.name}: expected the first of {num_files} files, NAME-00001-of-{num_files:05}.gguf")
        for number in range(2, num_files + 1):
            part = path.with_name(f"{split[1]}-{number:05}-of-{num_files:05}.gguf")
            if not part.is_file():
                raise ValueError(f"{part.name}: expected beside {path.name}, got no such file; fetch every part")
            tensors += _read_one(part)[1]
    stated = metadata.get("split.tensors.count")
    if stated is not None and stated != len(tensors):
        raise ValueError(f"{path.name}: expected {stated} tensors (split.tensors.count), got {len(tensors)}")
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        raise ValueError(f"{path.name}: a tensor is listed twice; the files are not of one model")
    return GgufHeader(path, num_files, metadata, tuple(tensors))


class _Stream:
    """Reads of an open file that fail with the file's name."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self.file, self.name, self.size = file, name, size

    def take(self, num_bytes: int) -> bytes:
        data = self.file.read(num_bytes)
        if len(data) != num_bytes:
            raise ValueError(f"{self.name}: the header ends after {self.file.tell()} bytes; fetch the file again")
        return data

    def scalar(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def string(self) -> str:
        length = self.scalar("Q")
        if length > min(_LONGEST_STRING, self.size):
            raise ValueError(f"{self.name}: a string of {length} bytes; the file is damaged, fetch it again")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"{self.name}: value type {kind} is unknown; the file is damaged or newer than version 3")
        inner, length = self.scalar("I"), self.scalar("Q")
        if length <= _LONGEST_ARRAY:
            return [self.value(inner) for _ in range(length)]
        if inner in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[inner])
            if length * width > self.size:
                raise ValueError(f"{self.name}: an array of {length} entries; the file is damaged, fetch it again")
            self.file.seek(length * width, 1)
        else:
            for _ in range(length):
                self.value(inner)
        return {"length": length}


def _read_one(path: Path) -> tuple[dict[str, Any], list[GgufTensor]]:
    with path.open("rb") as file:
        stream = _Stream(file, path.name, path.stat().st_size)
        magic = file.read(4)
        if magic != b"GGUF":
            raise ValueError(f"{path.name}: expected a GGUF file, got one that begins with {magic!r}")
        version = stream.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"{path.name}: expected GGUF version 2 or 3 (little-endian), got {version}; convert it")
        num_tensors, num_keys = stream.scalar("Q"), stream.scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = stream.string()
            metadata[key] = stream.value(stream.scalar("I"))
        tensors = []
        for _ in range(num_tensors):
            name, num_dims = stream.string(), stream.scalar("I")
            if num_dims > 4:
                raise ValueError(f"{path.name}: {name} has {num_dims} dimensions, expected at most 4; fetch it again")
            shape = tuple(stream.scalar("Q") for _ in range(num_dims))
            kind, _offset = stream.scalar("I"), stream.scalar("Q")
            tensors.append(GgufTensor(name, shape, kind))
    return metadata, tensors
