"""DirectReads: parts of files read past the page cache, into buffers on huge pages that a thread uses again.

A disk that delivers more than a core copies is kept waiting by the page cache: every byte costs a page, its
bookkeeping and a copy. `O_DIRECT` costs next to nothing, but only into huge pages: ordinary ones are scattered, and a
read of 2 MB becomes hundreds of pieces (docs/log.md). What the page cache holds already is not read this way, nor what
lies on a slow disk, whose content had better stay in the cache. Linux; elsewhere, and on file systems without
`O_DIRECT`, `open` gives None. It does not know tensors. Floor 2.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moelab.kernels.pages import HUGE_PAGE_BYTES, map_pages

ALIGNMENT = 4096  # of offset, length and memory: enough for any sector and page of x86
SLOW_BYTES_PER_S = 200e6  # the page cache is no hindrance below
SURE_BYTES = 64 << 20  # read before a disk is called slow


@dataclass
class Buffer:
    """Memory of one thread; it holds the bytes [first, stop) of `path`."""

    memory: np.ndarray
    path: Path | None = None
    first: int = 0
    stop: int = 0

    def holds(self, path: Path, first: int, stop: int) -> bool:
        return self.path == path and self.first <= first and stop <= self.stop

    def part(self, first: int, stop: int) -> np.ndarray:
        return self.memory[first - self.first : stop - self.first]


class DirectReads:
    """Buffers of all threads and the measured rate of the disk, for the files of one checkpoint.

    `num_bytes` were read past the page cache.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._own = threading.local()
        self._counting = threading.Lock()
        self._in_flight, self._since, self._busy_s = 0, 0.0, 0.0

    def buffers(self) -> dict[int, Buffer]:
        """Those of this thread, by stream."""
        buffers: dict[int, Buffer] = self._own.__dict__.setdefault("buffers", {})
        return buffers

    def buffer(self, stream: int, num_bytes: int) -> Buffer:
        """One of at least so many bytes, on huge pages; its former content is gone."""
        buffers = self.buffers()
        if stream not in buffers or len(buffers[stream].memory) < num_bytes:
            size = -(-num_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
            buffers[stream] = Buffer(map_pages(size).memory)
        buffers[stream].path = None
        return buffers[stream]

    def worth_while(self) -> bool:
        """Is the disk fast, as far as is known?"""
        with self._counting:
            return self.num_bytes < SURE_BYTES or self.num_bytes > SLOW_BYTES_PER_S * self._busy_s

    def read(self, descriptor: int, into: np.ndarray, offset: int) -> int:
        """Fill `into` from `offset`, both at multiples of ALIGNMENT; how many bytes there were. OSError."""
        with self._counting:
            if self._in_flight == 0:
                self._since = time.perf_counter()
            self._in_flight += 1
        got = 0
        try:
            # A read that ends elsewhere than at a multiple has met the end of the file.
            while got < len(into) and (count := os.preadv(descriptor, [into[got:].data], offset + got)):
                got += count
                if count % ALIGNMENT:
                    break
        finally:
            with self._counting:
                self._in_flight -= 1
                if self._in_flight == 0:
                    self._busy_s += time.perf_counter() - self._since
                self.num_bytes += got
        return got


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
