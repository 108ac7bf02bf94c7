"""Memory-bound cells with a fast tier that a policy fills: a core computes misses, another copies.  Floor 6.

Decisions are the simulator's own log, so residency follows the logical clock: a layer waits until what it admitted one
step before has arrived, as ``cost_model.hybrid`` says. The copies are an ``Uploader``'s in place of a link. Each run
stands between two ``UploadMoment``s, whose figures replace the calibrated ones (``WAYS`` says in which predictions).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from moelab.bench.placement.cells import Cell
from moelab.bench.placement.core_bound import Planned
from moelab.bench.placement.lockstep import lockstep
from moelab.bench.placement.upload_moment import UploadMoment
from moelab.calibration.rounds import in_rounds
from moelab.calibration.shelf import Shelf
from moelab.calibration.upload_calls import EXPERTS_OF_CALL, UploadCalls
from moelab.calibration.uploader import Uploader
from moelab.cost_model.hybrid import Rates, hybrid
from moelab.cost_model.node_time import whole_expert_s, with_reads
from moelab.domain.allowed_cores import allowed_cores
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.plan_copies import whole_on
from moelab.domain.trace import NO_EXPERT, Trace
from moelab.domain.units import GB
from moelab.kernels import ExpertLayout, Pool, RoutedExperts
from moelab.kernels.pieces import num_units
from moelab.planner import empty
from moelab.policies.signature import ADMIT, EVICT
from moelab.simulator.simulate import simulate

POLICIES = ("lru", "admit_ema_lfu", "second_touch")
CAPACITIES = (0.125, 0.25)
BATCHES = (1, 4)
NUM_STEPS = 24
_WARM_STEPS = 64


@dataclass(frozen=True, eq=False)
class Decided:
    """One cell's work: misses [B, K] (hits unrouted) and admitted experts of each step and layer."""

    misses: list[list[np.ndarray]]
    admitted: list[list[list[int]]]


def decide(steps: Trace, num_layers: int, policy: str, slots: int) -> Decided:
    """The last ``NUM_STEPS`` of ``steps`` under a policy that filled ``slots`` a layer in those before."""
    plan = empty(steps, slots_per_layer=slots, policy=policy)
    log = simulate(steps, plan, log=True, progress=False).log
    assert log is not None
    all_layers = steps.header.num_layers
    num_steps = len(np.unique(steps.tokens.step))
    resident = np.zeros((all_layers, steps.header.num_experts), bool)
    of_clock: dict[int, list[np.ndarray]] = {}
    for row in log:
        of_clock.setdefault(int(row[0]), []).append(row)
    bounds = np.searchsorted(steps.tokens.step, np.arange(num_steps + 1))
    misses, admitted = [], []
    for step in range(num_steps):
        ids = steps.experts[bounds[step] : bounds[step + 1]]
        of_step, admits = [], []
        for layer in range(all_layers):
            missed = ids[:, layer].copy()
            routed = missed != NO_EXPERT
            missed[routed] = np.where(resident[layer][missed[routed]], NO_EXPERT, missed[routed])
            new = []
            for _, kind, where, expert, _ in of_clock.get(step * all_layers + layer, []):
                resident[where, expert] = kind != EVICT
                if kind == ADMIT:
                    new.append(int(expert))
            of_step.append(missed)
            admits.append(new)
        misses.append(of_step[:num_layers])
        admitted.append(admits[:num_layers])
    return Decided(misses[-NUM_STEPS:], admitted[-NUM_STEPS:])


def upload_cells(
    planned: Planned, times: ExpertTimes, *, num_layers: int, loop: int, seconds: float, seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Cell]:  # fmt: skip
    """Every policy at every capacity and batch; empty on one core or where copies were not calibrated."""
    cores = allowed_cores()
    if len(cores) < 2 or times.uploads is None:
        return []
    isa, weight_format, activation = times.kernel.split("/")
    layout = ExpertLayout(times.hidden_size, times.intermediate_size, weight_format)  # type: ignore[arg-type]
    num_experts = planned.held_out.header.num_experts
    rng = np.random.default_rng(seed)
    keys = list(product(POLICIES, CAPACITIES, BATCHES))
    work = {
        (policy, capacity, batch): decide(
            lockstep(planned.held_out, batch, _WARM_STEPS + NUM_STEPS, seed=seed + batch), num_layers, policy,
            max(1, round(capacity * num_experts)),
        )
        for policy, capacity, batch in keys
    }  # fmt: skip
    tell(f"{len(keys)} cells with uploads decided")
    with Pool(1) as pool:
        arenas = [
            Shelf(layout, num_experts, pool).placement(whole_on(np.zeros(num_experts, np.int64), num_units(layout)))
            for _ in range(num_layers)
        ]
        layers = [
            RoutedExperts(
                layout, arena.addresses, isa, activation, pool, owner=arena, placement=arena  # type: ignore[arg-type]
            )
            for arena in arenas
        ]  # fmt: skip
        for layer in layers[1:]:
            layer.share_scratch(layers[0])
        x = rng.standard_normal((64, layout.hidden_size)).astype(np.float32)
        slots = [np.ones(layout.expert_bytes, np.uint8) for _ in range(8)]
        moments: dict[tuple, list[UploadMoment]] = {key: [] for key in keys}
        with Uploader(slots, cores[-1]) as uploader:
            calls = UploadCalls(layers[0], uploader, loop=loop, rng=np.random.default_rng(seed))
            block_of = [[arena.copy(expert, 0) for expert in range(num_experts)] for arena in arenas]

            def blocks(layer: int, experts: list[int]) -> list[np.ndarray]:
                return [block_of[layer][expert] for expert in experts]

            def run(key: tuple[str, float, int]) -> float:
                before = UploadMoment.now(calls, layout.expert_bytes)
                decided, waiting = work[key], [0] * num_layers
                begin = time.perf_counter()
                for misses, admitted in zip(decided.misses, decided.admitted, strict=True):
                    for number, layer in enumerate(layers):
                        uploader.wait(waiting[number])
                        waiting[number] = uploader.put(blocks(number, admitted[number]))
                        ids = misses[number]
                        if (ids == NO_EXPERT).all():
                            continue
                        gates = np.full(ids.shape, 1 / ids.shape[1], np.float32)
                        layer.forward(x[: len(ids)], ids, gates)
                seconds_of_steps = time.perf_counter() - begin
                uploader.wait()
                moments[key].append(before.mean(UploadMoment.now(calls, layout.expert_bytes)))
                return seconds_of_steps

            cases: dict[str, Callable[[], float]] = {str(key): partial(run, key) for key in keys}
            values = in_rounds(cases, seconds=seconds, seed=seed)
    cells = []
    for key in keys:
        policy, capacity, batch = key
        decided, of_rounds = work[key], moments[key][1:]  # the first round warms up
        cells.append(
            Cell(
                plan="one node and a link", policy=policy, capacity=capacity, batch=batch, num_steps=NUM_STEPS,
                measured_s=values[str(key)], link=True,
                predicted={
                    "model": np.array([predict(decided, times, each) for each in of_rounds]),
                    "reads": np.array([predict_calibrated(decided, times, each) for each in of_rounds]),
                    "beforehand": np.full(
                        len(of_rounds), predict_calibrated(decided, times, UploadMoment.as_calibrated(times))
                    ),
                    "bytes": np.array(
                        [
                            bytes_alone_s(decided, times, each.read_beside_gb_per_s + each.copy_beside_read_gb_per_s)
                            for each in of_rounds
                        ]
                    ),
                    "kernel_bytes": np.array(
                        [
                            bytes_alone_s(
                                decided, times, kernel_gb_per_s(times, each) + each.copy_beside_kernel_gb_per_s
                            )
                            for each in of_rounds
                        ]
                    ),
                },
                read_gb_per_s=np.array([each.read_alone_gb_per_s for each in of_rounds]),
                kernel_share=np.array([kernel_gb_per_s(times, each) / each.read_beside_gb_per_s for each in of_rounds]),
            )
        )  # fmt: skip
    return cells


def predict(decided: Decided, times: ExpertTimes, moment: UploadMoment) -> float:
    """Seconds by the contention model, from what kernels and copies take alone and at once in this moment."""

    def expert_s(call_s: float) -> float:
        return max(call_s - times.layer_s - times.token_s, call_s / 2) / EXPERTS_OF_CALL

    alone_s = expert_s(moment.kernel_s)
    beside_s = max(alone_s, expert_s(moment.kernel_beside_s))  # others do not make kernels faster
    return _composed_s(decided, times, moment, alone_s, beside_s, moment.copy_beside_kernel_gb_per_s)


def predict_calibrated(decided: Decided, times: ExpertTimes, moment: UploadMoment) -> float:
    """Seconds by the calibrated kernels and shares; reads and copies, alone and at once, are the moment's."""
    assert times.uploads is not None
    one_s = float(whole_expert_s(times, 1))
    calibrated_s, now_s, beside_read_s = (
        times.expert_bytes / (rate * GB)
        for rate in (times.read_gb_per_s, moment.read_alone_gb_per_s, moment.read_beside_gb_per_s)
    )
    alone_s = float(with_reads(one_s, calibrated_s, now_s, times.sharpness))
    slower_s = float(with_reads(one_s, calibrated_s, max(now_s, beside_read_s), times.sharpness))
    copies = moment.copy_beside_read_gb_per_s * times.uploads.upload_share
    return _composed_s(decided, times, moment, alone_s, slower_s / times.uploads.kernel_share, copies)


def kernel_gb_per_s(times: ExpertTimes, moment: UploadMoment) -> float:
    """Of a call beside copies."""
    return EXPERTS_OF_CALL * times.expert_bytes / moment.kernel_beside_s / GB


def bytes_alone_s(decided: Decided, times: ExpertTimes, together_gb_per_s: float) -> float:
    """Seconds of total bytes, read and copied, at what both reach together."""
    read = sum(len(np.unique(ids[ids != NO_EXPERT])) for of_step in decided.misses for ids in of_step)
    copied = sum(len(new) for of_step in decided.admitted for new in of_step)
    return (read + copied) * times.expert_bytes / (together_gb_per_s * GB)


def _composed_s(
    decided: Decided, times: ExpertTimes, moment: UploadMoment, alone_s: float, beside_s: float, copy_beside: float
) -> float:
    """Misses and copies of each layer and step put together, of what an expert of one token takes alone and beside
    copies, and GB/s of copies beside kernels. Experts of several tokens count as the bytes that take as long."""
    assert times.uploads is not None
    shape = (len(decided.misses), len(decided.misses[0]))
    one_s, size = float(whole_expert_s(times, 1)), times.expert_bytes
    miss, upload, overhead = np.zeros(shape), np.zeros(shape), 0.0
    for step, of_step in enumerate(decided.misses):
        for layer, ids in enumerate(of_step):
            found, counts = np.unique(ids, return_counts=True)
            counts = counts[found != NO_EXPERT]
            miss[step, layer] = float(whole_expert_s(times, counts).sum()) / one_s
            upload[step, layer] = len(decided.admitted[step][layer])
            overhead += times.layer_s + times.token_s * len(ids) if len(counts) else 0.0
    alone = size / alone_s / GB
    home = max(moment.read_alone_gb_per_s, alone, moment.copy_alone_gb_per_s)
    rates = Rates(
        read_gb_per_s=home, efficiency=alone / home, link_gb_per_s=moment.copy_alone_gb_per_s,
        layer_overhead_s=overhead / miss.size,
        measured_shared=(size / beside_s / GB, copy_beside), link_start_s=times.uploads.start_s,
    )  # fmt: skip
    return float(hybrid(miss * size, np.zeros(shape), upload * size, rates).step_s.sum())
