"""UploadMoment: reads, kernels and copies of experts, each alone and two at once, beside a run.  Floor 6.

The same kinds of calls as ``calibration.beside_uploads`` makes, because what memory gives and what kernels reach of it
change within minutes. Does not know policies or cells.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass

import numpy as np

from moelab.calibration.rounds import timed
from moelab.calibration.uploader import Uploader
from moelab.domain.units import GB
from moelab.kernels import RoutedExperts, read_once

EXPERTS_OF_CALL = 4
_COPIES_ALONE = 4
_READ_EXPERTS_BESIDE = 2
_COPIES_BESIDE = 6


@dataclass(frozen=True)
class UploadMoment:
    """GB/s of experts: of a read loop and of copies while each is alone; of both while both run (``read_beside``,
    ``copy_beside_read``); of copies beside kernels. ``kernel_s``, ``kernel_beside_s``: a call of four experts, one
    token, alone and beside copies."""

    read_alone: float
    copy_alone: float
    read_beside: float
    copy_beside_read: float
    kernel_s: float
    kernel_beside_s: float
    copy_beside_kernel: float

    def mean(self, other: UploadMoment) -> UploadMoment:
        """Of the moments before and after a run."""
        return UploadMoment(*((a + b) / 2 for a, b in zip(astuple(self), astuple(other), strict=True)))


class UploadCalls:
    """Makes them on ``layer``, whose experts lie whole in its placement."""

    def __init__(self, layer: RoutedExperts, uploader: Uploader, *, loop: int, seed: int = 0) -> None:
        arena = layer.placement
        assert arena is not None
        self._layer, self._uploader, self._loop = layer, uploader, loop
        self._addresses, self._size, self._num_experts = arena.addresses, arena.layout.expert_bytes, arena.num_experts
        self._block_of = [arena.copy(expert, 0) for expert in range(arena.num_experts)]
        self._rng = np.random.default_rng(seed)
        self._x = self._rng.standard_normal((1, arena.layout.hidden_size)).astype(np.float32)
        self._gates = np.full((1, EXPERTS_OF_CALL), 1 / EXPERTS_OF_CALL, np.float32)

    def make(self) -> UploadMoment:
        read_beside_s, copy_beside_read_s = self._beside(self._reading(_READ_EXPERTS_BESIDE))
        copy_alone_s = self._copied_alone()
        read_alone_s = self._second(self._reading(EXPERTS_OF_CALL))
        kernel_beside_s, copy_beside_kernel_s = self._beside(self._computing)
        return UploadMoment(
            read_alone=self._rate(read_alone_s, EXPERTS_OF_CALL), copy_alone=self._rate(copy_alone_s),
            read_beside=self._rate(read_beside_s, _READ_EXPERTS_BESIDE),
            copy_beside_read=self._rate(copy_beside_read_s), kernel_s=self._second(self._computing),
            kernel_beside_s=kernel_beside_s, copy_beside_kernel=self._rate(copy_beside_kernel_s),
        )  # fmt: skip

    def _rate(self, seconds: float, experts: int = 1) -> float:
        return experts * self._size / seconds / GB

    def _reading(self, experts: int) -> Callable[[], None]:
        def read() -> None:
            chosen = self._addresses[self._rng.permutation(self._num_experts)[:experts]]
            read_once(chosen, self._size, self._loop, self._layer.pool)

        return read

    def _computing(self) -> None:
        ids = self._rng.permutation(self._num_experts)[None, :EXPERTS_OF_CALL]
        self._layer.forward(self._x, ids, self._gates)

    def _second(self, work: Callable[[], None]) -> float:
        """Median seconds of two calls that follow one like them, as in the calibration."""
        work()
        return float(np.median([timed(work) for _ in range(2)]))

    def _copied_alone(self) -> float:
        """Seconds of a copy while nothing else runs; the first of them waits for the thread to wake."""
        first = self._uploader.num_done
        chosen = self._rng.permutation(self._num_experts)[: 1 + _COPIES_ALONE]
        self._uploader.put([self._block_of[expert] for expert in chosen])
        self._uploader.wait()
        return float(np.median(np.diff(self._uploader.ends[first:])))

    def _beside(self, work: Callable[[], None]) -> tuple[float, float]:
        """(seconds of a call, seconds of a copy), medians of those within the window of both."""
        num_copies, calls = _COPIES_BESIDE, list[float]()
        while not calls:  # small experts are copied before one call ends: copy more of them
            first, begin = self._uploader.num_done, time.perf_counter()
            chosen = self._rng.integers(0, self._num_experts, num_copies)
            self._uploader.put([self._block_of[expert] for expert in chosen])
            while not self._uploader.idle:
                seconds = timed(work)
                if not self._uploader.idle:
                    calls.append(seconds)
            num_copies *= 2
        copies = np.diff([begin, *self._uploader.ends[first:]])[1:-1]
        return float(np.median(calls)), float(np.median(copies))
