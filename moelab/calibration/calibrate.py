"""calibrate: measure this machine: reads, expert kernels, overheads, nodes at once, copies, link. Floor 3.

Under two minutes. Rounds by turns and medians throughout (``rounds``), a fit by NNLS (``fit``), date and residuals in
the result. What was calibrated before for other kernels and shapes of the same machine stays. Does not know traces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from moelab.calibration.barrier import barrier_s
from moelab.calibration.beside_uploads import beside_uploads
from moelab.calibration.doubts import doubts_of
from moelab.calibration.expert_calls import measure
from moelab.calibration.fit import fit
from moelab.calibration.probe import layer_overhead_s
from moelab.calibration.reads import NodeReads, node_reads
from moelab.calibration.steadiest import steadiest
from moelab.domain.allowed_cores import allowed_cores
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.machine import FastTierDevice, Machine, NumaNode
from moelab.domain.model import ModelSpec
from moelab.domain.units import GB
from moelab.kernels import Activation, ExpertLayout, Pool, WeightFormat, choose_isa
from moelab.kernels.job import ACTIVATIONS_OF_FORMAT
from moelab.kernels.native import library

DEFAULT_SHAPES = ("kimi-k2.6",)
MOST_SECONDS = 100.0
WHOLE_SECONDS = 110.0  # of all tries: under two minutes


def calibrate(
    expert_shapes: Sequence[str] = DEFAULT_SHAPES,
    *,
    virtual_nodes: int | None = None,
    isa: str | None = None,
    weight_format: WeightFormat = "int4_g32",
    activation: Activation | None = None,
    seconds: float = 60.0,
    out: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
    tries: int = 2,
) -> Machine:
    """This machine, measured; written to ``out`` (whole or not at all) where one is named.

    ``expert_shapes``: model presets, or ``HxI``. ``virtual_nodes`` divides the cores of a machine of one node.
    ``seconds`` is about what measuring takes, at most ``MOST_SECONDS``; generating weights comes on top. Where figures
    moved by more than a tenth meanwhile it is all measured again, ``tries`` times at most and while ``WHOLE_SECONDS``
    allow another one; the steadiest stays (``steadiest``).
    What makes the numbers doubtful (``doubts``: a busy machine) stands in ``notes``, how far they moved meanwhile
    beside them (``Spread``): predictions of milliseconds may be off by as much.
    Raises ``ValueError`` for an unknown shape, kernels without the native library, or seconds out of range;
    ``MemoryError`` where the experts do not fit.
    """
    if tries < 1:
        raise ValueError(f"tries is {tries}, expected 1 or more")
    if not 1 <= seconds <= MOST_SECONDS:
        raise ValueError(f"seconds is {seconds}, expected 1 to {MOST_SECONDS:g}: a calibration takes under two minutes")
    chosen = choose_isa(isa).isa
    if library()[0] is None or chosen == "numba":
        raise ValueError(
            f"isa is {chosen}: expected a native one, whose workers know nodes; build the native library (`pip install "
            "-e .`), or leave --machine out and the quick probe serves"
        )
    layouts = [ExpertLayout(*shape_of(each), weight_format) for each in expert_shapes]
    mode = activation or ACTIVATIONS_OF_FORMAT[weight_format][0]
    before = _kept(out)

    def once(number: int) -> Machine:
        again = f" once more ({number + 1} of {tries}), the machine moved" if number else ""
        with tqdm(total=100, desc=f"calibrating{again}", unit="%", disable=not progress, leave=False) as bar:
            return _measured_machine(layouts, virtual_nodes, chosen, mode, seconds, seed + number, bar)

    calibrated = _merged(steadiest(once, tries=tries, most_seconds=WHOLE_SECONDS), before)
    calibrated = calibrated.model_copy(update={"notes": doubts_of(calibrated)})
    if out is not None:
        calibrated.save(out)
    return calibrated


def _measured_machine(
    layouts: Sequence[ExpertLayout], virtual_nodes: int | None, chosen: str, mode: Activation, seconds: float,
    seed: int, bar: tqdm,
) -> Machine:  # fmt: skip
    """All of it, once."""
    machine = _with_nodes(Machine.detect(), virtual_nodes)
    part = seconds / (1 + 2 * len(layouts))
    tell = _progress(bar, num_parts=1 + 2 * len(layouts))
    reads = node_reads(
        virtual_nodes=virtual_nodes, cache_bytes=machine.last_level_cache_bytes, seconds=part, on_round=tell(0)
    )
    times = []
    for number, layout in enumerate(layouts):
        times.append(
            _expert_times(
                layout,
                reads.loop,
                virtual_nodes,
                chosen,
                mode,
                part,
                tell(1 + 2 * number),
                tell(2 + 2 * number),
                seed,
            )
        )
    with Pool(virtual_nodes=virtual_nodes) as pool:
        overhead_s = layer_overhead_s(pool, chosen, mode)
    kernel = f"{chosen}/{layouts[0].weight_format}/{mode}"
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    return machine.model_copy(
        update={
            "source": "calibration",
            "date": today,
            "nodes": tuple(_measured(node, reads, n, machine.nodes) for n, node in enumerate(machine.nodes)),
            "fast_tiers": _fast_tiers(),
            "kernel_efficiency": {kernel: _efficiency(times[0], reads)},
            "layer_overhead_s": overhead_s,
            "barrier_s": barrier_s(chosen, mode),
            "contention": {f"read_share_of_{busy}_nodes": _share(reads, busy) for busy in reads.at_once},
            "residuals": {"reads_spread": reads.spread} | {each.name: each.residual for each in times},
            "expert_times": tuple(each.model_copy(update={"date": today}) for each in times),
        }
    )


def shape_of(name: str) -> tuple[int, int]:
    """(H, I) of a preset or of ``HxI``."""
    first, sign, last = name.partition("x")
    if sign and first.isdigit() and last.isdigit():
        return int(first), int(last)
    spec = ModelSpec.preset(name)
    return spec.hidden_size, spec.moe_intermediate_size


def _progress(bar: tqdm, num_parts: int) -> Callable[[int], Callable[[float], object]]:
    def of_part(number: int) -> Callable[[float], object]:
        return lambda share: bar.update(max(0, int(100 * (number + share) / num_parts) - bar.n))

    return of_part


def _expert_times(
    layout: ExpertLayout, loop: int, virtual_nodes: int | None, isa: str, activation: Activation, seconds: float,
    on_round: Callable[[float], object], on_upload_round: Callable[[float], object], seed: int,
) -> ExpertTimes:  # fmt: skip
    with Pool(virtual_nodes=virtual_nodes) as pool:
        calls = measure(
            layout, pool, isa=isa, activation=activation, loop=loop, seconds=seconds, on_round=on_round, seed=seed
        )
    times = fit(calls, f"{isa}/{layout.weight_format}/{activation}")
    cores = allowed_cores()
    if len(cores) < 2:
        return times
    uploads = beside_uploads(
        times, layout, core=cores[-1], isa=isa, activation=activation, loop=loop, seconds=seconds / 2,
        on_round=on_upload_round, seed=seed,
    )  # fmt: skip
    return times.model_copy(update={"uploads": uploads})


def _with_nodes(machine: Machine, virtual_nodes: int | None) -> Machine:
    """The nodes that have cores, or so many virtual ones with equal shares of cores and memory."""
    if virtual_nodes is None:
        return machine.model_copy(update={"nodes": tuple(node for node in machine.nodes if node.cores)})
    cores = [core for node in machine.nodes for core in node.cores]
    memory = sum(node.memory_bytes for node in machine.nodes) // virtual_nodes
    bounds = np.linspace(0, len(cores), virtual_nodes + 1).astype(int)
    nodes = [
        NumaNode(name=f"node{n}", cores=tuple(cores[bounds[n] : bounds[n + 1]]), memory_bytes=memory)
        for n in range(virtual_nodes)
    ]
    return machine.model_copy(update={"nodes": tuple(nodes), "virtual": True})


def _measured(node: NumaNode, reads: NodeReads, number: int, nodes: Sequence[NumaNode]) -> NumaNode:
    if number >= len(reads.by_threads):
        return node
    remote = {nodes[other].name: rate for other, rate in reads.remote[number].items()}
    measured = {
        "read_gb_per_s": reads.by_threads[number], "remote_read_gb_per_s": remote,
        "read_gb_per_s_spread": reads.spread_of_node[number],
    }  # fmt: skip
    return node.model_copy(update=measured)


def _share(reads: NodeReads, busy: int) -> float:
    """Of what the nodes read alone, while so many read at once."""
    alone = float(np.mean([max(rates.values(), default=0.0) for rates in reads.by_threads[:busy]]))
    return float(min(1.0, reads.at_once[busy] / alone))


def _efficiency(times: ExpertTimes, reads: NodeReads) -> float:
    """Kernels over reads, one node alone; more than 1 is noise."""
    rate = times.expert_bytes / times.expert_s[1] / GB if times.expert_s[1] else np.inf
    return float(min(1.0, rate / max(reads.by_threads[0].values())))


def _fast_tiers() -> tuple[FastTierDevice, ...]:
    """GPUs with their links; none without torch or a device."""
    from moelab.engine.link_rate import link_rates

    return tuple(
        FastTierDevice(
            name=f"fast{each.index}", device=each.device, memory_bytes=each.memory_bytes,
            read_gb_per_s=each.read_gb_per_s, link_gb_per_s=each.link_gb_per_s,
        )
        for each in link_rates()
    )  # fmt: skip


def _kept(out: str | Path | None) -> Machine | None:
    """What stands there; raises ``ValueError`` for a file that is no machine, so that nothing else is overwritten."""
    return Machine.load(out) if out is not None and Path(out).exists() else None


def _merged(new: Machine, before: Machine | None) -> Machine:
    """With the times of other kernels and shapes that were calibrated on the same nodes of the same machine, on their
    own date."""
    if before is None or (before.name, before.cpu, before.virtual) != (new.name, new.cpu, new.virtual):
        return new
    if [node.cores for node in before.nodes] != [node.cores for node in new.nodes]:
        return new
    names = {each.name for each in new.expert_times}
    kept = tuple(
        each.model_copy(update={"date": each.date or before.date})
        for each in before.expert_times
        if each.name not in names
    )
    return new.model_copy(
        update={
            "expert_times": new.expert_times + kept,
            "kernel_efficiency": before.kernel_efficiency | new.kernel_efficiency,
            "residuals": {each.name: each.residual for each in kept} | new.residuals,
        }
    )
