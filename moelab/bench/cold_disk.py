"""What the disk gives of files that are not cached, for benches to stand beside. Linux. Floor 6."""

from __future__ import annotations

import gc
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from moelab.bench.warm_memory import after_report
from moelab.engine.direct_reads import open_direct, ring_bytes
from moelab.kernels.pages import map_pages
from moelab.kernels.pool import Pool

BLOCK_BYTES = 2 << 20


def drop_cached(files: list[Path]) -> None:
    """Have the page cache forget these files; they must be on no mapping and on the disk."""
    gc.collect()  # engines of former rounds hold views of the files
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(files: list[Path]) -> None:
    """Bring them into the page cache."""
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK_BYTES):
                pass


class Disk:
    """The best way to read these files when they are not cached: by one worker, by all, by all past the page cache.

    A way that was a fifth slower than the best in two rounds is not tried again.
    """

    def __init__(self, files: list[Path], pool: Pool) -> None:
        self.files = files
        self.ways: dict[str, tuple[Pool | None, int]] = {"all workers": (pool, 0), "one worker": (None, 0)}
        if all(can_read_directly(path) for path in files):
            self.ways["past the page cache"] = (pool, os.O_DIRECT)
        self.rates: dict[str, list[float]] = {way: [] for way in self.ways}

    def bytes_per_s(self) -> float:
        """Of the best way, now."""
        best_before = max((max(rates) for rates in self.rates.values() if rates), default=0.0)
        found = []
        for way, (pool, flags) in self.ways.items():
            if len(self.rates[way]) < 2 or max(self.rates[way]) > 0.8 * best_before:
                found.append(read_cold(self.files, pool, flags))
                self.rates[way].append(found[-1])
        return max(found)


def can_read_directly(path: Path) -> bool:
    descriptor = open_direct(path)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def rate_to_memory(files: list[Path], pool: Pool) -> float:
    """Bytes per second past the page cache into the ring of buffers that a load of these files has, in turn; nan where
    there is no such reading.

    One synchronous way, no limit: a load has more requests on their way. What is read into again and again, with nobody
    looking at it, presumably stays in the caches of whoever writes it, where the disk is a thread of the host.
    """
    if not all(can_read_directly(path) for path in files):
        return float("nan")
    ring = ring_bytes(sum(path.stat().st_size for path in files))
    return read_cold(files, pool, os.O_DIRECT, max(2, ring // BLOCK_BYTES // pool.num_workers))


def read_cold(files: list[Path], pool: Pool | None, flags: int = 0, num_buffers: int = 1) -> float:
    """Bytes per second of reading files from the disk, by all workers or (None) by one, each into ``num_buffers`` on
    huge pages in turn."""
    drop_cached(files)
    descriptors = [os.open(path, os.O_RDONLY | flags) for path in files]
    sizes = [path.stat().st_size for path in files]
    blocks = [
        (descriptor, start)
        for descriptor, size in zip(descriptors, sizes, strict=True)
        for start in range(0, size, BLOCK_BYTES)
    ]
    rings: dict[int, deque[np.ndarray]] = {}  # by worker

    def map_ring(worker: int, num_workers: int) -> None:
        """By the worker itself, on its node; written, so that no read waits for its pages."""
        memory = map_pages(num_buffers * BLOCK_BYTES).memory
        memory[:: mmap.PAGESIZE] = 1
        rings[threading.get_ident()] = deque(np.split(memory, num_buffers))

    def read(block: int) -> None:
        descriptor, start = blocks[block]
        ring = rings[threading.get_ident()]
        os.preadv(descriptor, [ring[0].data], start)
        ring.rotate(-1)

    if pool is None:
        map_ring(0, 1)
    else:
        pool.run(map_ring)
    after_report()
    rate = _rate(files, len(blocks), read, pool)
    for descriptor in descriptors:
        os.close(descriptor)
    return rate


def _rate(files: list[Path], num_tasks: int, task: Callable[[int], None], pool: Pool | None) -> float:
    begun = time.perf_counter()
    if pool is None:
        for number in range(num_tasks):
            task(number)
    else:
        pool.draw(num_tasks, task)
    return sum(path.stat().st_size for path in files) / (time.perf_counter() - begun)
