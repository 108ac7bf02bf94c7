"""Kernels and reads of one node while experts are copied beside them: rates of both, alone and together. Floor 3.

The calls are ``UploadCalls``, the copies an ``Uploader``'s on a core of its own, so a machine of one core has no
figures. Rates are taken in the window in which both ran; a share is of what the same workers do alone, because a link
takes no core. Does not know policies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np

from moelab.calibration.rounds import in_rounds, timed
from moelab.calibration.shelf import Shelf
from moelab.calibration.upload_calls import EXPERTS_OF_CALL, UploadCalls
from moelab.calibration.uploader import Uploader
from moelab.cost_model.node_time import with_slower_reads
from moelab.domain.allowed_cores import allowed_cores
from moelab.domain.expert_times import ExpertTimes, Uploads
from moelab.domain.plan_copies import whole_on
from moelab.domain.units import GB
from moelab.kernels import Activation, ExpertLayout, Pool, RoutedExperts
from moelab.kernels.pieces import num_units

_NUM_EXPERTS = 16
_COPIES_ALONE = 4
_FEWEST_COPIES, _MOST_COPIES = 10, 4000
_FAST_COPY_GB_PER_S = 10.0
_CALLS_WITHIN = 6  # of four experts, while the copies run


def beside_uploads(
    times: ExpertTimes, layout: ExpertLayout, *, core: int, isa: str, activation: Activation, loop: int,
    seconds: float, on_round: Callable[[float], object], seed: int = 0,
) -> Uploads | None:  # fmt: skip
    """``core`` of the uploader's thread; the kernels run on workers of the other cores, in rounds with the reads.

    ``None`` where no call ended while copies ran (the machine was busy otherwise): then nothing is known.
    """
    rng = np.random.default_rng(seed)
    copy_s = layout.expert_bytes / (_FAST_COPY_GB_PER_S * GB)
    needed = int(_CALLS_WITHIN * EXPERTS_OF_CALL * times.expert_s[1] / copy_s)
    num_copies = min(_MOST_COPIES, max(_FEWEST_COPIES, needed))
    with Pool(max(1, len(allowed_cores()) - 1)) as pool:
        placed = Shelf(layout, _NUM_EXPERTS, pool).placement(
            whole_on(np.zeros(_NUM_EXPERTS, np.int64), num_units(layout))
        )
        layer = RoutedExperts(layout, placed.addresses, isa, activation, pool, owner=placed, placement=placed)
        slots = [np.ones(layout.expert_bytes, np.uint8) for _ in range(4)]
        with Uploader(slots, core) as uploader:
            calls = UploadCalls(layer, uploader, loop=loop, rng=rng)
            noted = defaultdict[str, list[float]](list)

            def alone() -> float:
                copy_s, start_s = calls.copy_alone_s(_COPIES_ALONE)
                noted["start"].append(start_s)
                return copy_s

            def beside(name: str, work: Callable[[], None]) -> float:
                seconds_each, copy_s = calls.beside_copies_s(work, num_copies)
                noted[name].append(seconds_each)
                noted[f"copy of {name}"].append(copy_s)
                return seconds_each

            values = in_rounds(
                {
                    "alone": alone, "kernel alone": partial(calls.behind_one_s, calls.kernel),
                    "read alone": partial(timed, calls.read),
                    "kernel": partial(beside, "kernel", calls.kernel), "read": partial(beside, "read", calls.read),
                },
                seconds=seconds, seed=seed, on_round=on_round,
            )  # fmt: skip
    middle = {name: np.array(each[1:]) for name, each in noted.items()}
    read_rates = EXPERTS_OF_CALL * layout.expert_bytes / middle["read"] / GB
    alone_s = float(np.median(values["kernel alone"]))
    own_s = max(alone_s - times.layer_s, alone_s / 2) / EXPERTS_OF_CALL
    read_alone_s = float(np.median(values["read alone"])) / EXPERTS_OF_CALL
    read_s = layout.expert_bytes / (read_rates * GB)
    allowed = EXPERTS_OF_CALL * with_slower_reads(own_s, read_alone_s, read_s, times.sharpness)
    experts_s = np.maximum(middle["kernel"] - times.layer_s, middle["kernel"] / 2)  # a busy machine's layer_s is large
    figures = {
        "alone_gb_per_s": layout.expert_bytes / values["alone"] / GB,
        "beside_gb_per_s": layout.expert_bytes / middle["copy of read"] / GB,
        "read_gb_per_s": read_rates,
        "kernel_share": allowed / experts_s,
        "upload_share": middle["copy of read"] / middle["copy of kernel"],
        "start_s": middle["start"],
    }
    if any(np.isnan(each).all() for each in figures.values()):
        return None
    return Uploads(by=f"a thread on core {core}", **{name: float(np.nanmedian(each)) for name, each in figures.items()})
