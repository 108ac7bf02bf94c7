"""map_layers: what the map can be coloured by: load, tier, node, replicas, reuse, regret.  Floor 4.

Each is one array layer x expert with its label. ``reuse`` comes from the routing, ``regret`` from the bound, the others
from the placement; what is not known is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.exploration.draft import Draft
from moelab.exploration.regret import PER_STEPS
from moelab.planner.step_maximum import CUT
from moelab.policies.requests import Requests
from moelab.policies.signature import NEVER

MAP_LAYERS = ("load", "tier", "node", "replicas", "reuse", "regret")
REUSE_STEPS = 8


@dataclass(frozen=True, eq=False)
class MapLayer:
    """``values`` float32 [L, E]; ``names`` of categories, then values index them (empty: none is there); else
    ``limits`` of the scale."""

    values: np.ndarray
    label: str
    names: tuple[str, ...] | None = None
    limits: tuple[float, float] | None = None


def load_layer(loads: np.ndarray) -> MapLayer:
    """Load of the planning part over the layer's mean; the scale ends at the hottest 0.5% of all."""
    mean = loads.mean(axis=1, keepdims=True)
    relative = np.divide(loads, mean, out=np.zeros(loads.shape), where=mean > 0)
    return MapLayer(
        relative.astype(np.float32), "load / mean of layer", limits=(0.0, float(np.quantile(relative, 0.995)) or 1.0)
    )  # fmt: skip


def tier_layer(draft: Draft) -> MapLayer:
    """Where an expert is served from at the start."""
    nodes = [f"node{n}" for n in range(draft.num_nodes)]
    names = ["fast0", *nodes, *(["several nodes", "split"] if draft.num_nodes > 1 else [])]
    values = np.where(draft.fast, 0, 1 + _home(draft))
    return MapLayer(values.astype(np.float32), "tier", _that_occur(names, values))


def node_layer(draft: Draft) -> MapLayer:
    """The nodes that hold it, whether or not a fast tier serves it."""
    names = [f"node{n}" for n in range(draft.num_nodes)] + (["several nodes", "split"] if draft.num_nodes > 1 else [])
    values = _home(draft)
    return MapLayer(values.astype(np.float32), "node", _that_occur(names, values))


def replicas_layer(draft: Draft) -> MapLayer:
    """Copies on nodes and fast tier together."""
    copies = draft.copies + draft.fast
    return MapLayer(copies.astype(np.float32), "copies", limits=(1.0, float(max(2, draft.num_nodes + 1))))


def reuse_layer(requests: Requests) -> MapLayer:
    """Share of an expert's uses that are followed by another within ``REUSE_STEPS`` steps of its layer."""
    shape = (requests.num_layers, requests.num_experts)
    clock = np.repeat(np.arange(requests.num_requests), np.diff(requests.offsets))
    key = clock % requests.num_layers * requests.num_experts + requests.experts
    next_use = requests.next_use
    gap = (next_use // requests.num_experts - clock) // requests.num_layers
    is_soon = (next_use < NEVER) & (gap <= REUSE_STEPS)
    uses = np.bincount(key, minlength=shape[0] * shape[1]).reshape(shape)
    soon = np.bincount(key, is_soon, minlength=shape[0] * shape[1]).reshape(shape)
    values = np.divide(soon, uses, out=np.full(shape, np.nan), where=uses > 0)
    return MapLayer(values.astype(np.float32), f"uses again within {REUSE_STEPS} steps", limits=(0.0, 1.0))


def regret_layer(regret: np.ndarray | None, draft: Draft, is_sample: bool) -> MapLayer:
    """``regret`` float64 [L, E] of ``Outcome``; ``None``: nothing bounds the policy, the map is unknown."""
    beyond = "reads beyond the oracle's" if draft.num_nodes == 1 else "reads of the fullest node beyond the bound"
    label = f"{beyond}, per {PER_STEPS:,} steps" + (" of the sample" if is_sample else "")
    if regret is None:
        return MapLayer(np.full(draft.masks.shape, np.nan, np.float32), label, limits=(0.0, 1.0))
    values = regret.astype(np.float32)
    low = min(0.0, float(np.quantile(values, 0.005)))
    return MapLayer(values, label, limits=(low, float(np.quantile(values, 0.995)) or float(values.max()) or 1.0))


def _that_occur(names: list[str], values: np.ndarray) -> tuple[str, ...]:
    """Places of names are colours, which stay: what does not occur has an empty name, and is left out of the key."""
    there = set(np.unique(values).tolist())
    return tuple(name if number in there else "" for number, name in enumerate(names))


def _home(draft: Draft) -> np.ndarray:
    """int [L, E]: the node, then N for several whole copies and N + 1 for pieces."""
    number = np.round(np.log2(np.maximum(draft.masks, 1))).astype(np.int64)
    several = np.bitwise_count(draft.masks) > 1
    if draft.num_nodes == 1:
        return np.zeros(draft.masks.shape, np.int64)
    return np.where(draft.masks == CUT, draft.num_nodes + 1, np.where(several, draft.num_nodes, number))
