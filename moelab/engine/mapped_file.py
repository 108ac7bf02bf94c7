"""MappedFile: a file whose tensors are views of its mapping, to be sliced for nothing and fetched strip by strip.

A view costs no memory and reads nothing until it is touched. `fetch` reads what a view covers into a buffer of the
thread: past the page cache where that pays (`direct_reads`), else by plain reads in the order of the file; page faults
of a mapping and advice to read ahead were slower (docs/log.md, 2026-11-24, loading). It does not know names or formats.
Floor 2.
"""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path

import numpy as np
import torch

from moelab.engine.direct_reads import ALIGNMENT, Buffer, DirectReads, is_cached, open_direct

# Private and writable, so that torch takes the memory; nobody writes, and nothing is reserved for it.
_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python names from 3.13 on
STREAMS = 3  # of reads in one file that each run on: the words of a matrix, its scales, and small tensors
SMALL_STREAM = 2
FURTHER_BYTES = ALIGNMENT  # read beyond a part: the small tensors behind a large one come along


class MappedFile:
    """The bytes of one file; views keep the mapping alive after it is gone. `reads` are of all files together."""

    def __init__(self, path: Path, reads: DirectReads | None = None) -> None:
        self.path = path
        with path.open("rb") as file:
            if hasattr(mmap, "MAP_PRIVATE"):
                flags = mmap.MAP_PRIVATE | (_NO_RESERVE if os.uname().sysname == "Linux" else 0)
                self._mapping = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            else:
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.base = torch.frombuffer(self._mapping, dtype=torch.uint8, count=1).data_ptr()
        self.num_bytes = len(self._mapping)
        # A stream of its own for each keeps the system's own reading ahead undisturbed.
        self._streams = [path.open("rb", buffering=0) for _ in range(STREAMS)]
        self._direct = self._opened_direct = open_direct(path)
        self._reads = DirectReads() if reads is None else reads
        self._kept: list[Buffer] = []
        self._coming: list[Buffer] = []

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> torch.Tensor:
        """A view; a copy where the numbers do not lie at multiples of their size."""
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        if offset % dtype.itemsize:
            raw = torch.frombuffer(self._mapping, dtype=torch.uint8, count=count * dtype.itemsize, offset=offset)
            return raw.clone().view(dtype).view(shape)
        return torch.frombuffer(self._mapping, dtype=dtype, count=count, offset=offset).view(shape)

    def fetch(self, view: torch.Tensor, stream: int = 0) -> torch.Tensor:
        """The same numbers, read; valid until this thread fetches from the stream again. OSError for a shorter file.

        A view of which most lies between its own numbers, or a copy (see `tensor`), comes back as it is.
        """
        span = self._span(view)
        if span is None:
            return view
        part = torch.from_numpy(self._read(*span, stream)).view(view.dtype)
        return part.as_strided(view.shape, view.stride())

    def ahead(self, view: torch.Tensor, stream: int = 0) -> None:
        """Begin to read what this thread fetches soon, ahead of at most MOST_WANTED others. Never raises."""
        span = self._span(view)
        if span is None or not self._is_direct(*span) or self._reads.held(self.path, *span) is not None:
            return
        begin, end = aligned(*span)
        buffer = self._reads.wanted(end - begin)
        if self._direct is not None and self._reads.start(self._direct, buffer, end - begin, begin):
            buffer.path, buffer.first, buffer.stop = self.path, begin, end
        else:
            self._reads.drop(buffer)

    def keep(self, views: list[torch.Tensor]) -> None:
        """Begin to read these small ones, all at one time, and keep them until `close`, where that pays. Never raises.

        For the thread that then calls `arrive`."""
        spans = [span for span in map(self._span, views) if span is not None and self._is_direct(*span)]
        if spans and self._direct is not None:
            self._coming = self._reads.begin_apart(self._direct, spans)

    def arrive(self) -> None:
        """Wait for what `keep` began."""
        coming, self._coming = self._coming, []
        for buffer in coming:
            self._reads.arrive(buffer)
        self._kept += coming

    def _span(self, view: torch.Tensor) -> tuple[int, int] | None:
        """First and last byte of the file that a view covers; None where it is not to be read."""
        first = view.data_ptr() - self.base
        numbers = 1 + sum((size - 1) * stride for size, stride in zip(view.shape, view.stride(), strict=True))
        stop = first + numbers * view.itemsize
        inside = first >= 0 and stop <= self.num_bytes
        if not inside or view.nbytes == 0 or stop - first > 2 * view.nbytes or not hasattr(os, "preadv"):
            return None
        return first, stop

    def _is_direct(self, first: int, stop: int) -> bool:
        """Are these bytes better read past the page cache?"""
        if self._direct is None or not self._reads.worth_while():
            return False
        return not is_cached(self._direct, self.base + first, first, stop - first)

    def _read(self, first: int, stop: int, stream: int) -> np.ndarray:
        """The bytes [first, stop), uint8."""
        kept = next((buffer for buffer in self._kept if buffer.first <= first and stop <= buffer.stop), None)
        if kept is not None:
            return kept.part(first, stop)
        held = self._reads.held(self.path, first, stop)
        if held is not None:
            self._reads.arrive(held)
            if held.holds(self.path, first, stop):
                return self._reads.use(stream, held).part(first, stop)
            self._reads.drop(held)  # the read ahead failed, or the file is shorter
        begin, end = aligned(first, stop)
        buffer = self._reads.use(stream, None, end - begin)
        got = 0
        if self._direct is not None and self._is_direct(first, stop):
            try:
                got = self._reads.read(self._direct, buffer.memory[: end - begin], begin)
            except OSError:  # a file system that opens so and does not read so: no more of it
                self._direct = None
        if got < stop - begin:
            got = self._read_cached(buffer.memory[: stop - begin], begin, stream)
        buffer.path, buffer.first, buffer.stop = self.path, begin, begin + got
        return buffer.part(first, stop)

    def _read_cached(self, into: np.ndarray, offset: int, stream: int) -> int:
        """Plain reads through the page cache. OSError for a shorter file."""
        memory, got = into.data, 0
        while got < len(into):
            count = os.preadv(self._streams[stream].fileno(), [memory[got:]], offset + got)
            if count == 0:
                raise OSError(
                    f"{self.path}: expected {self.num_bytes} bytes, got {offset + got}: it changed; load again"
                )
            got += count
        return got

    def close(self) -> None:
        """No more fetching; the mapping goes with its last view."""
        self._kept.clear()
        for stream in self._streams:
            stream.close()
        if self._opened_direct is not None:
            os.close(self._opened_direct)
        self._direct = self._opened_direct = None


def aligned(first: int, stop: int) -> tuple[int, int]:
    """What is read of a file for its bytes [first, stop)."""
    return first // ALIGNMENT * ALIGNMENT, -(-stop // ALIGNMENT) * ALIGNMENT + FURTHER_BYTES
