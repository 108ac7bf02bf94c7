"""Placed layers: the placement of any plan over one shelf of experts for each layer, and its entries.  Floor 6.

Entries come from the placement itself (``served``: the same ``dispatch`` that the kernels ask), so that a prediction is
of what will run; bytes that the kernels count afterwards must equal it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moelab.calibration.shelf import Shelf
from moelab.cost_model.node_time import layer_steps_s
from moelab.dispatch import assign
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.plan import Plan
from moelab.domain.plan_copies import Copies, copies_on_nodes
from moelab.domain.trace import NO_EXPERT
from moelab.kernels import Activation, ExpertLayout, NodePlacement, Pool, RoutedExperts
from moelab.kernels.node_arenas import round_robin
from moelab.kernels.pieces import num_units


@dataclass(frozen=True, eq=False)
class Entries:
    """Arrays [M] as ``layer_steps_s`` takes them; one layer-step for each step and layer, [S x L]."""

    step: np.ndarray
    node: np.ndarray
    part: np.ndarray
    num_tokens: np.ndarray
    num_bytes: np.ndarray
    tokens_of_step: np.ndarray
    num_nodes: int

    def seconds(self, times: ExpertTimes, read_gb_per_s: dict[int, float] | None = None) -> float:
        """Predicted, in sum."""
        return float(
            layer_steps_s(
                times, step=self.step, node=self.node, part=self.part, num_tokens=self.num_tokens,
                tokens_of_step=self.tokens_of_step, num_nodes=self.num_nodes, read_gb_per_s=read_gb_per_s,
            ).sum()
        )  # fmt: skip

    @property
    def bytes_of_node(self) -> np.ndarray:
        """int64 [N]."""
        return np.bincount(self.node, self.num_bytes, self.num_nodes).astype(np.int64)


class PlacedLayers:
    """``num_layers`` x ``num_experts`` experts of a layout on the nodes of a pool, and layers of any plan over them."""

    def __init__(
        self, layout: ExpertLayout, num_layers: int, num_experts: int, pool: Pool, *, isa: str, activation: Activation
    ) -> None:
        self.layout, self.num_experts, self.pool = layout, num_experts, pool
        self.isa, self.activation = isa, activation
        self.shelves = [Shelf(layout, num_experts, pool) for _ in range(num_layers)]
        self._first: RoutedExperts | None = None
        rng = np.random.default_rng(0)
        self._x = rng.standard_normal((64, layout.hidden_size)).astype(np.float32)

    @property
    def num_layers(self) -> int:
        return len(self.shelves)

    def of(self, plan: Plan) -> list[RoutedExperts]:
        """Layers that compute under the plan; experts that it keeps on a fast tier alone go round-robin."""
        spread = round_robin(self.num_layers, self.num_experts, self.pool.num_nodes)
        copies = copies_on_nodes(plan, spread, self.pool.num_nodes, num_units(self.layout))
        return [self.layer(number, of_layer) for number, of_layer in enumerate(copies)]

    def layer(self, number: int, copies: Copies) -> RoutedExperts:
        """One that computes over these copies of the experts of layer ``number``."""
        placed = self.shelves[number].placement(copies)
        layer = RoutedExperts(
            self.layout, placed.addresses, self.isa, self.activation, self.pool, owner=placed, placement=placed
        )
        if self._first is None:
            self._first = layer
        layer.share_scratch(self._first)
        return layer

    def run(self, layers: Sequence[RoutedExperts], steps: Sequence[np.ndarray]) -> float:
        """Seconds of all steps [B, L, K], one layer after the other; layer-steps without an expert are left out."""
        seconds = 0.0
        for ids in steps:
            x, gates = self._x[: len(ids)], np.full((len(ids), ids.shape[2]), 1 / ids.shape[2], np.float32)
            for number, layer in enumerate(layers):
                of_layer = ids[:, number]
                if (of_layer == NO_EXPERT).all():
                    continue
                begin = time.perf_counter()
                layer.forward(x, of_layer, gates)
                seconds += time.perf_counter() - begin
        return seconds

    def entries(self, layers: Sequence[RoutedExperts], steps: Sequence[np.ndarray]) -> Entries:
        """What ``run`` will compute."""
        columns: list[np.ndarray] = []
        tokens_of_step: list[int] = []
        for ids in steps:
            for number, layer in enumerate(layers):
                arena = layer.placement
                assert arena is not None
                found, counts = np.unique(ids[:, number], return_counts=True)
                routed = found != NO_EXPERT
                if not routed.any():
                    continue
                columns.append(_entries(arena, found[routed].astype(np.int64), counts[routed], len(tokens_of_step)))
                tokens_of_step.append(len(ids))
        step, node, size, tokens = np.concatenate(columns, axis=1)
        return Entries(
            step, node, size / self.layout.expert_bytes, tokens, size, np.array(tokens_of_step), self.pool.num_nodes
        )


def _entries(arena: NodePlacement, experts: np.ndarray, counts: np.ndarray, step: int) -> np.ndarray:
    """int64 [4, M]: step, node, bytes, tokens."""
    first, last = arena.piece_of_expert[experts], arena.piece_of_expert[experts + 1]
    pieces = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
    sizes = arena.piece_bytes[pieces]
    chosen = assign(arena.nodes_of_piece[pieces], num_tiers=arena.num_nodes, sizes=sizes, slowness=arena.slowness)
    return np.stack(
        [np.full(len(pieces), step), chosen.tier_of.astype(np.int64), sizes, np.repeat(counts, last - first)]
    )


def counted_bytes(layers: Sequence[RoutedExperts]) -> np.ndarray:
    """int64 [N] that the kernels of all layers have read since they were made."""
    return np.sum([layer.bytes_of_node for layer in layers], axis=0)
