"""Measures this machine: the quick probe that every command falls back on. Floor 3.

Knows how to fill a ``Machine`` with a read rate, the kernels' efficiency and the overhead of a layer
call, in a few seconds. Where a calibration wrote ``machine.json`` into the user's cache folder, that
is used instead. Does not fit contention or several nodes; a probe says ``source: probe``.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
from platformdirs import user_cache_path

from moelab.domain.machine import Machine
from moelab.domain.machine_presets import GPUS
from moelab.domain.units import GB
from moelab.kernels import Activation, ExpertArena, ExpertLayout, Pool, RoutedExperts, choose_isa, read_limit, read_once
from moelab.kernels.generated import fill_expert

_PROBE_BYTES = 600_000_000
_PROBE_SHAPE = (7168, 2048)  # K2's expert: H, I
_TINY_SHAPE = (64, 32)  # so little work that a call is overhead alone


def machine_file() -> Path:
    """Where a calibration is kept: ``machine.json`` in the user's cache folder."""
    return user_cache_path("moelab") / "machine.json"


def resolve_machine(
    name: str | Path | None = None, *, isa: str | None = None, activation: Activation = "int8"
) -> Machine:
    """The machine that a command means.

    ``name`` is a machine file or a preset; without it the calibration of this machine, else the quick
    probe (about three seconds). Raises ``ValueError`` for an unknown name.
    """
    if name is not None:
        if Machine.is_preset(str(name)):
            return Machine.preset(str(name))
        if Path(name).is_file():
            return Machine.load(name)
        raise ValueError(
            f"--machine is {name}: expected a machine file or one of the presets {', '.join(Machine.presets())}, "
            f"alone or with a GPU beside it, such as +rtx-4090 or +2x-h200 ({', '.join(GPUS)})"
        )
    if machine_file().is_file():
        return Machine.load(machine_file())
    return quick_probe(isa=isa, activation=activation)


def this_machine() -> Machine:
    """This machine, calibrated or probed."""
    return resolve_machine(None)


def quick_probe(*, isa: str | None = None, activation: Activation = "int8", seconds: float = 1.5) -> Machine:
    """Read rate, kernel efficiency and layer overhead of this machine.

    Reads and kernels alternate over the same generated experts (K2's shape, int4), at most 600 MB of
    them or a quarter of the free memory, so that both see the same moment of a shared machine.
    """
    machine = Machine.detect()
    layout = ExpertLayout(*_PROBE_SHAPE, "int4_g32")
    memory = min(_PROBE_BYTES, psutil.virtual_memory().available // 4)
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
        overhead_s = _layer_overhead_s(pool, chosen, activation)
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


def _layer_overhead_s(pool: Pool, isa: str, activation: Activation, calls: int = 300) -> float:
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
