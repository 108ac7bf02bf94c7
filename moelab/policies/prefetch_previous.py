"""prefetch_previous: LRU, and copying ahead what the next layer used in the pass before.

Reference: the previous-token baseline of predictors (BigMoeOnEdge, mlx-lm 1485 report 18 to 43% recall). Where we
differ: at most ``width`` experts of that set, in its order of last appearance; serving, room and accounting:
``prefetch_lru``. State of its own: last set of each layer [L, E] and its size [L]. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.prefetch_lru import copy_ahead, new_lists, num_words, serve_lru


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """The lists of ``prefetch_lru``; no last sets."""
    return np.zeros(0, np.float64), new_lists(setup, num_ints=setup.num_layers * (setup.num_experts + 1))


@compiled
def decide(view):
    """Serve, copy the next layer's last set, remember this layer's."""
    if len(view.free_slots) == 0:
        return
    num_layers, num_experts = view.resident.shape
    num_keys = view.resident.size
    last = view.int_state[num_words(num_keys, view.free_slots.shape[1]) :]
    serve_lru(view)
    layer = view.layer + 1
    if layer < num_layers:
        predicted = last[layer * num_experts : (layer + 1) * num_experts]
        copy_ahead(view, layer, predicted, min(last[num_keys + layer], view.int_parameters[0]))
    for i in range(len(view.experts)):
        last[view.layer * num_experts + i] = view.experts[i]
    last[num_keys + view.layer] = len(view.experts)


POLICY = Policy(
    name="prefetch_previous",
    decide=decide,
    reference="previous token (BigMoeOnEdge, mlx-lm 1485)",
    parameters={"width": 8},
    new_state=new_state,
    prefetches=True,
)
