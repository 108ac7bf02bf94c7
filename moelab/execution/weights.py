"""Weights that a replay runs: a model's own routed experts, or generated ones at another expert shape.

Knows how to fill one arena for each layer and hands out callable layers. Does not know routing. Floor 4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from moelab.kernels import Activation, ExpertArena, ExpertLayout, Pool, RoutedExperts
from moelab.kernels.generated import fill_expert


@dataclass
class ReplayWeights:
    """Layers ready to run; ``close`` gives the memory back."""

    layers: list[RoutedExperts]
    arenas: list[ExpertArena]
    layout: ExpertLayout
    synthetic: bool
    huge_pages: str
    _stack: ExitStack

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
    on_expert: Callable[[], object] = lambda: None,
) -> ReplayWeights:
    """Up to ``num_layers`` x ``num_experts`` experts with bytes of their own; ``on_expert`` reports progress.

    Where filling them takes longer than ``seconds`` (a virtual machine may get its memory page by page),
    the layers that are ready by then are all, but at least one and at least ``min_bytes``.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        arenas: list[ExpertArena] = []
        for layer in range(num_layers):
            filled = len(arenas) * num_experts * layout.expert_bytes
            if arenas and filled >= min_bytes and time.perf_counter() - started > seconds:
                break
            arenas.append(stack.enter_context(ExpertArena(layout, num_experts)))

            def fill(worker: int, workers: int, layer: int = layer, arena: ExpertArena = arenas[-1]) -> None:
                for expert in range(worker, num_experts, workers):
                    fill_expert(arena[expert], layout, seed=(seed * num_layers + layer) * num_experts + expert)
                    if worker == 0:
                        for _ in range(min(workers, num_experts - expert)):
                            on_expert()

            pool.run(fill)
        layers = [RoutedExperts(layout, a.addresses, isa, activation, pool, owner=a) for a in arenas]
        for other in layers[1:]:
            other.share_scratch(layers[0])  # layers run one after the other
        return ReplayWeights(layers, arenas, layout, True, arenas[0].huge_pages, stack.pop_all())


def own(model_dir: str | Path, *, isa: str, activation: Activation | None, pool: Pool) -> ReplayWeights:
    """The routed experts of a checkpoint, packed as the engine packs them."""
    from moelab.engine.loader import load_routed  # torch is imported only where a checkpoint is read

    layers = load_routed(model_dir, isa=isa, activation=activation, pool=pool)
    arenas = [layer.owner for layer in layers]
    stack = ExitStack()
    for arena in arenas:
        stack.callback(arena.close)
    return ReplayWeights(layers, arenas, layers[0].layout, False, arenas[0].huge_pages, stack)
