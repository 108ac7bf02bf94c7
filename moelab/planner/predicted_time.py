"""predicted_time: milliseconds of layer-steps under a placement, from what the machine was measured to take.  Floor 3.

``step_maximum`` counts in experts, the nodes' rates apart; here contention, overheads and the kernels' own times are in
(``cost_model.node_time``). Nodes beyond those that the machine has are ``composed``. Without calibrated times of the
expert shape there is no prediction by time.
"""

from __future__ import annotations

import numpy as np

from moelab.cost_model.node_time import layer_steps_s, read_layer_steps_s
from moelab.domain.expert_times import SAME_RATE, ExpertTimes
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import NodeProblem
from moelab.planner.step_entries import step_entries


def times_for(problem: NodeProblem) -> ExpertTimes | None:
    """Calibrated times of the problem's expert shape, node by node; ``None`` where the machine has none.

    Nodes beyond those that the machine has are all as its first.
    """
    machine = problem.machine
    times = None if machine is None else machine.times_of(problem.header.hidden_size, problem.intermediate)
    if times is None or not is_composed(problem):
        return times
    return times.model_copy(update={"nodes": (), "scaled_by": None})


def is_composed(problem: NodeProblem) -> bool:
    """More nodes than were calibrated together: predicted as nodes that run in turn and share nothing."""
    return problem.machine is not None and problem.num_nodes > len(problem.machine.nodes)


def how_nodes(problem: NodeProblem) -> str:
    """What ``predicted_by`` says of the nodes: composed, or others than those that rates were given for."""
    if is_composed(problem):
        return ", nodes composed"
    machine, said = problem.machine, problem.rates_said
    rates = [] if machine is None else [node.best_read_gb_per_s for node in machine.nodes[: problem.num_nodes]]
    if said is None or None in rates:
        return ""
    off = np.array(said) / np.array(rates, np.float64)
    return ", of the machine's nodes, not of the node_rates given" if off.max() > (1 + SAME_RATE) * off.min() else ""


def how_fast_tiers(problem: NodeProblem, *, in_it: bool) -> str:
    """What ``predicted_by`` says of fast tiers; ``in_it``: their time counts where their rates are known."""
    if len(problem.tiers) == problem.num_nodes:
        return ""
    known = in_it and not problem.how["fast_rates"].startswith("unknown")
    return ", fast tiers by their rates" if known else ", fast tiers taken as infinitely fast"


def predicted_layer_steps_s(
    problem: NodeProblem, steps: LayerSteps, masks: np.ndarray, times: ExpertTimes
) -> np.ndarray:
    """float64 [layer-steps of ``steps``], with their mean tokens of an expert; what fast tiers serve is not in it."""
    entries = step_entries(steps, masks, problem.times, problem.piece_units).of_nodes(problem.num_nodes)
    tokens = np.full(len(entries.step), steps.tokens_of_expert)
    per_step = steps.sizes * steps.tokens_of_expert / problem.header.top_k
    return layer_steps_s(
        times, step=entries.step, node=entries.node, part=entries.part, num_tokens=tokens, tokens_of_step=per_step,
        num_nodes=problem.num_nodes, in_turn=is_composed(problem),
    )  # fmt: skip


def ms_per_step_by_rates(problem: NodeProblem, masks: np.ndarray) -> float | None:
    """Of one step through all layers, on the scoring steps, from bytes, read rates and what contention leaves of them.

    As ``simulate`` says where the machine was not calibrated for the shape. ``None`` without rates or bytes, for more
    nodes than the machine has, and beside fast tiers, whose time is not in it.
    """
    machine, steps, num_nodes = problem.machine, problem.test, problem.num_nodes
    if machine is None or not problem.has_bytes or num_nodes != len(machine.nodes) or num_nodes < len(problem.tiers):
        return None
    known = [rate for node in machine.nodes if (rate := node.best_read_gb_per_s) is not None]
    if len(known) < num_nodes:
        return None
    entries = step_entries(steps, masks, problem.times, problem.piece_units)
    num_bytes = entries.part * problem.tier_bytes[0][entries.key // problem.header.num_experts]
    cell = entries.step.astype(np.int64) * num_nodes + entries.node
    reads = np.bincount(cell, num_bytes, steps.num_layer_steps * num_nodes).reshape(-1, num_nodes)
    shares = [machine.read_share_of_nodes(busy) for busy in range(1, num_nodes + 1)]
    seconds = read_layer_steps_s(reads, read_gb_per_s=known, shares=shares) + (machine.layer_overhead_s or 0.0)
    return float(1e3 * seconds.mean() * problem.header.num_layers)


def predicted_ms_per_step(problem: NodeProblem, masks: np.ndarray, steps: LayerSteps | None = None) -> float | None:
    """Of one step through all layers, on the scoring steps unless others are given; ``None`` without times."""
    times = times_for(problem)
    if times is None:
        return None
    seconds = predicted_layer_steps_s(problem, problem.test if steps is None else steps, masks, times)
    return float(1e3 * seconds.mean() * problem.header.num_layers)
