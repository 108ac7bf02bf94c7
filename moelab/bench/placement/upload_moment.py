"""UploadMoment: reads, kernels and copies of experts, each alone and two at once, beside a run.  Floor 6.

The kinds of calls that ``calibration.beside_uploads`` makes, because what memory gives and what kernels reach of it
change within minutes. Does not know policies or cells.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from moelab.bench.placement.moment import harmonic_mean
from moelab.calibration.rounds import timed
from moelab.calibration.uploader import Uploader
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.units import GB
from moelab.kernels import RoutedExperts, read_once

EXPERTS_OF_CALL = 4
_COPIES_ALONE = 4
_READ_EXPERTS_BESIDE = 2
_COPIES_BESIDE = 10


@dataclass(frozen=True)
class UploadMoment:
    """Of a read loop and of copies while each is alone, of both while both run (``read_beside``, ``copy_beside_read``),
    of copies beside kernels. ``kernel_s``, ``kernel_beside_s``: a call of four experts, one token, alone and beside
    copies."""

    read_alone_gb_per_s: float
    copy_alone_gb_per_s: float
    read_beside_gb_per_s: float
    copy_beside_read_gb_per_s: float
    kernel_s: float
    kernel_beside_s: float
    copy_beside_kernel_gb_per_s: float

    def mean(self, other: UploadMoment) -> UploadMoment:
        """Of the moments before and after a run, rates by the time that they stand for."""
        pairs = zip(asdict(self).items(), asdict(other).values(), strict=True)
        return UploadMoment(
            **{name: harmonic_mean([a, b]) if name.endswith("gb_per_s") else (a + b) / 2 for (name, a), b in pairs}
        )

    @classmethod
    def as_calibrated(cls, times: ExpertTimes) -> UploadMoment:
        """Reads and copies of a calibration, no kernels (nan); ``ValueError`` where none were copied in it."""
        known = times.uploads
        if known is None:
            raise ValueError(f"{times.name} has no figures of copies, expected some: calibrate on two cores or more")
        return cls(
            read_alone_gb_per_s=times.read_gb_per_s, copy_alone_gb_per_s=known.alone_gb_per_s,
            read_beside_gb_per_s=known.read_gb_per_s, copy_beside_read_gb_per_s=known.beside_gb_per_s, kernel_s=np.nan,
            kernel_beside_s=np.nan, copy_beside_kernel_gb_per_s=np.nan,
        )  # fmt: skip


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
        read_alone_s = self._behind_one_s(self._reading(EXPERTS_OF_CALL))
        kernel_beside_s, copy_beside_kernel_s = self._beside(self._computing)
        return UploadMoment(
            read_alone_gb_per_s=self._rate(read_alone_s, EXPERTS_OF_CALL), copy_alone_gb_per_s=self._rate(copy_alone_s),
            read_beside_gb_per_s=self._rate(read_beside_s, _READ_EXPERTS_BESIDE),
            copy_beside_read_gb_per_s=self._rate(copy_beside_read_s), kernel_s=self._behind_one_s(self._computing),
            kernel_beside_s=kernel_beside_s, copy_beside_kernel_gb_per_s=self._rate(copy_beside_kernel_s),
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

    def _behind_one_s(self, work: Callable[[], None]) -> float:
        """Median of two calls that follow one like them, as a layer follows a layer."""
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
