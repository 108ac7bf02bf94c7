"""DirectReads: parts of files read past the page cache, ahead of their use, into buffers on huge pages.

A disk that delivers more than a core copies is kept waiting by the page cache: every byte costs a page, its
bookkeeping and a copy. `O_DIRECT` costs next to nothing, but only into huge pages: ordinary ones are scattered, and a
read of 2 MB becomes hundreds of pieces (docs/log.md). What the page cache holds already is not read this way, nor what
lies on a slow disk, whose content had better stay in the cache. Linux; elsewhere, and on file systems without
`O_DIRECT`, `open_direct` gives None. It does not know tensors. Floor 2.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moelab.engine.disk_queue import DiskQueue, open_queue
from moelab.kernels.pages import HUGE_PAGE_BYTES, map_pages
from moelab.kernels.pool import AHEAD

ALIGNMENT = 4096  # of offset, length and memory: enough for any sector and page of x86
SLOW_BYTES_PER_S = 200e6  # the page cache is no hindrance below
SURE_BYTES = 64 << 20  # read before a disk is called slow
RING = AHEAD + 2  # buffers of a stream: of tasks drawn ahead, the one in use, and one that nobody waits for
GRANULE = 64 << 10


@dataclass(eq=False)
class Buffer:
    """Memory of one thread; it holds, or will hold, the bytes [first, stop) of `path`."""

    memory: np.ndarray
    path: Path | None = None
    first: int = 0
    stop: int = 0
    read: int | None = None  # that is on its way
    wanted: bool = False  # read ahead, and not fetched yet

    def holds(self, path: Path, first: int, stop: int) -> bool:
        return self.path == path and self.first <= first and stop <= self.stop

    def part(self, first: int, stop: int) -> np.ndarray:
        return self.memory[first - self.first : stop - self.first]


@dataclass
class Own:
    """What belongs to one thread: buffers by stream, the next to be used first, and its queue."""

    rings: dict[int, list[Buffer]] = field(default_factory=dict)
    queue: DiskQueue | None = None


class DirectReads:
    """Buffers of all threads and the measured rate of the disk, for the files of one checkpoint.

    `num_bytes` were read past the page cache.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._local = threading.local()
        self._counting = threading.Lock()
        self._queues: list[DiskQueue] = []
        self._in_flight, self._since, self._busy_s = 0, 0.0, 0.0

    def held(self, path: Path, first: int, stop: int) -> Buffer | None:
        """The buffer of this thread that holds these bytes, read or on their way."""
        buffers = (buffer for ring in self._own().rings.values() for buffer in ring)
        return next((buffer for buffer in buffers if buffer.holds(path, first, stop)), None)

    def buffer(self, stream: int, num_bytes: int) -> Buffer:
        """One of at least so many bytes, on huge pages, whose content is gone: the oldest that nobody waits for."""
        own = self._own()
        ring = own.rings.get(stream, [])
        if not ring or len(ring[0].memory) < num_bytes:
            for buffer in ring:
                self.arrive(buffer)
            size = -(-num_bytes // GRANULE) * GRANULE
            whole = map_pages(max(RING * size, HUGE_PAGE_BYTES)).memory
            ring = own.rings[stream] = [Buffer(whole[start : start + size]) for start in range(0, RING * size, size)]
        buffer = next((buffer for buffer in ring if not buffer.wanted), ring[0])
        ring.remove(buffer)
        ring.append(buffer)
        self.arrive(buffer)
        buffer.path, buffer.wanted = None, False
        return buffer

    def worth_while(self) -> bool:
        """Is the disk fast, as far as is known?"""
        with self._counting:
            return self.num_bytes < SURE_BYTES or self.num_bytes > SLOW_BYTES_PER_S * self._busy_s

    def start(self, descriptor: int, buffer: Buffer, num_bytes: int, offset: int) -> bool:
        """Begin to fill a buffer from `offset`, both at multiples of ALIGNMENT; False where that cannot be."""
        own = self._own()
        if own.queue is None:
            if not hasattr(self._local, "asked"):
                self._local.asked = True
                own.queue = open_queue(4 * RING)
            if own.queue is None:
                return False
            with self._counting:
                self._queues.append(own.queue)
        self._begin()
        buffer.read = own.queue.start(descriptor, buffer.memory[:num_bytes], offset)
        if buffer.read is None:
            self._end(0)
        return buffer.read is not None

    def arrive(self, buffer: Buffer) -> None:
        """Wait for what is on its way to a buffer; it holds nothing where that failed."""
        if buffer.read is None:
            return
        queue, number, got = self._own().queue, buffer.read, 0
        assert queue is not None
        buffer.read = None
        try:
            got = queue.wait(number)
        except OSError:  # it will be read again, and fail by name
            buffer.path = None
        finally:
            self._end(got)
        buffer.stop = min(buffer.stop, buffer.first + got)

    def read(self, descriptor: int, into: np.ndarray, offset: int) -> int:
        """Fill `into` from `offset`, both at multiples of ALIGNMENT; how many bytes there were. OSError."""
        self._begin()
        got = 0
        try:
            # A read that ends elsewhere than at a multiple has met the end of the file.
            while got < len(into) and (count := os.preadv(descriptor, [into[got:].data], offset + got)):
                got += count
                if count % ALIGNMENT:
                    break
        finally:
            self._end(got)
        return got

    def close(self) -> None:
        """Wait for what is on its way, of all threads, which must read no more."""
        queues, self._queues = self._queues, []
        self._local = threading.local()  # buffers go, and with them what they waited for
        for queue in queues:
            queue.close()

    def _own(self) -> Own:
        own: Own = self._local.__dict__.setdefault("own", Own())
        return own

    def _begin(self) -> None:
        with self._counting:
            if self._in_flight == 0:
                self._since = time.perf_counter()
            self._in_flight += 1

    def _end(self, num_bytes: int) -> None:
        with self._counting:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._busy_s += time.perf_counter() - self._since
            self.num_bytes += num_bytes


def open_direct(path: Path) -> int | None:
    """A descriptor that reads past the page cache; None where there is no such thing."""
    if not hasattr(os, "O_DIRECT") or not hasattr(os, "preadv"):
        return None
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # the file system has none
        return None


@cache
def _mincore() -> Any:
    return ctypes.CDLL(None, use_errno=True).mincore


def is_cached(address: int, num_bytes: int) -> bool:
    """Is at least half of a mapped part of a file in the page cache? True where the system does not say."""
    first = address // mmap.PAGESIZE * mmap.PAGESIZE
    pages = np.empty(-(-(address + num_bytes - first) // mmap.PAGESIZE), np.uint8)
    length = ctypes.c_size_t(address + num_bytes - first)
    if _mincore()(ctypes.c_void_p(first), length, ctypes.c_void_p(pages.ctypes.data)) != 0:
        return True
    return 2 * int(np.count_nonzero(pages & 1)) >= len(pages)
