"""Checkpoint: a directory of safetensors files, seen as one table of named tensors.

Reads `config.json`, `model.safetensors` or the shards of `model.safetensors.index.json`, and checks
every header before a single weight is read: a file that is cut, missing or foreign is refused with
its name, what was expected, what was found and what to do. Pickle files (`.bin`, `.pt`, `.pth`) are
refused by name and code that lies in the directory is never imported.
It does not know models: which tensors there must be is the model file's to say. Floor 2.

Format: https://github.com/huggingface/safetensors (8 bytes of header length, JSON, then the data).
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moelab.engine.direct_reads import DirectReads
from moelab.engine.mapped_file import MappedFile

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
KEPT_BYTES = 8 << 20
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "U8": torch.uint8,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded: names the file, expected, got and the fix."""

    def __init__(self, where: object, expected: object, got: object, fix: str) -> None:
        super().__init__(f"{where}: expected {expected}, got {got}; {fix}")


class TensorEntry(NamedTuple):  # and no dataclass: a large model has 200,000
    """Where a tensor lies. `dtype` is the name that safetensors uses (BF16, F32, I32 ...), `offset` counts from the
    start of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    offset: int


class Checkpoint:
    """The tensors of a model directory by name. Opens files lazily, memory-mapped, read-only."""

    def __init__(self, directory: Path, config: dict[str, Any], entries: dict[str, TensorEntry]) -> None:
        self.directory = directory
        self.config = config
        self.entries = entries
        self._open_files: dict[Path, MappedFile] = {}
        self._opening = threading.Lock()
        self.reads = DirectReads(sum(entry.num_bytes for entry in entries.values()))

    @classmethod
    def open(cls, directory: str | Path) -> Checkpoint:
        """Read config and headers. CheckpointError when anything is missing, cut or foreign."""
        directory = Path(directory)
        if not directory.is_dir():
            raise CheckpointError(directory, "a model directory", "no such directory", "give the path of the model")
        config = read_json(directory / "config.json")
        return cls(directory, config, _read_entries(directory))

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU as stored: a view of the mapped file, to be copied if it is kept and never written."""
        entry = self.entries[name]
        dtype = DTYPES.get(entry.dtype)
        if dtype is None or entry.num_bytes != math.prod(entry.shape) * dtype.itemsize or entry.offset < 8:
            expected = ", ".join(DTYPES) if dtype is None else f"{math.prod(entry.shape) * dtype.itemsize} bytes"
            got = entry.dtype if dtype is None else f"{entry.num_bytes} bytes"
            raise CheckpointError(
                entry.file, f"{name} {list(entry.shape)} in {expected}", got, "convert the checkpoint"
            )
        return self._mapped(name).tensor(dtype, entry.shape, entry.offset)

    def fetch(self, view: torch.Tensor, stream: int = 0) -> torch.Tensor:
        """The numbers of a view (or a part of one) that `read` gave, read from the file; see `MappedFile.fetch`."""
        file = self._file_of(view)
        return view if file is None else file.fetch(view, stream)

    def ahead(self, view: torch.Tensor, stream: int = 0) -> None:
        """This thread fetches the same soon: begin to read it; see `MappedFile.ahead`."""
        file = self._file_of(view)
        if file is not None:
            file.ahead(view, stream)

    def keep(self, names: Iterable[str]) -> None:
        """Read these small tensors in one go and keep them until `close`, so that `fetch` finds them; KEPT_BYTES."""
        views: dict[MappedFile, list[torch.Tensor]] = {}
        left = KEPT_BYTES
        for name in names:
            left -= self.entries[name].num_bytes
            if left < 0:
                break
            views.setdefault(self._mapped(name), []).append(self.read(name))
        for file, of_file in views.items():
            file.keep(of_file)
        for file in views:
            file.arrive()

    def _file_of(self, view: torch.Tensor) -> MappedFile | None:
        address = view.data_ptr()
        with self._opening:  # another worker may open one meanwhile
            files = tuple(self._open_files.values())
        return next((file for file in files if file.base <= address < file.base + file.num_bytes), None)

    def _mapped(self, name: str) -> MappedFile:
        path = self.entries[name].file
        with self._opening:
            if path not in self._open_files:
                self._open_files[path] = MappedFile(path, self.reads)
            return self._open_files[path]

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise one CheckpointError for the first tensor that is missing or of another shape."""
        missing = [name for name in expected if name not in self.entries]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(
                self.directory / (INDEX_FILE if (self.directory / INDEX_FILE).exists() else SINGLE_FILE),
                f"tensor {missing[0]} {list(expected[missing[0]])}",
                f"no such tensor{more}",
                "complete the download, or load the config.json that this checkpoint was written with",
            )
        for name, shape in expected.items():
            entry = self.entries[name]
            if entry.shape != tuple(shape):
                raise CheckpointError(
                    entry.file,
                    f"{name} {list(shape)} from config.json",
                    f"{list(entry.shape)}",
                    "load the config.json that this checkpoint was written with",
                )

    def close(self) -> None:
        """Drop the memory maps (those that no view holds)."""
        self.reads.close()
        for file in self._open_files.values():
            file.close()
        self._open_files.clear()

    def fingerprint(self, names_of_content: Iterable[str] = ()) -> str:
        """Short sha256 of config, of every name, dtype and shape, and of the content of a few tensors."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        rows = (f"{name} {entry.dtype} {entry.shape}\n" for name, entry in sorted(self.entries.items()))
        digest.update("".join(rows).encode())
        for name in names_of_content:
            digest.update(self.fetch(self.read(name)).contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the checkpoint. CheckpointError when absent or broken."""
    if not path.is_file():
        raise CheckpointError(path, "a JSON file", "no such file", "give the directory that holds the whole model")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(path, "JSON", f"{error}", "download the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(path, "a JSON object", type(value).__name__, "download the file again")
    return value


def _read_entries(directory: Path) -> dict[str, TensorEntry]:
    index_path = directory / INDEX_FILE
    if index_path.exists():
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(index_path, "a weight_map", "none", "download the file again")
        entries: dict[str, TensorEntry] = {}
        paths = {file_name: directory / file_name for file_name in sorted(set(weight_map.values()))}
        for file_name, path in paths.items():
            if Path(file_name).name != file_name or not file_name.endswith(".safetensors"):
                raise CheckpointError(
                    index_path, "file names that end in .safetensors", repr(file_name), "convert it to safetensors"
                )
            entries |= read_header(path)
        for name, file_name in weight_map.items():
            if name not in entries or entries[name].file is not paths[file_name]:
                raise CheckpointError(
                    paths[file_name], f"tensor {name}, as {INDEX_FILE} says", "no such tensor", "download it again"
                )
        return {name: entries[name] for name in weight_map}
    if (directory / SINGLE_FILE).exists():
        return read_header(directory / SINGLE_FILE)
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(
            directory / pickles[0],
            "safetensors",
            "a pickle file, which can run code when it is read",
            "convert it to safetensors (transformers: save_pretrained) on a machine that you trust with it",
        )
    raise CheckpointError(
        directory, f"{SINGLE_FILE} or {INDEX_FILE}", "neither", "give the directory that holds the whole model"
    )


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Entries of one safetensors file, checked against the size of the file."""
    if not path.is_file():
        raise CheckpointError(path, "a shard", "no such file", "complete the download")
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
            raise CheckpointError(
                path, "a safetensors header", f"{file_bytes} bytes that begin otherwise", "download it again"
            )
        try:
            header = json.loads(file.read(header_bytes))
            rows = {name: row for name, row in header.items() if name != "__metadata__"}
            entries = {
                name: TensorEntry(
                    path,
                    row["dtype"],
                    tuple(row["shape"]),
                    row["data_offsets"][1] - row["data_offsets"][0],
                    8 + header_bytes + row["data_offsets"][0],
                )
                for name, row in rows.items()
            }
            end = max((row["data_offsets"][1] for row in rows.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(path, "a safetensors header", f"{error}", "download it again") from error
    if 8 + header_bytes + end != file_bytes:
        raise CheckpointError(
            path, f"{8 + header_bytes + end} bytes, as its header says", f"{file_bytes} bytes", "download it again"
        )
    return entries
