"""Weights that a replay runs: a model's own routed experts, or generated ones at another expert shape.

Knows how to fill one arena for each layer, or one for each layer and node, and hands out callable layers. Does not know
routing or plans. Floor 4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moelab.kernels import Activation, ExpertArena, ExpertLayout, NodeArenas, Pool, RoutedExperts
from moelab.kernels.generated import fill_expert

Arena = ExpertArena | NodeArenas


@dataclass
class ReplayWeights:
    """Layers ready to run; ``close`` gives the memory back."""

    layers: list[RoutedExperts]
    arenas: list[Arena]
    layout: ExpertLayout
    synthetic: bool
    _stack: ExitStack

    @property
    def huge_pages(self) -> str:
        return self.arenas[0].huge_pages

    @property
    def binding(self) -> str:
        return self.arenas[0].binding

    @property
    def num_nodes(self) -> int:
        return self.layers[0].num_nodes

    @property
    def node_of_expert(self) -> np.ndarray:
        """int [L, E]; all 0 where nodes are not told apart."""
        return np.stack(
            [
                np.zeros(layer.num_experts, np.int32) if layer.node_of_expert is None else layer.node_of_expert
                for layer in self.layers
            ]
        )

    @property
    def weights_bytes(self) -> int:
        return sum(len(arena.addresses) for arena in self.arenas) * self.layout.expert_bytes

    def close(self) -> None:
        self._stack.close()


def generated(
    layout: ExpertLayout,
    num_layers: int,
    num_experts: int,
    *,
    isa: str,
    activation: Activation,
    pool: Pool,
    seed: int = 0,
    seconds: float = math.inf,
    min_bytes: int = 0,
    node_of_expert: np.ndarray | None = None,
    on_expert: Callable[[], object] = lambda: None,
) -> ReplayWeights:
    """Up to ``num_layers`` x ``num_experts`` experts with bytes of their own; ``on_expert`` reports progress.

    Where filling them takes longer than ``seconds`` (a virtual machine may get its memory page by page),
    the layers that are ready by then are all, but at least one and at least ``min_bytes``. ``node_of_expert`` [L, E]
    places them on the nodes of the pool.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        arenas: list[Arena] = []
        for layer in range(num_layers):
            filled = len(arenas) * num_experts * layout.expert_bytes
            if arenas and filled >= min_bytes and time.perf_counter() - started > seconds:
                break
            arenas.append(_arena(layout, num_experts, layer, node_of_expert, pool))
            stack.callback(arenas[-1].close)

            def fill(worker: int, workers: int, layer: int = layer, arena: Arena = arenas[-1]) -> None:
                for expert in range(worker, num_experts, workers):
                    fill_expert(arena[expert], layout, seed=(seed * num_layers + layer) * num_experts + expert)
                    if worker == 0:
                        for _ in range(min(workers, num_experts - expert)):
                            on_expert()

            pool.run(fill)
        return ReplayWeights(_layers(layout, arenas, isa, activation, pool), arenas, layout, True, stack.pop_all())


def _arena(layout: ExpertLayout, num_experts: int, layer: int, node_of_expert: np.ndarray | None, pool: Pool) -> Arena:
    if node_of_expert is None:
        return ExpertArena(layout, num_experts)
    return NodeArenas(layout, node_of_expert[layer], pool.memory_node_of_node)


def _layers(
    layout: ExpertLayout, arenas: list[Arena], isa: str, activation: Activation, pool: Pool
) -> list[RoutedExperts]:
    layers = [
        RoutedExperts(
            layout, arena.addresses, isa, activation, pool, owner=arena,
            node_of_expert=arena.node_of_expert if isinstance(arena, NodeArenas) else None,
        )
        for arena in arenas
    ]  # fmt: skip
    for other in layers[1:]:
        other.share_scratch(layers[0])  # layers run one after the other
    return layers


def own(
    model_dir: str | Path, *, isa: str, activation: Activation | None, pool: Pool,
    node_of_expert: np.ndarray | None = None,
) -> ReplayWeights:  # fmt: skip
    """The routed experts of a checkpoint, packed as the engine packs them.

    With ``node_of_expert`` [L, E] they move to their nodes layer by layer: one layer is there twice meanwhile.
    """
    from moelab.engine.loader import load_routed  # torch is imported only where a checkpoint is read

    layers = load_routed(model_dir, isa=isa, activation=activation, pool=pool)
    layout, arenas = layers[0].layout, [layer.owner for layer in layers]
    if node_of_expert is not None:
        mode = layers[0].activation
        del layers
        for layer, source in enumerate(arenas):
            arenas[layer] = NodeArenas(layout, node_of_expert[layer], pool.memory_node_of_node)
            pool.run(_copy_share(source, arenas[layer]))
            source.close()
        layers = _layers(layout, arenas, isa, mode, pool)
    stack = ExitStack()
    for arena in arenas:
        stack.callback(arena.close)
    return ReplayWeights(layers, arenas, layout, False, stack)


def _copy_share(source: Arena, target: Arena) -> Callable[[int, int], None]:
    def copy(worker: int, num_workers: int) -> None:
        for expert in range(worker, len(source), num_workers):
            target[expert][:] = source[expert]

    return copy
