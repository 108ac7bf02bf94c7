"""DirectReads: parts of files read past the page cache, ahead of their use, into buffers on huge pages.

A disk that delivers more than a core copies is kept waiting by the page cache: every byte costs a page, its
bookkeeping and a copy. `O_DIRECT` costs next to nothing, but only into huge pages: ordinary ones are scattered, and a
read of 2 MB becomes hundreds of pieces (docs/log.md, 2026-11-26, loading, profiled). What the page cache holds already
is not read this way, nor what lies on a slow disk, whose content had better stay in the cache. Linux; elsewhere, and on
file systems without `O_DIRECT`, `open_direct` gives None. It does not know tensors. Floor 2.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moelab.engine.disk_queue import DiskQueue, open_queue
from moelab.kernels.pages import HUGE_PAGE_BYTES, map_pages

ALIGNMENT = 4096  # of offset, length and memory: enough for any sector and page of x86
SLOW_BYTES_PER_S = 200e6  # the page cache is no hindrance below
SURE_BYTES = 64 << 20  # read before a disk is called slow
SMALL_BUFFER_BYTES = 256 << 10  # the least; others are twice, four times as large, or whole huge pages
RING_BYTES = 128 << 20  # of all threads together, more than the caches hold
RING_PART = 24  # and at most this part of what is to be read
RING_STEP_BYTES = 8 << 20
MOST_WANTED = 96  # reads ahead of one thread that nobody has fetched; then the oldest is given up
_CACHESTAT = 451  # Linux 6.5, the same number on every architecture


def ring_bytes(total_bytes: int) -> int:
    """Of the buffers of all threads, where so much is read."""
    return min(RING_BYTES, total_bytes // RING_PART)


@dataclass(eq=False)
class Buffer:
    """Memory of one thread; it holds, or will hold, the bytes [first, stop) of `path`."""

    memory: np.ndarray
    path: Path | None = None
    first: int = 0
    stop: int = 0
    read: int | None = None  # that is on its way

    def holds(self, path: Path, first: int, stop: int) -> bool:
        return self.first <= first and stop <= self.stop and self.path is path  # one file has one Path

    def part(self, first: int, stop: int) -> np.ndarray:
        return self.memory[first - self.first : stop - self.first]


@dataclass
class Own:
    """What belongs to one thread: buffers read ahead and not fetched, the one in use of each stream, free memory by
    size, and its queue. The memory that was freed longest ago is used first: what a core has just read is in its
    caches, and a disk that is a thread of the host writes there at two thirds of its rate (docs/log.md, 2026-11-26,
    loading, cold)."""

    wanted: list[Buffer] = field(default_factory=list)
    in_use: dict[int, Buffer] = field(default_factory=dict)
    free: dict[int, list[np.ndarray]] = field(default_factory=dict)
    queue: DiskQueue | None = None


class DirectReads:
    """Buffers of all threads and the measured rate of the disk, for the files of one checkpoint.

    `num_bytes` were read past the page cache. Of `total_bytes` to be read the buffers are a small part.
    """

    def __init__(self, total_bytes: int | None = None) -> None:
        self.num_bytes = 0
        self._most_bytes = RING_BYTES if total_bytes is None else ring_bytes(total_bytes)
        self._local = threading.local()
        self._counting = threading.Lock()
        self._queues: list[DiskQueue] = []
        self._ring_bytes = 0
        self._in_flight, self._since, self._busy_s = 0, 0.0, 0.0

    def held(self, path: Path, first: int, stop: int) -> Buffer | None:
        """The buffer of this thread that holds these bytes, read or on their way."""
        own = self._own()
        for buffer in own.wanted:
            if buffer.holds(path, first, stop):
                return buffer
        return next((buffer for buffer in own.in_use.values() if buffer.holds(path, first, stop)), None)

    def wanted(self, num_bytes: int) -> Buffer:
        """An empty one of at least so many bytes, on huge pages, for what is fetched later."""
        own = self._own()
        if len(own.wanted) >= MOST_WANTED:
            self.drop(own.wanted[0])
        buffer = Buffer(self._memory(own, num_bytes))
        own.wanted.append(buffer)
        return buffer

    def use(self, stream: int, buffer: Buffer | None, num_bytes: int = 0) -> Buffer:
        """This one (None: an empty one of so many bytes) is in use now; what was, in this stream, is gone."""
        own = self._own()
        if buffer is not None and buffer in own.in_use.values():
            return buffer
        before = own.in_use.pop(stream, None)
        if before is not None:
            _give_back(own, before.memory)
        if buffer is None:
            buffer = Buffer(self._memory(own, num_bytes))
        else:
            own.wanted.remove(buffer)
        own.in_use[stream] = buffer
        return buffer

    def drop(self, buffer: Buffer) -> None:
        """Nobody fetches what was read ahead into it."""
        self.arrive(buffer)
        own = self._own()
        if buffer in own.wanted:
            own.wanted.remove(buffer)
            _give_back(own, buffer.memory)

    def _memory(self, own: Own, num_bytes: int) -> np.ndarray:
        """Free memory of one of a few sizes, at least so many bytes."""
        pages = -(-num_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        size = SMALL_BUFFER_BYTES
        while size < min(num_bytes, HUGE_PAGE_BYTES):
            size *= 2
        size = pages if num_bytes > HUGE_PAGE_BYTES else size
        free = own.free.setdefault(size, [])
        with self._counting:
            more = 0
            left = self._most_bytes - self._ring_bytes
            if not free or left > 0:
                more = max(min(RING_STEP_BYTES, left) // size * size, pages) if size >= pages else pages
                self._ring_bytes += more
        if more:
            whole = map_pages(more).memory
            free[:0] = [whole[first : first + size] for first in range(0, more, size)]
        return free.pop(0)

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
                own.queue = open_queue(MOST_WANTED)
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
            buffer.path, buffer.stop = None, buffer.first
        finally:
            self._end(got)
        buffer.stop = min(buffer.stop, buffer.first + got)

    def on_their_way(self) -> int:
        """Bytes that this thread has asked for and that have not come."""
        queue = self._own().queue
        if queue is None:
            return 0
        if queue.num_bytes:
            with suppress(OSError):  # whoever waits for them hears of it
                queue.look()
        return queue.num_bytes

    def begun(self) -> int:
        """The number of the last read that this thread began; 0 before the first."""
        queue = self._own().queue
        return 0 if queue is None else queue.last

    def wait(self, number: int) -> bool:
        """Until what this thread began up to this number has come; False where all of it had."""
        queue = self._own().queue
        with suppress(OSError):
            return queue is not None and queue.settle(number)
        return False

    def read_apart(self, descriptor: int, parts: list[tuple[int, int]]) -> list[Buffer]:
        """Many small parts [first, stop) of a file at one time (`begin_apart`). Those that failed are empty."""
        buffers = self.begin_apart(descriptor, parts)
        for buffer in buffers:
            self.arrive(buffer)
        return buffers

    def begin_apart(self, descriptor: int, parts: list[tuple[int, int]]) -> list[Buffer]:
        """Many small parts [first, stop) of a file at one time, into memory of their own, to be waited for (`arrive`).
        Those that failed are empty then.

        One after the other each would wait for the disk; and behind large reads for these.
        """
        spans = [(first // ALIGNMENT * ALIGNMENT, -(-stop // ALIGNMENT) * ALIGNMENT) for first, stop in parts]
        memory = map_pages(sum(end - begin for begin, end in spans)).memory
        buffers: list[Buffer] = []
        at = 0
        for begin, end in spans:
            buffer = Buffer(memory[at : at + end - begin], first=begin, stop=end)
            at += end - begin
            if not self.start(descriptor, buffer, end - begin, begin):
                for before in buffers:  # as many as the queue takes
                    self.arrive(before)
                if not self.start(descriptor, buffer, end - begin, begin):
                    buffer.stop = begin
            buffers.append(buffer)
        return buffers

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


def _give_back(own: Own, memory: np.ndarray) -> None:
    own.free[len(memory)].append(memory)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def is_cached(descriptor: int, address: int, offset: int, num_bytes: int) -> bool:
    """Is at least half of a part of a file in the page cache? True where the system does not say.

    `address` is where the part is mapped: asked where there is no `cachestat`, which takes 2 us for what is not cached
    and `mincore` 40.
    """
    if num_bytes == 0:
        return True
    asked, told = (ctypes.c_uint64 * 2)(offset, num_bytes), (ctypes.c_uint64 * 5)()
    if _libc().syscall(ctypes.c_long(_CACHESTAT), ctypes.c_int(descriptor), asked, told, ctypes.c_uint(0)) == 0:
        return bool(2 * told[0] * mmap.PAGESIZE >= num_bytes)
    return is_resident(address, num_bytes)


def is_resident(address: int, num_bytes: int) -> bool:
    """Is at least half of a mapped part of a file in the page cache, by `mincore`? True where that does not say."""
    first = address // mmap.PAGESIZE * mmap.PAGESIZE
    pages = np.empty(-(-(address + num_bytes - first) // mmap.PAGESIZE), np.uint8)
    length = ctypes.c_size_t(address + num_bytes - first)
    if _libc().mincore(ctypes.c_void_p(first), length, ctypes.c_void_p(pages.ctypes.data)) != 0:
        return True
    return 2 * int(np.count_nonzero(pages & 1)) >= len(pages)
