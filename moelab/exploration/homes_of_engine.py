"""homes_of_engine: where each expert of a running engine lies now, as a layer of the map.  Floor 4.

Read off the engine's own tables, not off the plan that it was given. Does not know plans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moelab.exploration.map_layers import MapLayer

if TYPE_CHECKING:
    from moelab.engine.engine import Engine


def homes_of_engine(engine: Engine) -> MapLayer:
    """float32 [L, E], indices of the names: ``fast0`` (it has a slot), the node of its copy, or ``several nodes``."""
    num_nodes = max(layer.num_nodes for layer in engine.routed)
    names = ["fast0", *(f"node{n}" for n in range(num_nodes)), *(["several nodes"] if num_nodes > 1 else [])]
    values = np.full((len(engine.routed), engine.spec.n_routed_experts), np.nan, np.float32)
    for layer, routed in enumerate(engine.routed):
        values[layer] = 1 + _nodes(routed.placement, values.shape[1], num_nodes)
    if engine.fast_tier is not None:
        values[engine.fast_tier.resident] = 0
    return MapLayer(values, "where it lies", tuple(names))


def _nodes(placement: object, num_experts: int, num_nodes: int) -> np.ndarray:
    """float [E]: the node that has all copies of an expert, ``num_nodes`` for several, NaN for none."""
    copies = getattr(placement, "memory_of_copy", None)
    if copies is None:
        return np.zeros(num_experts)
    has = np.zeros((num_experts, num_nodes), bool)
    for expert, _, _, node in copies:
        has[expert, node] = True
    count = has.sum(axis=1)
    return np.where(count > 1, num_nodes, np.where(count == 1, has.argmax(axis=1).astype(float), np.nan))
