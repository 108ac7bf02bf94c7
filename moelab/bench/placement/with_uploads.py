"""Memory-bound cells with a fast tier that a policy fills: a core computes misses, another copies.  Floor 6.

Decisions are the simulator's own log, so residency follows the logical clock: a layer waits until what it admitted one
step before has arrived, as ``cost_model.hybrid`` says. The copies are an ``Uploader``'s in place of a link. Before and
after each run stand a read alone, copies alone, and a read while experts are copied: their rates replace the calibrated
ones.
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
from moelab.calibration.rounds import in_rounds, timed
from moelab.calibration.shelf import Shelf
from moelab.calibration.uploader import Uploader
from moelab.cost_model.hybrid import Rates, hybrid
from moelab.cost_model.node_time import whole_expert_s, with_reads
from moelab.domain.allowed_cores import allowed_cores
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.plan_copies import whole_on
from moelab.domain.trace import NO_EXPERT, Trace
from moelab.domain.units import GB
from moelab.kernels import ExpertLayout, Pool, RoutedExperts, read_once
from moelab.kernels.pieces import num_units
from moelab.planner import empty
from moelab.policies.signature import ADMIT, EVICT
from moelab.simulator.simulate import simulate

POLICIES = ("lru", "admit_ema_lfu", "second_touch")
CAPACITIES = (0.125, 0.25)
BATCHES = (1, 4)
NUM_STEPS = 24
_WARM_STEPS = 64
_COPIES_ALONE = 4


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
        beside: dict[tuple, list[np.ndarray]] = {key: [] for key in keys}
        with Uploader(slots, cores[-1]) as uploader:
            block_of = [[arena.copy(expert, 0) for expert in range(num_experts)] for arena in arenas]

            def blocks(layer: int, experts: list[int]) -> list[np.ndarray]:
                return [block_of[layer][expert] for expert in experts]

            def read_alone() -> float:
                """GB/s of a read loop while nothing else runs; a read follows a read, as in the calibration."""
                calls = []
                for _ in range(3):
                    chosen = arenas[0].addresses[rng.permutation(num_experts)[:4]]
                    calls.append(timed(read_once, chosen, layout.expert_bytes, loop, pool))
                return 4 * layout.expert_bytes / float(np.median(calls[1:])) / GB

            def copied_alone() -> float:
                """GB/s of copies while nothing else runs; the first of them waits for the thread to wake."""
                first = uploader.num_done
                uploader.put(blocks(0, rng.permutation(num_experts)[: 1 + _COPIES_ALONE].tolist()))
                uploader.wait()
                return layout.expert_bytes / float(np.median(np.diff(uploader.ends[first:]))) / GB

            def read_beside() -> np.ndarray:
                """GB/s of a read loop and of the copies while both run, of the copies alone, of the read loop alone."""
                num_copies = 6
                calls: list[float] = []
                while not calls:  # small experts are copied before one call ends: copy more of them
                    first, begin = uploader.num_done, time.perf_counter()
                    uploader.put(blocks(0, rng.integers(0, num_experts, num_copies).tolist()))
                    while not uploader.idle:
                        start = time.perf_counter()
                        ids = rng.permutation(num_experts)[:2]
                        read_once(arenas[0].addresses[ids], layout.expert_bytes, loop, pool)
                        if not uploader.idle:
                            calls.append(time.perf_counter() - start)
                    num_copies *= 2
                copy_s = float(np.median(np.diff([begin, *uploader.ends[first:]])[1:-1]))
                read_gb_per_s = 2 * layout.expert_bytes / float(np.median(calls)) / GB
                return np.array([read_gb_per_s, layout.expert_bytes / copy_s / GB, copied_alone(), read_alone()])

            def run(key: tuple[str, float, int]) -> float:
                before = read_beside()
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
                beside[key].append((before + read_beside()) / 2)
                return seconds_of_steps

            cases: dict[str, Callable[[], float]] = {str(key): partial(run, key) for key in keys}
            values = in_rounds(cases, seconds=seconds, seed=seed)
    cells = []
    for key in keys:
        policy, capacity, batch = key
        rates = beside[key][1:]
        predicted, naive = zip(*(predict(work[key], times, *rate) for rate in rates), strict=True)
        cells.append(
            Cell(
                plan="one node and a link", policy=policy, capacity=capacity, batch=batch, num_steps=NUM_STEPS,
                measured_s=values[str(key)], predicted_s=np.array(predicted), naive_s=np.array(naive), link=True,
            )
        )  # fmt: skip
    return cells


def predict(
    decided: Decided, times: ExpertTimes, read_gb_per_s: float, copy_gb_per_s: float, alone_gb_per_s: float,
    read_alone_gb_per_s: float,
) -> tuple[float, float]:  # fmt: skip
    """(seconds by the contention model, seconds of total bytes over what read loop and copies reach together).

    The rates are of a read loop and of copies while both run, of copies alone and of the read loop alone. Experts of
    several tokens count as the bytes that take as long.
    """
    assert times.uploads is not None
    shape = (len(decided.misses), len(decided.misses[0]))
    one_s = float(whole_expert_s(times, 1))
    miss, upload, read, overhead = np.zeros(shape), np.zeros(shape), np.zeros(shape), 0.0
    for step, of_step in enumerate(decided.misses):
        for layer, ids in enumerate(of_step):
            found, counts = np.unique(ids, return_counts=True)
            counts = counts[found != NO_EXPERT]
            miss[step, layer] = float(whole_expert_s(times, counts).sum()) / one_s
            read[step, layer] = len(counts)
            upload[step, layer] = len(decided.admitted[step][layer])
            overhead += times.layer_s + times.token_s * len(ids) if len(counts) else 0.0
    size = times.expert_bytes
    calibrated_s, now_s, beside_read_s = (
        size / (rate * GB) for rate in (times.read_gb_per_s, read_alone_gb_per_s, read_gb_per_s)
    )
    kernel_gb_per_s = size / float(with_reads(one_s, calibrated_s, now_s, times.sharpness)) / GB
    slower_s = with_reads(one_s, calibrated_s, max(now_s, beside_read_s), times.sharpness)
    beside_s = float(slower_s) / times.uploads.kernel_share
    home = max(read_alone_gb_per_s, kernel_gb_per_s, alone_gb_per_s)
    rates = Rates(
        read_gb_per_s=home, efficiency=kernel_gb_per_s / home, link_gb_per_s=alone_gb_per_s,
        layer_overhead_s=overhead / miss.size,
        measured_shared=(size / beside_s / GB, copy_gb_per_s * times.uploads.upload_share),
        link_start_s=times.uploads.start_s,
    )  # fmt: skip
    predicted = float(hybrid(miss * size, np.zeros(shape), upload * size, rates).step_s.sum())
    return predicted, float((read.sum() + upload.sum()) * size / ((read_gb_per_s + copy_gb_per_s) * GB))
