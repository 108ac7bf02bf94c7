"""predicted: how long the steps of a simulation take on a machine.  Floor 2.

One node: bytes / rate. Several: the slowest decides each layer-step (``node_seconds``). A fast tier beside them:
``cost_model.hybrid``, and ``cost_model.deferral`` where experts are deferred. Does not know routing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moelab.cost_model import one_node
from moelab.cost_model.deferral import deferred_step_s
from moelab.cost_model.hybrid import HybridTime, Rates
from moelab.cost_model.node_time import by_read_rates
from moelab.domain.machine import Machine
from moelab.policies.requests import PHASES
from moelab.simulator.node_seconds import node_rates
from moelab.simulator.result import NO_BYTES, SEVERAL_FAST_TIERS, SimResult


@dataclass(frozen=True)
class Deferral:
    """``share`` of a token's experts is computed beside the next layer, in decode and where ``prefill`` says so."""

    share: float
    prefill: bool


def predict(result: SimResult, machine: Machine, efficiency: float, deferral: Deferral | None = None) -> dict[str, Any]:
    """Milliseconds and tokens a second of the selected phase, and what they were made of.

    ``efficiency``: kernel rate / read rate. ``deferral`` counts where the machine has a fast tier to compute the dense
    path meanwhile. Raises ``ValueError`` where bytes or rates are not known.
    """
    if deferral is not None and not (result.tier_names and machine.fast_tiers):
        raise ValueError(
            f"the time of deferred experts was asked for; machine {machine.name} has no fast tier, or the plan none, "
            "that computes the dense path meanwhile: give such a machine (NAME+GPU) and plan, or simulate without one"
        )
    if result.node_reads is not None:
        return _predict_on_nodes(result, machine, efficiency, deferral)
    if len(result.node_names) != 1:
        raise ValueError(
            f"plan uses {', '.join(result.node_names) or 'no node'}; the cost model predicts plans on one node: "
            "simulate without a machine or plan for one node"
        )
    if not all(result.node_bytes.any(-1).ravel()):
        raise ValueError(NO_BYTES)
    node = machine.nodes[0]
    if node.best_read_gb_per_s is None:
        raise ValueError(
            f"{node.name} of machine {machine.name} has no read rate: probe it or simulate without a machine"
        )
    if result.tier_names and machine.fast_tiers:
        return _predict_with_fast_tier(result, machine, efficiency, deferral)
    predicted = one_node.predict(
        read_bytes=result.bytes_of_node[result.node_names[0]],
        num_layer_steps=result.num_layer_steps,
        num_tokens=result.num_tokens,
        read_gb_per_s=node.best_read_gb_per_s,
        efficiency=efficiency,
        layer_overhead_s=machine.layer_overhead_s or 0.0,
    )
    if result.tier_names:
        return {**predicted, "fast_tier": f"taken as infinitely fast: machine {machine.name} has none"}
    return predicted


def _predict_on_nodes(
    result: SimResult, machine: Machine, efficiency: float, deferral: Deferral | None
) -> dict[str, Any]:
    """Sums of what each layer-step takes while the slowest node decides (``node_seconds``)."""
    rates = node_rates(result, machine)
    assert result.node_reads is not None
    if not result.node_bytes.any():
        raise ValueError(NO_BYTES)
    if result.tier_names and machine.fast_tiers:
        return _predict_with_fast_tier(result, machine, efficiency, deferral)
    assert result.layer_step_s is not None
    reads = result.node_reads[result._steps]
    if result.node_copies is not None:  # sources of copies are read beside the misses
        reads = reads + result.node_copies[result._steps]
    seconds = float(result.layer_step_s[result._steps].sum())
    share = machine.read_share_of_nodes(len(rates))
    by_rate = {"efficiency": efficiency, "layer_overhead_s": machine.layer_overhead_s or 0.0}
    predicted: dict[str, Any] = {
        "predicted_ms_per_token": 1e3 * seconds / max(1, result.num_tokens),
        "predicted_tok_per_s": result.num_tokens / seconds if seconds > 0 else float("inf"),
        "predicted_by": result.timed_by or by_read_rates(share, len(rates)),
        "max_over_mean_node": float(reads.max(-1).sum() * len(rates) / max(1, reads.sum())),
        "dispatch": result.dispatch_quality,
        "read_gb_per_s": share * sum(rates),
        **({} if result.timed_by else by_rate),  # calibrated times have both in them
    }
    if result.tier_names:
        predicted["fast_tier"] = "taken as infinitely fast beside several nodes"
    return predicted


def _predict_with_fast_tier(
    result: SimResult, machine: Machine, efficiency: float, deferral: Deferral | None
) -> dict[str, Any]:
    """Means over the tokens of the selected phase. Of several nodes the slowest decides, and carries all uploads."""
    if len(result.tier_names) > 1:
        raise ValueError(SEVERAL_FAST_TIERS.format(tiers=", ".join(result.tier_names)))
    if result.num_tokens < 1:
        raise ValueError("num_tokens is 0, expected at least 1: choose a phase that the trace has")
    time = time_beside_fast_tier(result, machine, efficiency)
    rates = time.rates
    exact_s = time.step_s.sum() + time.drain_s
    total_s, beside = exact_s, {}
    if deferral is not None:
        total_s = _deferred_s(result, time, deferral).sum() + time.drain_s
        beside = {"exact_ms_per_token": 1e3 * exact_s / result.num_tokens}
    return {
        "predicted_ms_per_token": 1e3 * total_s / result.num_tokens,
        "predicted_tok_per_s": result.num_tokens / total_s if total_s > 0 else float("inf"),
        **beside,
        "cpu_ms_per_token": 1e3 * time.cpu_s.sum() / result.num_tokens,
        "fast_ms_per_token": 1e3 * time.fast_s.sum() / result.num_tokens,
        "wait_ms_per_token": 1e3 * time.wait_s.sum() / result.num_tokens,
        "read_gb_per_s": rates.read_gb_per_s,
        "efficiency": rates.efficiency,
        "layer_overhead_s": rates.layer_overhead_s,
        "link_gb_per_s": rates.link_gb_per_s or float("inf"),
        "fast_read_gb_per_s": rates.fast_read_gb_per_s or float("inf"),
    }


def time_beside_fast_tier(result: SimResult, machine: Machine, efficiency: float) -> HybridTime:
    """Of the selected steps; each of several nodes reads at what is left of its rate while all of them do."""
    fast = machine.fast_tiers[0]
    read = machine.nodes[0].best_read_gb_per_s
    assert read is not None
    share = machine.read_share_of_nodes(len(result.node_names)) if result.node_reads is not None else 1.0
    read *= share  # each of several nodes, while all read
    rates = Rates(
        read_gb_per_s=read,
        efficiency=efficiency,
        link_gb_per_s=fast.link_gb_per_s,
        fast_read_gb_per_s=fast.read_gb_per_s,
        layer_overhead_s=machine.layer_overhead_s or 0.0,
    )
    alone = [node.best_read_gb_per_s for node in machine.nodes]
    return result.time(rates, [read if rate is None else share * rate for rate in alone])


def _deferred_s(result: SimResult, time: HybridTime, deferral: Deferral) -> np.ndarray:
    """Seconds of each selected step, float64 [S]; prefill defers only where the mode says so."""
    deferred = deferred_step_s(time.cpu_s, time.fast_s, time.rates.layer_overhead_s, deferral.share) + time.wait_s.sum(
        1
    )
    is_decode = result.phase_of_step[result._steps] == list(PHASES).index("decode")
    return np.where(is_decode | deferral.prefill, deferred, time.step_s)
