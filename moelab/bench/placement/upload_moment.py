"""UploadMoment: reads, kernels and copies of experts, each alone and two at once, beside a run.  Floor 6.

By the calibration's own ``UploadCalls``, because what memory gives and what kernels reach of it change within minutes.
Fewer experts are read and copied than in a calibration, which has the time. Does not know policies or cells.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from moelab.bench.placement.moment import harmonic_mean
from moelab.calibration.upload_calls import EXPERTS_OF_CALL, UploadCalls
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.units import GB

_COPIES_ALONE = 5
_REPEATS = 2
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

    @classmethod
    def now(cls, calls: UploadCalls, expert_bytes: int) -> UploadMoment:
        """One call of each kind, of experts of so many bytes."""

        def rate(seconds: float, experts: int = 1) -> float:
            return experts * expert_bytes / seconds / GB

        reading_beside = partial(calls.read, _READ_EXPERTS_BESIDE)
        read_beside_s, copy_beside_read_s = calls.beside_copies_s(reading_beside, _COPIES_BESIDE, until_one=True)
        copy_alone_s, _ = calls.copy_alone_s(_COPIES_ALONE)
        read_alone_s = calls.behind_one_s(calls.read, _REPEATS)
        kernel_beside_s, copy_beside_kernel_s = calls.beside_copies_s(calls.kernel, _COPIES_BESIDE, until_one=True)
        return cls(
            read_alone_gb_per_s=rate(read_alone_s, EXPERTS_OF_CALL), copy_alone_gb_per_s=rate(copy_alone_s),
            read_beside_gb_per_s=rate(read_beside_s, _READ_EXPERTS_BESIDE),
            copy_beside_read_gb_per_s=rate(copy_beside_read_s),
            kernel_s=calls.behind_one_s(calls.kernel, _REPEATS), kernel_beside_s=kernel_beside_s,
            copy_beside_kernel_gb_per_s=rate(copy_beside_kernel_s),
        )  # fmt: skip

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
