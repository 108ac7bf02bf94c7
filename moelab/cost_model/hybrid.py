"""hybrid: time of layer-steps with a fast tier, a CPU that reads its misses, and uploads beside both.  Floor 1.

    layer-step = overhead + max(fast tier: bytes of the hits / its read rate,
                                CPU: max(bytes of the misses / its share of the memory, flops / flop rate))

Uploads leave over the link while the CPU reads: every byte is read from the same memory, so while the link is busy the
two share it, max-min fairly: both get what they ask for if it fits; else a small asker gets all it asks for and the
other the rest, and two large ones half each. Speculative copies (prefetches) are uploads that nobody may use; they are
charged alike. Copies are asynchronous and in order, and residency follows the logical clock: what a layer admits
counts as resident at its next request, so that a layer-step waits until what its layer admitted one step before has
arrived (``wait_s``; a live engine reads such late experts at home instead). A link that has nothing to do begins
``link_start_s`` after it is asked, and reads nothing until then.

Steps are the trace's own: a batch brings the union of its tokens' experts. Formulas: facts of hybrid inference as in
Fiddler (Kamahori et al. 2024, arXiv 2402.07033) and KTransformers (Chen et al. 2025), with contention for the memory as
one fluid. Does not know: attention beyond ``layer_overhead_s``, several nodes (there the slowest decides), latencies of
single copies, experts of one step that differ in tokens (flops and bytes are those of the whole step), caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import types

from moelab.compiled_on_use import on_use
from moelab.domain.units import GB

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rates:
    """What the machine can do. GB/s, seconds, GFLOP/s; ``None``: infinitely fast, and said so in the result.

    ``measured_shared``: (CPU, link) GB/s while both are busy, where that was measured; otherwise max-min fair shares.
    ``read_gb_per_s`` of the home memory by a read loop; ``efficiency`` what the CPU's expert kernels reach of it;
    ``link_gb_per_s`` of the uploads, ``link_start_s`` from asking an idle link to its first byte;
    ``fast_read_gb_per_s`` of the fast tier's memory.
    """

    read_gb_per_s: float
    efficiency: float = 1.0
    link_gb_per_s: float | None = None
    fast_read_gb_per_s: float | None = None
    layer_overhead_s: float = 0.0
    cpu_gflop_per_s: float | None = None
    measured_shared: tuple[float, float] | None = None
    link_start_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("read_gb_per_s", "efficiency", "link_gb_per_s", "fast_read_gb_per_s", "cpu_gflop_per_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, expected more than 0: measure it or leave it out")
        if self.measured_shared is not None and not min(self.measured_shared) > 0:
            raise ValueError(f"measured_shared is {self.measured_shared}, expected two rates above 0")
        if self.efficiency > 1:
            raise ValueError(f"efficiency is {self.efficiency}, expected at most 1 (kernel rate / read rate)")
        for name in ("layer_overhead_s", "link_start_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")

    @property
    def cpu_gb_per_s(self) -> float:
        """What the CPU's kernels read while nothing else does."""
        return self.read_gb_per_s * self.efficiency

    def shared(self) -> tuple[float, float]:
        """(CPU, link) GB/s while both are busy: as measured, else max-min fair shares of the memory."""
        if self.measured_shared is not None:
            return self.measured_shared
        cpu, memory = self.cpu_gb_per_s, self.read_gb_per_s
        link = min(memory if self.link_gb_per_s is None else self.link_gb_per_s, memory)
        if cpu + link <= memory:
            return cpu, link
        half = memory / 2
        if link <= half:
            return memory - link, link
        if cpu <= half:
            return cpu, memory - cpu
        return half, half


@dataclass(frozen=True, eq=False)
class HybridTime:
    """Seconds of every layer-step, all [S, L]; ``layer_s`` is wait + overhead + max(cpu, fast).

    ``drain_s``: what the link still copies after the last layer-step, outside all of them.
    """

    layer_s: np.ndarray
    cpu_s: np.ndarray
    fast_s: np.ndarray
    wait_s: np.ndarray
    drain_s: float
    rates: Rates

    @property
    def step_s(self) -> np.ndarray:
        """float64 [S]."""
        return self.layer_s.sum(1)

    def to_frame(self) -> pd.DataFrame:
        """One row for each layer-step, milliseconds."""
        import pandas as pd

        num_steps, num_layers = self.layer_s.shape
        columns = {
            "step": np.repeat(np.arange(num_steps), num_layers), "layer": np.tile(np.arange(num_layers), num_steps),
        }  # fmt: skip
        parts = {"ms": self.layer_s, "cpu_ms": self.cpu_s, "fast_ms": self.fast_s, "wait_ms": self.wait_s}
        return pd.DataFrame(columns | {name: 1e3 * seconds.ravel() for name, seconds in parts.items()})

    def __repr__(self) -> str:
        each_ms = 1e3 * self.step_s.mean() if len(self.layer_s) else 0.0
        return (
            f"HybridTime({len(self.layer_s)} steps, {each_ms:.4g} ms each: "
            f"CPU {self.cpu_s.sum():.4g} s, fast tier {self.fast_s.sum():.4g} s, waiting {self.wait_s.sum():.4g} s)"
        )


def hybrid(miss_bytes: Any, fast_bytes: Any, upload_bytes: Any, rates: Rates, *, cpu_gflop: Any = 0.0) -> HybridTime:
    """Time of consecutive layer-steps, in the order in which they ran; all arrays [S, L], in bytes.

    ``miss_bytes`` the CPU reads at home, ``fast_bytes`` the fast tier reads of what is resident, ``upload_bytes``
    copied there because of this layer-step, prefetches too, as the link and the home memory carry them; ``cpu_gflop``
    computed on the CPU (``rates.cpu_gflop_per_s``). Raises ``ValueError`` for shapes that differ or negative bytes.
    """
    named = {"miss_bytes": miss_bytes, "fast_bytes": fast_bytes, "upload_bytes": upload_bytes, "cpu_gflop": cpu_gflop}
    shape = np.shape(miss_bytes)
    arrays = {}
    for name, value in named.items():
        array = np.asarray(value, np.float64)
        if len(shape) != 2 or (array.shape != shape and array.ndim):
            raise ValueError(f"{name} is {array.shape}, expected [steps, layers] as the others: {shape}")
        if (array < 0).any() or not np.isfinite(array).all():
            raise ValueError(f"{name} holds {array.min()}, expected finite numbers of 0 or more")
        arrays[name] = np.array(np.broadcast_to(array, shape))
    infinite = float("inf")
    cpu_shared, link_shared = rates.shared()
    link = min(rates.read_gb_per_s, infinite if rates.link_gb_per_s is None else rates.link_gb_per_s)
    fast_s = arrays["fast_bytes"] / ((rates.fast_read_gb_per_s or infinite) * GB)
    compute_s = arrays["cpu_gflop"] / (rates.cpu_gflop_per_s or infinite)
    cpu_s, wait_s = np.empty(shape), np.empty(shape)
    left_s = _run(
        arrays["miss_bytes"], arrays["upload_bytes"], fast_s, compute_s, float(rates.layer_overhead_s),
        float(rates.cpu_gb_per_s * GB), float(cpu_shared * GB), float(link_shared * GB), float(link * GB),
        float(rates.link_start_s), cpu_s, wait_s,
    )  # fmt: skip
    layer_s = wait_s + rates.layer_overhead_s + np.maximum(cpu_s, fast_s)
    return HybridTime(layer_s, cpu_s, fast_s, wait_s, float(left_s), rates)


_f64, _table = types.float64, types.float64[:, ::1]


@on_use(_f64(_table, _table, _table, _table, _f64, _f64, _f64, _f64, _f64, _f64, _table, _table))
def _run(
    miss_bytes, upload_bytes, fast_s, compute_s, overhead_s, cpu_rate, cpu_shared, link_shared, link_rate, start_s,
    cpu_s, wait_s,
):  # fmt: skip
    """Fill ``cpu_s`` and ``wait_s``; return the seconds that the link still needs at the end. Rates in bytes/s."""
    num_steps, num_layers = miss_bytes.shape
    backlog = 0.0  # of the link, bytes
    recent = 0.0  # what the last L - 1 layer-steps put on it: need not have arrived yet
    idle_s = 0.0  # until the link begins with what it was asked for
    for step in range(num_steps):
        for layer in range(num_layers):
            wait_s[step, layer] = 0.0
            if step > 0:
                if num_layers > 1:
                    recent -= upload_bytes[step - 1, layer]
                late = backlog - max(0.0, recent)
                if late > 0:
                    wait_s[step, layer] = idle_s + late / link_rate
                    backlog -= late
                    idle_s = 0.0
            before_s = min(idle_s, overhead_s)
            idle_s -= before_s
            backlog = max(0.0, backlog - (overhead_s - before_s) * link_rate)
            if backlog == 0.0 and upload_bytes[step, layer] > 0:
                idle_s = start_s
            backlog += upload_bytes[step, layer]
            if num_layers > 1:
                recent += upload_bytes[step, layer]
            # Alone until the link begins, shared while both are busy; then the CPU has the memory for itself again.
            before_s = min(idle_s, miss_bytes[step, layer] / cpu_rate)
            idle_s -= before_s
            miss = max(0.0, miss_bytes[step, layer] - before_s * cpu_rate)
            together_s = min(backlog / link_shared, miss / cpu_shared) if idle_s == 0.0 else 0.0
            alone = miss - together_s * cpu_shared
            backlog -= together_s * link_shared
            cpu_s[step, layer] = max(before_s + together_s + max(0.0, alone) / cpu_rate, compute_s[step, layer])
            rest_s = max(cpu_s[step, layer], fast_s[step, layer]) - before_s - together_s
            before_s = min(idle_s, rest_s)
            idle_s -= before_s
            backlog = max(0.0, backlog - (rest_s - before_s) * link_rate)
    return idle_s + backlog / link_rate
