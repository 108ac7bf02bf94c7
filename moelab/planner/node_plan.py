"""node_plan: a placement over nodes as a Plan, with what it is worth: train and held out, intervals, bound, bytes.

Floor 3. Beside it stand the baselines that need no search, on the same held-out requests, so that every plan says what
it gains over each. Does not know how the placement was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moelab.cost_model.node_time import by_read_rates
from moelab.cost_model.remote_slowdown import remote_slowdown
from moelab.domain.plan import FastTier, Plan, TierFormat
from moelab.planner.eplb_rebalance import packed_masks
from moelab.planner.node_problem import NodeProblem
from moelab.planner.node_score import NodeScore, node_score
from moelab.planner.placements import fingerprints_of, placements_of_masks, plan_model
from moelab.planner.predicted_time import (
    how_fast_tiers,
    how_nodes,
    ms_per_step_by_rates,
    predicted_ms_per_step,
    times_for,
)
from moelab.planner.step_maximum import CUT


def node_plan(
    problem: NodeProblem,
    masks: np.ndarray,
    name: str,
    *,
    seconds: float,
    homes: np.ndarray | None = None,
    parameters: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    slowdown: float | None = 1.0,
    score: bool = True,
) -> Plan:
    """Plan of ``masks`` int64 [L, E] (bit v: tier v serves it, ``CUT``: pieces on all nodes) found in ``seconds``.

    ``homes`` int64 [L, E]: copies on nodes that experts of a fast tier keep and that are not read. ``parameters``: of
    the planner; ``notes`` go into the prediction. ``slowdown``: time of what nodes read over the time of as many local
    bytes; ``None`` where that is not known: then neither time nor gains are predicted. Raises ``ValueError`` where a
    budget is broken or pieces are asked for but the intermediate size is unknown or smaller than the nodes.
    """
    header = problem.header
    _check(problem, masks, homes)
    expert_bytes = problem.tier_bytes if problem.has_bytes else np.zeros_like(problem.tier_bytes)
    held = masks if homes is None else masks | homes
    return Plan(
        model=plan_model(header, problem.intermediate),
        tiers=problem.tiers,
        placements=placements_of_masks(held, len(problem.tiers), problem.piece_units),
        fast_tiers=tuple(
            FastTier(tier=tier, slots=int((held >> index & 1).sum()))
            for index, tier in enumerate(problem.tiers)
            if index >= problem.num_nodes
        ),
        format_of_tier={
            tier: TierFormat(weight_format=problem.weight_format, expert_bytes=tuple(expert_bytes[index].tolist()))
            for index, tier in enumerate(problem.tiers)
        },
        keep_home=problem.keep_home,
        node_rates=problem.rates_said,
        planner={"name": name, **problem.how, **(parameters or {})},
        fingerprints=fingerprints_of(header, problem.trace_fingerprint, problem.machine),
        prediction={
            **(_prediction(problem, masks, homes, slowdown) if score else {}),
            **(notes or {}),
            "seconds": seconds,
        },
    )


def masks_of_plan(plan: Plan) -> np.ndarray:
    """int64 [L, E]: bit v where tier v of ``plan.tiers`` serves the expert whole, ``CUT`` where it is in pieces.

    An expert on a fast tier is served there; its home copy on a node is not read.
    """
    columns = plan.placements.arrays()
    whole = (columns["start"] == 0) & (columns["stop"] == plan.num_units)
    masks = np.zeros((plan.model.num_layers, plan.model.num_experts), np.int64)
    np.bitwise_or.at(masks, (columns["layer"][whole], columns["expert"][whole]), 1 << columns["tier"][whole])
    fast = sum(1 << index for index, tier in enumerate(plan.tiers) if tier.startswith("fast"))
    return np.where(masks & fast, masks & fast, masks)


def _check(problem: NodeProblem, masks: np.ndarray, homes: np.ndarray | None) -> None:
    if (masks == CUT).any() and not problem.can_cut:
        raise ValueError(
            f"experts are to be cut over {problem.num_nodes} nodes, but moe_intermediate_size is "
            f"{problem.intermediate}: give moe_intermediate_size, or a planner of whole experts"
        )
    over = problem.used(masks, homes) - problem.budget
    if (over > 0).any():
        tier = int(np.argmax(over))
        raise ValueError(
            f"the placement holds {over[tier]:,} bytes more on {problem.tiers[tier]} than its budget of "
            f"{problem.budget[tier]:,}: give more extra_memory or node_bytes"
        )


def _prediction(
    problem: NodeProblem, masks: np.ndarray, homes: np.ndarray | None, slowdown: float | None
) -> dict[str, Any]:
    factor = 1.0 if slowdown is None else slowdown
    on_test, on_train = (
        node_score(steps, masks, problem.times, problem.layer_weight).slower(factor)
        for steps in (problem.test, problem.train)
    )
    lower, least = bound(problem, masks), least_part(problem, masks)
    used = problem.used(masks, homes, exact=bool((masks == CUT).any()))
    copies = [int((masks >> tier & 1).sum()) for tier in range(len(problem.tiers))]
    is_held_out = problem.how["split"] != "none"
    prediction: dict[str, Any] = {
        "scored_on": {
            "request": "held-out requests", "time": "held-out steps (split in time)",
            "none": "the planning requests (in sample)",
        }[problem.how["split"]] + (", each token its own step" if problem.how["steps"] == "token" else "")
        + (f", in batches of {problem.how['batch']}" if "batch" in problem.how else ""),
        "heldout_mean_max": on_test.mean,
        "heldout_mean_max_interval": _interval(on_test),
        "ideal": on_test.ideal_mean * least,
        "heldout_ratio_to_ideal": _known(on_test.ratio / least),
        "train_mean_max": on_train.mean,
        "train_mean_max_interval": _interval(on_train),
        "train_ratio_to_ideal": _known(on_train.ratio / least),
        "bound": lower,
        "gap": on_test.mean / lower - 1 if lower > 0 else None,
        "num_heldout_layer_steps": int(on_test.num_layer_steps.sum()),
        "bytes_per_node": used[: problem.num_nodes].tolist() if problem.has_bytes else None,
        "copies_per_node": copies[: problem.num_nodes],
        "extra_memory_bytes": int(used[: problem.num_nodes].sum() - problem.all_bytes) if problem.has_bytes else None,
        "extra_memory_used": float(used[: problem.num_nodes].sum() / problem.all_bytes - 1),
        **beside_baselines(problem, None if slowdown is None else on_test),
    }  # fmt: skip
    if len(problem.tiers) > problem.num_nodes:
        prediction["bytes_per_fast_tier"] = used[problem.num_nodes :].tolist() if problem.has_bytes else None
        prediction["copies_per_fast_tier"] = copies[problem.num_nodes :]
        prediction["bound_of"] = "K / N of what is left if fast tiers serve the hottest of the scored steps"
    if (masks == CUT).any():
        prediction["cut_price"] = problem.cut_price.source
    if problem.machine is not None and problem.has_bytes and problem.num_nodes <= len(problem.machine.nodes):
        nodes = problem.machine.nodes[: problem.num_nodes]
        prediction["too_small"] = [
            node.name for node, held in zip(nodes, used, strict=False) if held > node.memory_bytes
        ]  # nodes whose memory is smaller than their experts
    milliseconds = None if slowdown is None else predicted_ms_per_step(problem, masks)
    if milliseconds is not None:
        milliseconds *= factor
        times = times_for(problem)
        assert times is not None
        prediction["predicted_by"] = times.name + how_nodes(problem) + how_fast_tiers(problem, in_it=False)
    if milliseconds is None and slowdown is not None:
        milliseconds = ms_per_step_by_rates(problem, masks)
        if milliseconds is not None:
            assert problem.machine is not None
            milliseconds *= factor
            share = problem.machine.read_share_of_nodes(problem.num_nodes)
            prediction["predicted_by"] = by_read_rates(share, problem.num_nodes)
    if milliseconds is None and slowdown is not None:
        milliseconds = _ms_per_step(problem, on_test)
        if milliseconds is not None:
            prediction["predicted_by"] = _by_the_objective(problem)
    if milliseconds is not None:
        prediction["predicted_ms_per_step"] = milliseconds
    return {**prediction, "is_held_out": is_held_out}


def _interval(score: NodeScore) -> tuple[float, float] | None:
    low, high = score.interval()
    return None if np.isnan(low) else (low, high)


def _known(ratio: float) -> float | None:
    return None if np.isnan(ratio) else ratio


def bound(problem: NodeProblem, masks: np.ndarray) -> float:
    """Mean over held-out layer-steps, in experts, that no placement of the same kind and budgets goes below.

    Whole experts only: if every node had every expert (ceil(K / N) for equal rates); with cut experts K / N, of pieces
    where those are measured to be cheaper than wholes (``least_part``). Beside fast tiers: of every choice of what they
    serve, so K / N of the uses that are left when they serve the hottest of these very layer-steps
    (``uses_beside_fast_tiers``).
    """
    if len(problem.tiers) > problem.num_nodes:
        left = uses_beside_fast_tiers(problem) / problem.test.num_layer_steps / problem.num_nodes
        return left * least_part(problem, masks)
    if (masks == CUT).any():
        ideal = node_score(problem.test, masks, problem.times, problem.layer_weight).ideal_mean
        return ideal * least_part(problem, masks)
    everywhere = np.full(problem.shape, (1 << problem.num_nodes) - 1)
    return node_score(problem.test, everywhere, problem.times, problem.layer_weight).mean


def least_part(problem: NodeProblem, masks: np.ndarray) -> float:
    """The least that an expert may cost the nodes together, 1 for a whole one: less where pieces are cheaper."""
    return min(1.0, problem.cut_price.slice_factor) if (masks == CUT).any() else 1.0


def uses_beside_fast_tiers(problem: NodeProblem) -> float:
    """Least uses of held-out layer-steps, weighted by layer, that any choice for the fast tiers leaves to the nodes.

    Worth per byte of an expert is its uses, because a layer weighs by its bytes: the most used first, the last one in
    part (Dantzig 1957), fill what all fast tiers hold together.
    """
    uses = problem.test.uses
    size = np.broadcast_to(problem.tier_bytes[0][:, None], uses.shape).ravel().astype(np.float64)
    order = np.argsort(-uses.ravel(), kind="stable")
    filled = np.cumsum(size[order]) - size[order]  # before each
    room = float(problem.budget[problem.num_nodes :].sum())
    part = np.clip((room - filled) / size[order], 0, 1)
    weighted = (problem.layer_weight[:, None] * uses).ravel()
    return float(weighted.sum() - (weighted[order] * part).sum())


def beside_baselines(problem: NodeProblem, score: NodeScore | None) -> dict[str, Any]:
    """``baseline_mean_max``, ``gain_over`` (theirs over this plan's, minus 1), ``ties_with`` (``None``: no intervals).

    ``eplb`` has the plan's extra memory, ``mirror`` all it needs, the others none; ``interleave`` stands there where
    the machine's remote rates are known. ``score`` ``None``: of a plan that has none, so it gains and ties nothing.
    """
    num_layers, num_experts = problem.shape
    nodes = np.arange(num_experts) % problem.num_nodes
    dealt = np.random.default_rng(0).permuted(np.tile(nodes, (num_layers, 1)), axis=1)
    baselines = {
        "round_robin": np.tile(1 << nodes, (num_layers, 1)),
        "random_nodes": 1 << dealt,
        "mirror": np.full(problem.shape, (1 << problem.num_nodes) - 1),
    }
    if not num_experts % problem.num_nodes:
        baselines["eplb"], _ = packed_masks(problem.train.uses, problem.num_nodes, problem.how["extra_memory"])
    if problem.can_cut:
        baselines["row_split"] = np.full(problem.shape, CUT)
    slowdown = remote_slowdown(problem.machine, problem.num_nodes)
    if problem.can_cut and slowdown is not None:
        baselines["interleave"] = baselines["row_split"]
    means, gains, ties = {}, {}, []
    for name, masks in baselines.items():
        theirs = node_score(problem.test, masks, problem.times, problem.layer_weight)
        if name == "interleave":
            theirs = theirs.slower(slowdown or 1.0)
        means[name] = theirs.mean
        if score is None:
            continue
        gains[name] = theirs.mean / score.mean - 1
        _, low, high = theirs.difference(score)
        if low <= 0 <= high:
            ties.append(name)
    has_ties = score is not None and score.has_interval
    return {"baseline_mean_max": means, "gain_over": gains or None, "ties_with": ties if has_ties else None}


def _by_the_objective(problem: NodeProblem) -> str:
    assert problem.machine is not None
    share = problem.machine.read_share_of_nodes(problem.num_nodes)
    rates = by_read_rates(share, problem.num_nodes)
    return f"objective x mean bytes of an expert, {rates}{how_fast_tiers(problem, in_it=True)}"


def _ms_per_step(problem: NodeProblem, score: NodeScore) -> float | None:
    """Expert time of one step through all layers, where the machine's rates and the expert bytes are known."""
    machine = problem.machine
    if machine is None or not problem.has_bytes or problem.num_nodes > len(machine.nodes):
        return None
    rates = [node.best_read_gb_per_s for node in machine.nodes[: problem.num_nodes]]
    if any(rate is None for rate in rates):
        return None
    seconds_of_expert = problem.tier_bytes[0].mean() / (np.mean([rate or 0 for rate in rates]) * 1e9)
    seconds_of_expert /= machine.read_share_of_nodes(problem.num_nodes)  # while all of them read
    return float(score.mean * seconds_of_expert * problem.header.num_layers * 1e3)
