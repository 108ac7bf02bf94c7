"""explorer_layers: the map layers of an explorer by name, kept where they take long.  Floor 6.

``reuse`` reads the whole planning part and is asked for rarely; the outcome keeps its own ``regret``. The arrays are
those of ``moelab.exploration.map_layers``.
"""

from __future__ import annotations

import re

import numpy as np

from moelab.exploration import MAP_LAYERS, Exploration, Outcome
from moelab.exploration.map_layers import (
    MapLayer,
    load_layer,
    node_layer,
    regret_layer,
    replicas_layer,
    reuse_layer,
    tier_layer,
)
from moelab.policies.requests import Requests


class ExplorerLayers:
    """Layers of ``exploration`` under an outcome."""

    def __init__(self, exploration: Exploration):
        self._exploration = exploration
        self._load = load_layer(exploration.loads)
        self._reuse: MapLayer | None = None

    def layer(self, name: str, outcome: Outcome) -> MapLayer:
        """One of ``MAP_LAYERS``."""
        if name == "load":
            return self._load
        if name == "reuse":
            if self._reuse is None:
                self._reuse = reuse_layer(Requests.of_trace(self._exploration.train))
            return self._reuse
        if name == "regret":
            return regret_layer(outcome.regret, outcome.draft, outcome.part.is_sample)
        return {"tier": tier_layer, "node": node_layer, "replicas": replicas_layer}[name](outcome.draft)

    def columns(self, query: str, outcome: Outcome) -> dict[str, np.ndarray]:
        """[L, E] each by name, for ``exploration.select``; a map layer that the query does not name is left unknown.

        ``layer`` is the model's number, as on the map.
        """
        shape = self._exploration.loads.shape
        out: dict[str, np.ndarray] = {
            "layer": np.broadcast_to(np.array(self._exploration.trace.header.model_layer_of_layer)[:, None], shape),
            "expert": np.broadcast_to(np.arange(shape[1]), shape),
        }
        named = set(re.findall(r"[a-z]+", query))
        for name in MAP_LAYERS:
            if name not in named:
                out[name] = np.full(shape, np.nan)
                continue
            layer = self.layer(name, outcome)
            out[name] = layer.values if layer.names is None else np.array(layer.names)[layer.values.astype(int)]
        return out
