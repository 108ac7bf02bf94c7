"""One replay: simulate under the plan, predict, execute, compare. Floor 4.

Row ``own`` runs the model's own routed experts, row ``expert_shape`` the same routing at another
model's expert shape with generated weights. Each is predicted before it is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from moelab.calibration import resolve_machine
from moelab.domain.free_memory import free_memory_bytes
from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.domain.node_slowness import NodeSlowness, node_slowness
from moelab.domain.plan import Plan
from moelab.domain.plan_copies import Copies
from moelab.domain.trace import Phase, Trace
from moelab.execution.calibrated import calibrated_steps, times_for
from moelab.execution.check import check_bytes, max_relative_error
from moelab.execution.deciding_bytes import deciding_bytes, slowness_here
from moelab.execution.execute import execute, prepare
from moelab.execution.folding import Folding, fold_to_memory
from moelab.execution.peak_memory import PeakMemory
from moelab.execution.placement import place_on_nodes
from moelab.execution.planned import plan_for, policy_label, scored_part
from moelab.execution.prediction import Prediction, predict_row
from moelab.execution.recorded_checkpoint import recorded_checkpoint
from moelab.execution.result import ReplayResult, ReplayRow
from moelab.execution.row import assemble
from moelab.execution.run import Run
from moelab.execution.steps import take_steps
from moelab.execution.weights import ReplayWeights, generated, own
from moelab.kernels import Activation, ExpertLayout, Pool, choose_isa, read_limit
from moelab.kernels.job import GROUP
from moelab.kernels.plan_nodes import virtual_nodes_for
from moelab.kernels.reference import TOLERANCES
from moelab.simulator.simulate import simulate

DEFAULT_EXPERT_SHAPE = "kimi-k2.6"
_SECONDS_OF_ROW = {"own": 3.0, "expert_shape": 10.0}
_GENERATION_S = 15.0  # a machine that hands out memory slowly runs fewer layers
_SAMPLES_OF_ROW = {"own": 12, "expert_shape": 1}


def replay(
    trace: Trace,
    plan: Plan | None = None,
    *,
    phase: str | None = None,
    machine: Machine | str | None = None,
    model_dir: str | Path | None = None,
    expert_shape: str | None = None,
    tokens: int | None = None,
    isa: str | None = None,
    activation: Activation | None = None,
    num_workers: int | None = None,
    virtual_nodes: int | None = None,
    trace_name: str | None = None,
    plan_name: str | None = None,
    progress: bool = True,
    on_prediction: Callable[[str, Prediction], None] = lambda name, prediction: None,
) -> ReplayResult:
    """Execute the routed experts of ``trace`` in trace order, prediction beside measurement.

    ``plan`` (default: a frequency plan) describes the simulated fast tier; experts run from RAM. Only
    tokens of ``phase`` (``decode``, ``prefill``, ``None``: all) are executed; the simulation sees all of
    the scored requests and counts that phase. ``model_dir`` is the checkpoint whose own weights row
    ``own`` runs (default: nano for its own traces; without a checkpoint the row is left out and a note
    says so). ``expert_shape`` is a model preset, or ``own`` for row ``own`` alone (default: both rows, at
    K2.6's shape). ``tokens`` bounds the tokens run (default: as many as about 10 seconds take).
    ``machine`` gives the rates of the prediction, and where it was calibrated for a row's kernel, shape and nodes a
    second prediction by those times; cache and memory sizes are always those of this machine.
    ``virtual_nodes`` divides cores and memory of this machine into so many nodes; a plan of more nodes than the machine
    has gets as many without being asked, and a note says so. On several nodes, real or virtual,
    every expert has its place (the plan's, else round-robin) and is read by its own node's workers; of several copies
    dispatch takes one by the rates that the plan was made for, else by ``machine``'s (``slowness_of`` of the row); the
    outputs are the same bit for bit. Only native ISAs know nodes.
    ``on_prediction`` receives each prediction before its row is measured, and ``predictions`` of the result
    keeps it with its time. Raises ``ValueError`` for a plan or checkpoint of another model, or retrained weights,
    ``MemoryError`` where the weights cannot be larger than the cache.
    """
    started = time.perf_counter()
    header, machine = trace.header, Machine.given(machine)
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens is {tokens}, expected at least 1")
    shape = ModelSpec.preset(expert_shape or DEFAULT_EXPERT_SHAPE) if expert_shape != "own" else None
    model_dir, why_not = recorded_checkpoint(header, model_dir)
    if expert_shape == "own" and model_dir is None:
        raise ValueError(f"expert shape is `own`, but {why_not}: give --model or a preset's name")
    plan = plan or plan_for(trace)
    plan.check_matches(
        what="trace", model=header.model, num_layers=header.num_layers, num_experts=header.num_experts,
        top_k=header.top_k, fingerprint=header.model_fingerprint,
    )  # fmt: skip
    chosen = choose_isa(isa)
    if virtual_nodes is not None and virtual_nodes > 1 and chosen.isa == "numba":
        raise ValueError(
            f"virtual_nodes is {virtual_nodes}: expected a native isa, got numba ({chosen.why}), whose workers know no "
            "nodes; choose --isa generic or avx2, or leave --virtual-nodes out"
        )
    asked_nodes = virtual_nodes
    if chosen.isa != "numba":
        virtual_nodes = virtual_nodes_for(plan, asked=virtual_nodes, num_workers=num_workers)
    scored, scored_on = scored_part(trace, plan)
    simulated = simulate(scored, plan, phase=phase, progress=progress)
    if phase is not None:
        trace = trace.phase(Phase[phase.upper()])
    machine = machine or resolve_machine(None, isa=chosen.isa, activation=activation or "int8")
    rows: list[ReplayRow] = []
    predictions: list[dict[str, Any]] = []
    notes = [f"ISA {chosen.isa}: {chosen.why}.", *_notes(trace, why_not, shape)]
    if virtual_nodes is not None and virtual_nodes > 1:
        why = "" if asked_nodes is not None else " taken, because the plan has more nodes than this machine"
        notes.append(
            f"{virtual_nodes} virtual nodes{why}: cores and arenas of this machine divided. They share its memory, so "
            "a node alone may read more than its share, which the prediction does not know."
        )
    with Pool(num_workers, virtual_nodes=virtual_nodes) as pool:
        run = Run(
            trace, plan, simulated, scored_on, machine, Machine.detect(), pool, chosen.isa, tokens,
            trace_name or header.model, plan_name or f"{plan.planner.get('name', 'plan')}, {policy_label(plan)}",
            progress, predictions, notes, on_prediction, _told(plan, machine, pool, chosen.isa),
        )  # fmt: skip
        if model_dir is not None:
            rows.append(_own_row(run, model_dir, activation))
        if shape is not None:
            rows.append(_shape_row(run, shape, activation))
    return ReplayResult(tuple(rows), machine.summary(), tuple(predictions), tuple(notes), time.perf_counter() - started)


def _notes(trace: Trace, why_not_own: str, shape: ModelSpec | None) -> list[str]:
    notes = ["ms/token is of the routed experts alone; attention, dense layers and sampling are not run."]
    notes.append("The fast tier is simulated: its hits run from RAM too, so that every routed expert is measured.")
    if why_not_own:
        notes.append(f"Row (a), the model's own weights, is left out: {why_not_own}.")
    if shape is not None:
        notes.append(
            f"Row (b) has generated weights: its speed is real, its text would not be. A token of it is "
            f"{trace.header.num_layers} layers x {trace.header.top_k} experts of {shape.name}'s shape; {shape.name} "
            f"itself routes {shape.num_moe_layers} x {shape.num_experts_per_tok}."
        )
    if trace.header.synthetic:
        notes.append("The routing is synthetic.")
    return notes


def _own_row(run: Run, model_dir: Path, activation: Activation | None) -> ReplayRow:
    header = run.trace.header
    folding = Folding(
        header.num_layers, header.num_experts, "none: every layer and expert of the trace has its own weights"
    )
    copies, placement = _placement(run, folding, header.moe_intermediate_size)
    weights = own(model_dir, isa=run.isa, activation=activation, pool=run.pool, copies=copies, slowness=run.told.values)
    try:
        return _row("own", run, weights, folding, header.model, header.num_layers, placement)
    finally:
        weights.close()


def _placement(run: Run, folding: Folding, intermediate_size: int | None) -> tuple[list[Copies] | None, str]:
    """Copies of each layer that runs, ``None`` where the kernels do not tell nodes apart."""
    if run.pool.num_nodes == 1 or run.isa == "numba":
        return None, "one node" if run.pool.num_nodes == 1 else "none: Numba workers know no nodes"
    if intermediate_size is None:
        raise ValueError(
            "the trace does not say its experts' intermediate size, which placing them on nodes needs: replay on one "
            "node, or record it again"
        )
    return place_on_nodes(run.plan, folding, run.pool.num_nodes, -(-intermediate_size // GROUP))


def _told(plan: Plan, machine: Machine, pool: Pool, isa: str) -> NodeSlowness:
    """What dispatch is told of the nodes."""
    return NodeSlowness(None, "one node") if isa == "numba" else node_slowness(plan, machine, pool.num_nodes)


def _shape_row(run: Run, shape: ModelSpec, activation: Activation | None) -> ReplayRow:
    header = run.trace.header
    layout = ExpertLayout(shape.hidden_size, shape.moe_intermediate_size, "int4_g32")
    folding = fold_to_memory(
        header.num_layers, header.num_experts, layout.expert_bytes, free_memory_bytes() // 2,
        run.here.last_level_cache_bytes, min_experts=header.top_k,
    )  # fmt: skip
    copies, placement = _placement(run, folding, shape.moe_intermediate_size)
    total = folding.num_layers * folding.num_experts
    with tqdm(total=total, desc="generating experts", unit="expert", disable=not run.progress, leave=False) as bar:
        weights = generated(
            layout,
            folding.num_layers,
            folding.num_experts,
            isa=run.isa,
            activation=activation or "int8",
            pool=run.pool,
            seconds=_GENERATION_S,
            min_bytes=8 * run.here.last_level_cache_bytes,
            copies=copies,
            slowness=run.told.values,
            on_expert=bar.update,
        )
    folding = folding.cut(len(weights.layers))
    try:
        return _row("expert_shape", run, weights, folding, shape.name, header.num_layers, placement)
    finally:
        weights.close()


def _row(
    name: str, run: Run, weights: ReplayWeights, folding: Folding, shape_name: str, layers: int, placement: str
) -> ReplayRow:
    """Predict, tell, measure, check."""
    layout, header, layer = weights.layout, run.trace.header, weights.layers[0]
    cache_bytes = run.here.last_level_cache_bytes
    cache_resident = weights.weights_bytes < cache_bytes
    kernel = f"{run.isa}/{layout.weight_format}/{layer.activation}"
    cache_rate = _cache_read_gb_per_s(weights, header.top_k) if cache_resident else None
    times = None if cache_resident else times_for(run.machine, weights, run.pool, kernel)
    slowness, slowness_of = slowness_here(run.machine, run.pool, in_cache=cache_resident)
    peak = PeakMemory()

    def work_of(tokens: int):
        steps = take_steps(run.trace, tokens)
        work = prepare(run.trace, steps, folding, layout.hidden_size, layout.expert_bytes)
        return work, predict_row(
            run.machine, step_bytes=deciding_bytes(weights, work, slowness),
            step_tokens=np.array([len(ids) for ids in work.ids]), num_layers=folding.num_layers, kernel=kernel,
            cache_read_gb_per_s=cache_rate, slowness_of=slowness_of if weights.num_nodes > 1 else "one node",
            calibrated=None if times is None else calibrated_steps(times, weights, work),
        )  # fmt: skip

    work, prediction = work_of(run.tokens or 64)
    if run.tokens is None:  # as many as the time allows, a paired read beside each
        budget_ms = 1e3 * _SECONDS_OF_ROW[name] / 2
        work, prediction = work_of(max(16, int(budget_ms / prediction.ms_per_token())))
    run.predictions.append(prediction.to_dict(name))
    run.on_prediction(name, prediction)
    if not prediction.efficiency_measured and not cache_resident:
        run.notes.append(f"{name}: machine {run.machine.name} has no efficiency for {kernel}; 1 is assumed, a ceiling.")
    seconds = 1.5 * _SECONDS_OF_ROW[name] if run.tokens is None else None
    with tqdm(
        total=len(work.ids), desc=f"replaying, {name}", unit="step", disable=not run.progress, leave=False
    ) as bar:
        measured = execute(weights, work, run.pool, seconds=seconds, samples=_SAMPLES_OF_ROW[name], on_step=bar.update)
    tolerance = TOLERANCES[layout.weight_format, layer.activation]
    check_bytes(weights, work, measured)
    worst = max_relative_error(weights, work, measured, tolerance)
    return assemble(
        name, run, weights, folding, shape_name, layers, placement, cache_resident, prediction, measured, worst,
        tolerance, peak.peak_bytes(),
    )  # fmt: skip


def _cache_read_gb_per_s(weights: ReplayWeights, top_k: int) -> float:
    """GB/s at which the kernels' workers read these very weights, all of them in the cache by then."""
    expert_bytes = weights.layout.expert_bytes
    addresses = np.concatenate([arena.addresses for arena in weights.arenas])
    return read_limit(addresses, expert_bytes, weights.layers[0].workers(top_k), rounds=5).gb_per_s
