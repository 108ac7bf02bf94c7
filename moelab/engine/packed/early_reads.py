"""EarlyReads: chunks of packed files on their way past the page cache, straight into the memory where they stay.

A chunk lies in its file as it will lie in memory, so that nothing is copied: the disk writes into the arena while its
worker checks the chunk before. Where that cannot be (an odd place, a chunk that the page cache holds, a slow disk, a
file system or platform without such reads), nothing is begun, and the chunk is read when its turn comes. It does not
know checksums. Floor 2.
"""

from __future__ import annotations

import mmap
import os
import threading
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from moelab.engine.direct_reads import ALIGNMENT, Buffer, DirectReads, is_cached, open_direct


@dataclass(frozen=True)
class Opened:
    """``mapped`` is there to ask what the page cache holds; a read to find out would bring more than it asks."""

    descriptor: int
    mapped: np.ndarray


class EarlyReads:
    """Of one folder. A chunk is started and finished by one thread; `reads` do it."""

    def __init__(self, reads: DirectReads | None = None) -> None:
        self._reads = DirectReads() if reads is None else reads
        self._files: dict[str, Opened | None] = {}
        self._opening = threading.Lock()
        self._on_their_way: dict[tuple[str, int], Buffer] = {}

    def start(self, file: FileIO, into: np.ndarray, offset: int) -> None:
        """Begin to fill ``into`` from ``offset``, where that pays. Never raises."""
        if offset % ALIGNMENT or into.ctypes.data % ALIGNMENT or len(into) % ALIGNMENT:
            return
        opened = self._opened(file)
        if opened is None or not self._reads.worth_while():
            return
        if is_cached(opened.descriptor, opened.mapped.ctypes.data + offset, offset, len(into)):
            return
        buffer = Buffer(into, first=offset, stop=offset + len(into))
        if self._reads.start(opened.descriptor, buffer, len(into), offset):
            self._on_their_way[str(file.name), offset] = buffer

    def finish(self, file: FileIO, offset: int) -> int:
        """Wait for what was begun there; how many bytes are there, 0 where nothing was begun or the read failed."""
        buffer = self._on_their_way.pop((str(file.name), offset), None)
        if buffer is None:
            return 0
        self._reads.arrive(buffer)
        return buffer.stop - buffer.first

    def close(self) -> None:
        """Wait for everything that is on its way. Twice is harmless."""
        self._reads.close()
        for opened in self._files.values():
            if opened is not None:
                os.close(opened.descriptor)
        self._files.clear()

    def _opened(self, file: FileIO) -> Opened | None:
        with self._opening:
            name = str(file.name)
            if name not in self._files:
                descriptor = open_direct(Path(name))
                mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
                self._files[name] = None if descriptor is None else Opened(descriptor, mapped)
            return self._files[name]
