"""PackedFolder: packed weights read straight into memory by all workers, every byte checked on the way.

Reads, not maps: the kernels want huge pages, which a mapped file does not have on ordinary file systems. It does not
know models. Floor 2.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from io import FileIO
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest

from moelab.domain.model import ModelSpec
from moelab.engine.checkpoint import Checkpoint
from moelab.engine.packed.early_reads import EarlyReads
from moelab.engine.packed.manifest import (
    CHUNK_BYTES,
    LINEARS,
    MANIFEST,
    Manifest,
    PackedError,
    Section,
    next_offset,
    read_manifest,
)
from moelab.engine.packed.source import check_content, compare_source
from moelab.engine.routed_arenas import Homes
from moelab.kernels.arena import ExpertArena, stride_of
from moelab.kernels.layout import LAYOUT_VERSION, ExpertLayout
from moelab.kernels.node_placement import NodePlacement
from moelab.kernels.pool import Pool
from moelab.kernels.tasks import Tasks


class PackedFolder:
    """A folder whose manifest is whole and whose files have their sizes; contents are checked as they are read."""

    def __init__(self, path: Path, manifest: Manifest, checkpoint: Checkpoint) -> None:
        self.path, self.manifest, self.checkpoint = path, manifest, checkpoint
        self._files: dict[str, FileIO] = {}
        self._opening = threading.Lock()
        self._early = EarlyReads(checkpoint.reads)

    @classmethod
    def open(cls, path: str | Path, checkpoint: Checkpoint) -> PackedFolder:
        """PackedError for a folder that is damaged or of another version."""
        path = Path(path)
        manifest = read_manifest(path)
        if manifest.layout_version != LAYOUT_VERSION:
            raise PackedError(path / MANIFEST, f"layout_version {LAYOUT_VERSION}", manifest.layout_version)
        ends: dict[str, int] = {}
        for section in manifest.sections:
            chunks = -(-section.num_bytes // CHUNK_BYTES)
            if section.offset != next_offset(ends.get(section.file, 0)) or len(section.xxh3_of_chunk) != chunks:
                raise PackedError(path / MANIFEST, f"{chunks} checksums of {section.name}, no gap", section.offset)
            ends[section.file] = section.offset + section.num_bytes
        for name, num_bytes in ends.items():
            if Path(name).name != name or not (path / name).is_file():
                raise PackedError(path / name, f"a file of {num_bytes} bytes", "no such file")
            found = (path / name).stat().st_size
            if found != num_bytes:
                raise PackedError(path / name, f"{num_bytes} bytes", f"{found} bytes")
        return cls(path, manifest, checkpoint)

    @property
    def expert_bytes(self) -> int:
        return sum(section.num_bytes for section in self.manifest.sections if section.file != LINEARS)

    def compare_source(self) -> list[Path]:
        """PackedError where the checkpoint is not the one that was packed, as far as stamps tell; files for
        `check_content`."""
        return compare_source(self.manifest, self.checkpoint)

    def check_content(self, paths: list[Path], pool: Pool) -> None:
        """PackedError where one of these files of the checkpoint has changed; every byte of it is read."""
        check_content(self.manifest, paths, pool)

    def fill_homes(self, homes: Homes, layout: ExpertLayout, spec: ModelSpec, tasks: Tasks) -> None:
        """The experts of every MoE layer, to be read into their homes by `tasks`."""
        manifest = self.manifest
        sizes = (manifest.num_experts, manifest.hidden_size, manifest.intermediate_size)
        if sizes != (spec.n_routed_experts, layout.hidden_size, layout.intermediate_size):
            raise PackedError(
                self.path / MANIFEST,
                f"experts {spec.n_routed_experts} x {layout.shapes[0]}",
                f"{sizes}",
                "load its own model",
            )
        stride = stride_of(layout)
        for number, home in enumerate(homes):
            section = manifest.section(f"experts.{number}", self.path)
            if section.num_bytes != (expected := stride * spec.n_routed_experts):
                raise PackedError(self.path / section.file, f"{expected} bytes", f"{section.num_bytes} bytes")
            if isinstance(home, ExpertArena):
                self.add_tasks(section, home.memory, tasks)
                continue
            for chunk in range(len(section.xxh3_of_chunk)):
                num_bytes = min(CHUNK_BYTES, section.num_bytes - chunk * CHUNK_BYTES)
                tasks.add(num_bytes, partial(self._read_apart, section, chunk, num_bytes, home, stride))

    def _read_apart(self, section: Section, chunk: int, num_bytes: int, home: NodePlacement, stride: int) -> None:
        """A chunk, checked, and then what of it belongs to each expert into the copies of that expert."""
        part, begin = np.empty(num_bytes, np.uint8), chunk * CHUNK_BYTES
        self._read(section, chunk, part)
        for expert in range(begin // stride, -(-(begin + num_bytes) // stride)):
            first = max(begin, expert * stride)
            stop = min(begin + num_bytes, expert * stride + home.layout.expert_bytes)
            if first < stop:
                home.write(expert, first - expert * stride, part[first - begin : stop - begin])

    def tiles(self, name: str) -> SavedTiles:
        """A packed linear layer by its name, to be read when it is asked for."""
        return SavedTiles(self, self.manifest.section(name, self.path))

    def add_tasks(self, section: Section, memory: np.ndarray, tasks: Tasks) -> None:
        """Tasks that read a section into its memory (uint8 [num_bytes]) in chunks, and check them."""
        for number in range(len(section.xxh3_of_chunk)):
            part = memory[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            tasks.add(
                len(part), partial(self._read, section, number, part), partial(self._ahead, section, number, part)
            )

    def _ahead(self, section: Section, number: int, part: np.ndarray) -> None:
        self._early.start(self._file(section.file), part, section.offset + number * CHUNK_BYTES)

    def _read(self, section: Section, number: int, part: np.ndarray) -> None:
        path, begin = self.path / section.file, section.offset + number * CHUNK_BYTES
        file = self._file(section.file)
        got = self._early.finish(file, begin)
        if got != len(part):  # not begun, or failed: an error is raised by name here
            got = read_at(file, part, begin)
        what = f"of bytes {begin} to {begin + len(part)} ({section.name})"
        if got != len(part):
            raise PackedError(path, f"{len(part)} {what}", f"{got}")
        if (found := xxh3_64_intdigest(part.data)) != (expected := section.xxh3_of_chunk[number]):
            raise PackedError(path, f"XXH3 {expected:016x} {what}", f"{found:016x}")
        if number + 1 == len(section.xxh3_of_chunk):
            gap = np.zeros(next_offset(begin + len(part)) - begin - len(part), np.uint8)
            read_at(file, gap, begin + len(part))  # nothing behind the last section
            if gap.any():
                raise PackedError(path, f"zeros behind {section.name}", "other bytes")

    def _file(self, name: str) -> FileIO:
        """One file object for all workers: the system sees one reader that goes on, and reads ahead of it."""
        with self._opening:
            if name not in self._files:
                self._files[name] = FileIO(self.path / name)
            return self._files[name]

    def close(self) -> None:
        """No more reading. Twice is harmless."""
        self._early.close()
        for file in self._files.values():
            file.close()


class SavedTiles:
    """Tiles of one linear layer in a packed folder (`kernels.linear.Tiles`)."""

    def __init__(self, folder: PackedFolder, section: Section) -> None:
        self.folder, self.section = folder, section

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.section.shape)

    def read_tiles(self, memory: np.ndarray, tasks: Tasks) -> None:
        """Tasks that read them. PackedError where size or, then, checksum differ."""
        if memory.shape != (self.section.num_bytes,):
            raise PackedError(
                self.folder.path / self.section.file, f"{len(memory)} bytes of {self.section.name}",
                f"{self.section.num_bytes} bytes",
            )  # fmt: skip
        self.folder.add_tasks(self.section, memory, tasks)


def read_at(file: FileIO, memory: np.ndarray, offset: int) -> int:
    """Fill `memory` from the file; how many bytes there were. Several threads may read one file at a time."""
    view, got = memory.data, 0
    while got < len(view):
        if hasattr(os, "preadv"):
            count = os.preadv(file.fileno(), [view[got:]], offset + got)
        else:
            with open(file.name, "rb", buffering=0) as own:
                own.seek(offset + got)
                count = own.readinto(view[got:])
        if not count:
            break
        got += count
    return got
