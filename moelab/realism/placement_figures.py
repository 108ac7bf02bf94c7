"""What a trace means for placement: miss ratios of LRU and MIN with bypass, the fullest of several nodes.  Floor 4.

Not fitted to anything, so they tell whether fitted moments carry. Tokens are taken one by one, each as a step of its
own, so that prefill-only captures can be judged too; that is decode at batch 1 as far as routing goes. LRU overflows
while its experts are in use, so below K slots its misses are those of the last token's set.
``node_maximum``: experts of a token on the node that holds most of them, under a placement that balances the
loads of OTHER requests (EPLB's balanced packing: heaviest first, to the lightest node with room).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moelab.analysis.miss_ratio_curve import miss_ratio_curve
from moelab.domain.trace import NO_EXPERT, Trace
from moelab.planner.balanced_packing import balanced_packing
from moelab.planner.empty import empty
from moelab.policies.requests import Requests
from moelab.simulator.simulate import simulate

PERCENT = (5, 10, 20, 30, 50)
NODES = (2, 4)


def placement_figures(train: Trace, test: Trace) -> dict[str, float]:
    """Figures of ``test`` alone, except that nodes are balanced by the loads of ``train``."""
    test = _token_by_token(test)
    requests = Requests.of_trace(test)
    curve = miss_ratio_curve(test, overflow=True, requests=requests).miss_ratio_per_request()
    figures = {}
    for percent in PERCENT:
        slots = max(1, round(percent * test.header.num_experts / 100))
        figures[f"lru_miss_{percent}%"] = float(curve[slots])
    for percent in PERCENT:
        slots = max(1, round(percent * test.header.num_experts / 100))
        plan = empty(test, slots_per_layer=slots, policy="min_bypass")
        result = simulate(test, plan, requests=requests, progress=False)
        figures[f"min_bypass_miss_{percent}%"] = 1 - (result.hit_rate_per_request or 0.0)
    loads = train.loads()
    for nodes in NODES:
        figures[f"node_maximum_{nodes}"] = node_maximum(test, balanced_packing(loads, nodes), nodes)
    return figures


def node_maximum(trace: Trace, node_of_expert: np.ndarray, num_nodes: int) -> float:
    """Mean over tokens and layers of the experts on the node that holds most of the token's."""
    most = []
    for layer in range(trace.header.num_layers):
        ids = trace.experts[:, layer]
        routed = ids != NO_EXPERT
        node = node_of_expert[layer][np.where(routed, ids, 0)]
        per_node = np.stack([((node == n) & routed).sum(1) for n in range(num_nodes)])
        most.append(per_node.max(0)[routed.any(1)])
    return float(np.concatenate(most).mean())


def _token_by_token(trace: Trace) -> Trace:
    return replace(trace, tokens=replace(trace.tokens, step=np.arange(trace.num_tokens)), extras={})
