"""eam: MoE-Infinity's cache: what this request has used so far, times use overall, times how early the layer is.

Reference: MoE-Infinity (Xue et al. 2024, arXiv 2401.14361), victim score in the form of its code as our facts have it:
topo_decay(l) M_norm F_norm, the lowest goes. M is the expert activation matrix (EAM) of the running request, tokens
by layer and expert; F counts uses and is never reset; both are divided by their layer's sum. topo_decay falls
linearly with the layer, 1 - l / L (our form: early layers cannot be prefetched in time). Where we differ:
several requests of a batch share one M, begun anew whenever a request starts; a set request counts once in F; what
the request uses is no victim. Before a request has touched a layer all worths there are 0 and the older last
use goes first. The collection of past EAMs and its match, which only prefetching asks, are ``prefetch_eam``.
Per layer the topology cancels out. Order changes with every request, so worths of a pool are computed when it must
evict. Serving and ADMIT(``hysteresis``, ``max_uploads``): ``score_heap``. State: M [L * E], F [L * E], sums of M [L]
and of F [L]. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled, inlined
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.score_heap import ADMISSION, new_heap, num_int_words, select_lowest, serve, touch
from moelab.policies.signature import FLAG_REQUEST_STARTS, pool_of


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """No uses, no request."""
    num_keys = setup.num_layers * setup.num_experts
    return new_heap(setup, num_ints=2 * (num_keys + setup.num_layers))


@inlined
def _worth(own, num_layers, num_experts, node):
    num_keys = num_layers * num_experts
    layer = node // num_experts
    sum_tokens, sum_uses = own[at(2 * num_keys + layer)], own[at(2 * num_keys + num_layers + layer)]
    of_request, of_all = own[at(node)] / max(1, sum_tokens), own[at(num_keys + node)] / max(1, sum_uses)
    return (1 - layer / num_layers) * of_request * of_all


@compiled
def decide(view):
    """Count; where somebody is missing, weigh the pool and serve."""
    if len(view.free_slots) == 0:
        return
    score, state, num_keys, num_pools = view.float_state, view.int_state, view.resident.size, view.free_slots.shape[1]
    (num_layers, num_experts), layer = view.resident.shape, view.layer
    pool, first, own = pool_of(layer, view.free_slots), layer * num_experts, state[num_int_words(num_keys, num_pools) :]
    if view.flags & FLAG_REQUEST_STARTS and (layer == 0 or num_pools > 1):
        begin, end = (layer, layer + 1) if num_pools > 1 else (0, num_layers)  # other layers matter in one pool only
        own[begin * num_experts : end * num_experts] = 0
        own[2 * num_keys + begin : 2 * num_keys + end] = 0
    for i in range(len(view.experts)):
        node = first + view.experts[i]
        touch(view, node)
        own[at(node)] += view.token_counts[i]
        own[at(num_keys + node)] += 1
        own[at(2 * num_keys + layer)] += view.token_counts[i]
    own[at(2 * num_keys + num_layers + layer)] += len(view.experts)
    is_over = view.free_slots[0, pool] < 0 or view.free_bytes[0, pool] < 0
    if len(view.misses) == 0 and not is_over:
        return
    for i in view.misses:
        node = first + view.experts[i]
        score[at(node)] = _worth(own, num_layers, num_experts, node)
    start = pool * (num_keys // num_pools)
    for i in range(state[at(4 * num_keys + pool)]):
        score[at(num_keys + start + i)] = _worth(own, num_layers, num_experts, state[at(start + i)])
    serve(view, select_lowest(view))


POLICY = Policy(
    name="eam",
    decide=decide,
    reference="Xue et al. 2024, arXiv 2401.14361 (victim score of the code)",
    parameters=dict(ADMISSION),
    new_state=new_state,
    layers_are_apart=True,
)
