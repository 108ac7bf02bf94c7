"""The quick probe that every command falls back on where nothing was calibrated. Floor 3.

Knows how to fill a ``Machine`` with a read rate, the kernels' efficiency and the overhead of a layer
call, in a few seconds. Does not fit contention or several nodes; a probe says ``source: probe``.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

import numpy as np

from moelab.domain.free_memory import free_memory_bytes
from moelab.domain.machine import Machine
from moelab.domain.units import GB
from moelab.kernels import Activation, ExpertArena, ExpertLayout, Pool, RoutedExperts, choose_isa, read_limit, read_once
from moelab.kernels.generated import fill_expert

_PROBE_BYTES = 600_000_000
_PROBE_SHAPE = (7168, 2048)  # K2's expert: H, I
_TINY_SHAPE = (64, 32)  # so little work that a call is overhead alone


def quick_probe(*, isa: str | None = None, activation: Activation = "int8", seconds: float = 1.5) -> Machine:
    """Read rate, kernel efficiency and layer overhead of this machine.

    Reads and kernels alternate over the same generated experts (K2's shape, int4), at most 600 MB of
    them or a quarter of the free memory, so that both see the same moment of a shared machine.
    """
    machine = Machine.detect()
    layout = ExpertLayout(*_PROBE_SHAPE, "int4_g32")
    memory = min(_PROBE_BYTES, free_memory_bytes() // 4)
    num_experts = max(2, min(memory // layout.expert_bytes, 24))
    chosen = choose_isa(isa).isa
    with Pool() as pool, ExpertArena(layout, num_experts) as arena:

        def fill(worker: int, num_workers: int) -> None:
            for expert in range(worker, num_experts, num_workers):
                fill_expert(arena[expert], layout, seed=expert)

        pool.run(fill)
        routed = RoutedExperts(layout, arena.addresses, isa=chosen, activation=activation, pool=pool)
        best = read_limit(arena.addresses, layout.expert_bytes, pool, rounds=2)
        rng = np.random.default_rng(0)
        top_k = min(8, num_experts)
        x = rng.standard_normal((1, layout.hidden_size)).astype(np.float32)
        gates = np.full((1, top_k), 1 / top_k, np.float32)
        read_rates: list[float] = []
        efficiencies: list[float] = []
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop or len(read_rates) < 4:
            ids = rng.choice(num_experts, (1, top_k), replace=False)
            start = time.perf_counter()
            routed.forward(x, ids, gates)
            kernel_s = time.perf_counter() - start
            read_s = read_once(arena.addresses[ids[0]], layout.expert_bytes, best.loop, pool)
            read_rates.append(top_k * layout.expert_bytes / read_s / GB)
            efficiencies.append(read_s / kernel_s)
        overhead_s = layer_overhead_s(pool, chosen, activation)
    node = machine.nodes[0].model_copy(update={"read_gb_per_s": {pool.num_workers: float(np.median(read_rates[1:]))}})
    return machine.model_copy(
        update={
            "source": "probe",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "nodes": (node, *machine.nodes[1:]),
            "kernel_efficiency": {
                f"{chosen}/int4_g32/{activation}": min(1.0, float(np.median(efficiencies[1:])))
            },  # more is noise
            "layer_overhead_s": overhead_s,
        }
    )


def layer_overhead_s(pool: Pool | None, isa: str, activation: Activation, calls: int = 300) -> float:
    """Median time of a layer call with next to no work (seconds)."""
    layout = ExpertLayout(*_TINY_SHAPE, "int4_g32")
    with ExpertArena(layout, 4) as arena:
        for e in range(4):
            fill_expert(arena[e], layout, seed=e)
        routed = RoutedExperts(layout, arena.addresses, isa=isa, activation=activation, pool=pool)
        x = np.ones((1, layout.hidden_size), np.float32)
        ids, gates = np.arange(4)[None], np.full((1, 4), 0.25, np.float32)
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            routed.forward(x, ids, gates)
            times.append(time.perf_counter() - start)
    return float(np.median(times))
