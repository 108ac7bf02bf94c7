"""Kernels and reads of one node while experts are copied beside them: rates of both, alone and together. Floor 3.

The copies are an ``Uploader``'s on a core of its own, so a machine of one core has no figures. Rates are taken in the
window in which both ran; a share is of what the same workers do alone, because a link takes no core. Does not know
policies.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from moelab.calibration.rounds import in_rounds, timed
from moelab.calibration.shelf import Shelf
from moelab.calibration.uploader import Uploader
from moelab.cost_model.node_time import with_slower_reads
from moelab.domain.allowed_cores import allowed_cores
from moelab.domain.expert_times import ExpertTimes, Uploads
from moelab.domain.plan_copies import whole_on
from moelab.domain.units import GB
from moelab.kernels import Activation, ExpertLayout, Pool, RoutedExperts, read_once
from moelab.kernels.pieces import num_units

_NUM_EXPERTS = 16
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
    needed = int(_CALLS_WITHIN * 4 * times.expert_s[1] / copy_s)
    num_copies = min(_MOST_COPIES, max(_FEWEST_COPIES, needed))
    with Pool(max(1, len(allowed_cores()) - 1)) as pool:
        placed = Shelf(layout, _NUM_EXPERTS, pool).placement(
            whole_on(np.zeros(_NUM_EXPERTS, np.int64), num_units(layout))
        )
        layer = RoutedExperts(layout, placed.addresses, isa, activation, pool, owner=placed, placement=placed)
        slots = [np.ones(layout.expert_bytes, np.uint8) for _ in range(4)]
        x = rng.standard_normal((1, layout.hidden_size)).astype(np.float32)
        gates = np.full((1, 4), 0.25, np.float32)

        def kernel() -> None:
            layer.forward(x, rng.permutation(_NUM_EXPERTS)[None, :4], gates)

        def read() -> None:
            read_once(placed.addresses[rng.permutation(_NUM_EXPERTS)[:4]], layout.expert_bytes, loop, pool)

        with Uploader(slots, core) as uploader:

            def both(work: Callable[[], None]) -> tuple[float, float]:
                """(seconds of a call, seconds of a copy), medians of those within the window of both."""
                first, begin = uploader.num_done, time.perf_counter()
                uploader.put([placed.copy(int(e), 0) for e in rng.integers(0, _NUM_EXPERTS, num_copies)])
                calls = []
                while not uploader.idle:
                    start = time.perf_counter()
                    work()
                    if not uploader.idle:
                        calls.append(time.perf_counter() - start)
                copies = np.diff([begin, *uploader.ends[first:]])[1:-1]
                return (float(np.median(calls)) if calls else np.nan), float(np.median(copies))

            starts: list[float] = []

            def alone() -> float:
                blocks = [placed.copy(int(e), 0) for e in rng.permutation(_NUM_EXPERTS)[:4]]
                first, asked = uploader.num_done, time.perf_counter()
                uploader.put(blocks)
                uploader.wait()
                starts.append(uploader.start_s(first, asked, time.perf_counter()))
                return float(np.median(np.diff(uploader.ends[first:])))

            pairs: dict[str, list[float]] = {"kernel": [], "copy of kernel": [], "read": [], "copy of read": []}

            def kernel_alone() -> float:
                kernel()  # a layer follows a layer, see expert_calls
                return timed(kernel)

            def note(name: str, work: Callable[[], None]) -> float:
                seconds_each, copy = both(work)
                pairs[name].append(seconds_each)
                pairs[f"copy of {name}"].append(copy)
                return seconds_each

            values = in_rounds(
                {
                    "alone": alone, "kernel alone": kernel_alone, "read alone": lambda: timed(read),
                    "kernel": lambda: note("kernel", kernel), "read": lambda: note("read", read),
                },
                seconds=seconds, seed=seed, on_round=on_round,
            )  # fmt: skip
    middle = {name: np.array(each[1:]) for name, each in pairs.items()}
    read_rates = 4 * layout.expert_bytes / middle["read"] / GB
    alone_s = float(np.median(values["kernel alone"]))
    own_s = max(alone_s - times.layer_s, alone_s / 2) / 4
    read_alone_s = float(np.median(values["read alone"])) / 4
    allowed = 4 * with_slower_reads(own_s, read_alone_s, layout.expert_bytes / (read_rates * GB), times.sharpness)
    experts_s = np.maximum(middle["kernel"] - times.layer_s, middle["kernel"] / 2)  # a busy machine's layer_s is large
    figures = {
        "alone_gb_per_s": layout.expert_bytes / values["alone"] / GB,
        "beside_gb_per_s": layout.expert_bytes / middle["copy of read"] / GB,
        "read_gb_per_s": read_rates,
        "kernel_share": allowed / experts_s,
        "upload_share": middle["copy of read"] / middle["copy of kernel"],
        "start_s": np.array(starts[1:]),
    }
    if any(np.isnan(each).all() for each in figures.values()):
        return None
    return Uploads(by=f"a thread on core {core}", **{name: float(np.nanmedian(each)) for name, each in figures.items()})
