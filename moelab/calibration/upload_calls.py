"""UploadCalls: kernels, reads and copies of experts of one node, each alone and two at once. Floor 3.

A calibration makes them in rounds, and whoever runs something with copies makes them beside it: the same calls, so that
the two can be compared. How many experts are read and copied, and how often, is the caller's. Does not know rounds, nor
what the numbers mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from moelab.calibration.rounds import timed
from moelab.calibration.uploader import Uploader
from moelab.kernels import RoutedExperts, read_once

EXPERTS_OF_CALL = 4
"""Of a kernel's call, one token, and of a read where its caller does not say otherwise."""


class UploadCalls:
    """On ``layer``, whose experts lie whole on one node. ``loop``: of the reads. Experts are drawn from ``rng``."""

    def __init__(self, layer: RoutedExperts, uploader: Uploader, *, loop: int, rng: np.random.Generator) -> None:
        arena = layer.placement
        assert arena is not None
        self._layer, self._uploader, self._loop, self._rng = layer, uploader, loop, rng
        self._addresses, self._size, self._num_experts = arena.addresses, arena.layout.expert_bytes, arena.num_experts
        self._block_of = [arena.copy(expert, 0) for expert in range(arena.num_experts)]
        self._x = rng.standard_normal((1, arena.layout.hidden_size)).astype(np.float32)
        self._gates = np.full((1, EXPERTS_OF_CALL), 1 / EXPERTS_OF_CALL, np.float32)

    def kernel(self) -> None:
        """A layer-step of one token and four experts."""
        self._layer.forward(self._x, self._drawn(EXPERTS_OF_CALL)[None], self._gates)

    def read(self, experts: int = EXPERTS_OF_CALL) -> None:
        """By the workers of the kernels."""
        read_once(self._addresses[self._drawn(experts)], self._size, self._loop, self._layer.pool)

    def behind_one_s(self, work: Callable[[], None], times: int = 1) -> float:
        """Seconds of ``work``, the median of so many; they follow one like them, as a layer follows a layer."""
        work()
        return float(np.median([timed(work) for _ in range(times)]))

    def copy_alone_s(self, copies: int) -> tuple[float, float]:
        """(seconds of a copy, seconds from asking to the first byte and from the last one to its news).

        Nothing else runs; the median over ``copies`` less the first, which waits for the thread to wake.
        """
        blocks = [self._block_of[expert] for expert in self._drawn(copies)]
        first, asked = self._uploader.num_done, time.perf_counter()
        self._uploader.put(blocks)
        self._uploader.wait()
        seen = time.perf_counter()
        return float(np.median(np.diff(self._uploader.ends[first:]))), self._uploader.start_s(first, asked, seen)

    def beside_copies_s(self, work: Callable[[], None], copies: int, *, until_one: bool = False) -> tuple[float, float]:
        """(seconds of ``work``, seconds of a copy), medians of those within the window of both.

        NaN for ``work`` where none ended while ``copies`` ran; ``until_one``: then twice as many are copied, until one
        does.
        """
        while True:
            first, begin = self._uploader.num_done, time.perf_counter()
            chosen = self._rng.integers(0, self._num_experts, copies)
            self._uploader.put([self._block_of[expert] for expert in chosen])
            calls = []
            while not self._uploader.idle:
                seconds = timed(work)
                if not self._uploader.idle:
                    calls.append(seconds)
            if calls or not until_one:
                break
            copies *= 2
        ends = np.diff([begin, *self._uploader.ends[first:]])[1:-1]
        return (float(np.median(calls)) if calls else np.nan), float(np.median(ends))

    def _drawn(self, experts: int) -> np.ndarray:
        return self._rng.permutation(self._num_experts)[:experts]
