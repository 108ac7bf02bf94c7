"""regret: what each expert costs beyond the bound, so that a map can show where the gap comes from.  Floor 4.

One node: reads of an expert beyond those of the oracle; negative where the oracle reads another in its place. Several
nodes: what a layer-step's fullest node reads beyond the bound, shared by the experts that it computes there, each by
the part that it computes; in reads of a whole expert. Both are per 1,000 steps, so that a sample and the whole can be
compared. Of several nodes they add up to the gap exactly; an expert on emptier nodes has none.
"""

from __future__ import annotations

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.plan import Plan
from moelab.exploration.bound import Bound, read_rates
from moelab.exploration.draft import Draft
from moelab.exploration.step_seconds import phase_steps
from moelab.planner.step_maximum import CUT
from moelab.policies.requests import Requests
from moelab.simulator.node_reads import node_reads
from moelab.simulator.result import SimResult

PER_STEPS = 1000
_SMALLEST = 1e-9  # of an expert: rounding


def regret_of_experts(
    result: SimResult, bound: Bound, plan: Plan, draft: Draft, requests: Requests, machine: Machine | None,
    hidden_size: int | None,
) -> np.ndarray:  # fmt: skip
    """float64 [L, E], reads per ``PER_STEPS`` scored steps; ``result`` was simulated on ``requests``."""
    per = PER_STEPS / max(1, len(bound.reached))
    if bound.oracle is not None:
        return (result.reads - bound.oracle.reads) * per
    return _of_nodes(result, bound, plan, draft, requests, machine, hidden_size) * per


def _of_nodes(
    result: SimResult, bound: Bound, plan: Plan, draft: Draft, requests: Requests, machine: Machine | None,
    hidden_size: int | None,
) -> np.ndarray:  # fmt: skip
    assert result.node_reads is not None
    shape, num_nodes = draft.masks.shape, draft.num_nodes
    each = np.maximum(result.node_bytes.sum(0).max(1), 1)
    above: np.ndarray = np.zeros(result.node_reads.shape[:2])
    above[phase_steps(result)] = (bound.reached - bound.least) / each
    above[np.abs(above) <= _SMALLEST] = 0
    above = above.reshape(-1)
    if not above.any():
        return np.zeros(shape)
    rates = read_rates(machine, num_nodes)
    resident = result.state.resident > 0
    reads, _, pieces = node_reads(
        plan, requests, resident, rates[0] / rates, hidden_size=hidden_size, keep_pieces=True
    )  # fmt: skip
    loads = (reads / rates).reshape(-1, num_nodes)
    is_fullest = loads == loads.max(1, keepdims=True)
    expert = _experts(draft, resident, requests, num_nodes)
    assert len(expert) == len(pieces.request), "one expert for each piece, in the order of the dispatch"
    here = is_fullest[pieces.request, pieces.node] & (above[pieces.request] != 0)
    request, part = pieces.request[here], pieces.part[here]
    whole = np.bincount(request, part, minlength=len(above))
    key = request % shape[0] * shape[1] + expert[here]
    return np.bincount(key, part / whole[request] * above[request], minlength=shape[0] * shape[1]).reshape(shape)


def _experts(draft: Draft, resident: np.ndarray, requests: Requests, num_nodes: int) -> np.ndarray:
    """int64 [M]: the expert of each piece that a node computes, in the order of requests, experts, pieces."""
    num_layers, num_experts = draft.masks.shape
    request = np.repeat(np.arange(requests.num_requests), np.diff(requests.offsets))
    use = np.sort(request * num_experts + requests.experts)
    key = use // num_experts % num_layers * num_experts + use % num_experts
    num_pieces = np.where(draft.masks == CUT, np.count_nonzero(draft.piece_units), 1)
    num_pieces = np.where(resident, 0, num_pieces).ravel()
    return np.repeat(use % num_experts, num_pieces[key])
