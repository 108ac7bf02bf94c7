"""Weights that a replay runs: a model's own routed experts, or generated ones at another expert shape.

Knows how to fill one arena for each layer, or a placement of copies on nodes, and hands out callable layers. Does not
know routing or plans. Floor 4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moelab.dispatch.c_face import dispatch_arguments
from moelab.domain.plan_copies import Copies
from moelab.kernels import Activation, ExpertArena, ExpertLayout, NodePlacement, Pool, RoutedExperts
from moelab.kernels.generated import fill_expert
from moelab.kernels.pages import granted

Arena = ExpertArena | NodePlacement


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
        """What was asked for with success, and the share that is huge by now."""
        return granted(self.arenas[0].huge_pages, (block for arena in self.arenas for block in arena.blocks))

    @property
    def binding(self) -> str:
        return self.arenas[0].binding

    @property
    def num_nodes(self) -> int:
        return self.layers[0].num_nodes

    @property
    def weights_bytes(self) -> int:
        """Of all experts, with their copies."""
        return sum(
            int(arena.bytes_of_node.sum())
            if isinstance(arena, NodePlacement)
            else len(arena) * self.layout.expert_bytes
            for arena in self.arenas
        )

    @property
    def smallest_copy_bytes(self) -> int:
        """Of the smallest piece that lies anywhere: a whole expert where none is cut."""
        sizes = [int(arena.piece_bytes.min()) for arena in self.arenas if isinstance(arena, NodePlacement)]
        return min(sizes, default=self.layout.expert_bytes)

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
    copies: list[Copies] | None = None,
    slowness: np.ndarray | None = None,
    on_expert: Callable[[], object] = lambda: None,
) -> ReplayWeights:
    """Up to ``num_layers`` x ``num_experts`` experts with bytes of their own; ``on_expert`` reports progress.

    Where filling them takes longer than ``seconds`` (a virtual machine may get its memory page by page),
    the layers that are ready by then are all, but at least one and at least ``min_bytes``. ``copies`` [L] place them
    on the nodes of the pool, whose ``slowness`` [N] dispatch is told.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        arenas: list[Arena] = []
        for layer in range(num_layers):
            filled = len(arenas) * num_experts * layout.expert_bytes
            if arenas and filled >= min_bytes and time.perf_counter() - started > seconds:
                break
            arenas.append(
                ExpertArena(layout, num_experts)
                if copies is None
                else _placed(layout, num_experts, copies[layer], pool, slowness)
            )
            stack.callback(arenas[-1].close)

            def fill(worker: int, workers: int, layer: int = layer, arena: Arena = arenas[-1]) -> None:
                block = np.empty(layout.expert_bytes, np.uint8)  # of a placement: cut into its pieces afterwards
                for expert in range(worker, num_experts, workers):
                    own_seed = (seed * num_layers + layer) * num_experts + expert
                    if isinstance(arena, NodePlacement):
                        fill_expert(block, layout, seed=own_seed)
                        arena.fill(expert, block)
                    else:
                        fill_expert(arena[expert], layout, seed=own_seed)
                    if worker == 0:
                        for _ in range(min(workers, num_experts - expert)):
                            on_expert()

            pool.run(fill)
        return ReplayWeights(_layers(layout, arenas, isa, activation, pool), arenas, layout, True, stack.pop_all())


def _placed(
    layout: ExpertLayout, num_experts: int, copies: Copies, pool: Pool, slowness: np.ndarray | None
) -> NodePlacement:
    return NodePlacement(
        layout, num_experts, copies, pool.memory_node_of_node, slowness=slowness,
        **dispatch_arguments(len(copies[0]), pool.num_nodes),
    )  # fmt: skip


def _layers(
    layout: ExpertLayout, arenas: list[Arena], isa: str, activation: Activation, pool: Pool
) -> list[RoutedExperts]:
    layers = [
        RoutedExperts(
            layout, arena.addresses, isa, activation, pool, owner=arena,
            placement=arena if isinstance(arena, NodePlacement) else None,
        )
        for arena in arenas
    ]  # fmt: skip
    for other in layers[1:]:
        other.share_scratch(layers[0])  # layers run one after the other
    return layers


def own(
    model_dir: str | Path, *, isa: str, activation: Activation | None, pool: Pool,
    copies: list[Copies] | None = None, slowness: np.ndarray | None = None,
) -> ReplayWeights:  # fmt: skip
    """The routed experts of a checkpoint, packed as the engine packs them.

    With ``copies`` [L] they move to their nodes layer by layer: one layer is there twice meanwhile.
    """
    from moelab.engine.loader import load_routed  # torch is imported only where a checkpoint is read

    layers = load_routed(model_dir, isa=isa, activation=activation, pool=pool)
    layout = layers[0].layout
    sources: list[ExpertArena] = [layer.owner for layer in layers]
    arenas: list[Arena] = list(sources)
    if copies is not None:
        mode = layers[0].activation
        del layers
        for layer, source in enumerate(sources):
            target = arenas[layer] = _placed(layout, len(source), copies[layer], pool, slowness)
            pool.run(_copy_share(source, target))
            source.close()
        layers = _layers(layout, arenas, isa, mode, pool)
    stack = ExitStack()
    for arena in arenas:
        stack.callback(arena.close)
    return ReplayWeights(layers, arenas, layout, False, stack)


def _copy_share(source: ExpertArena, target: NodePlacement) -> Callable[[int, int], None]:
    def copy(worker: int, num_workers: int) -> None:
        for expert in range(worker, len(source), num_workers):
            target.fill(expert, source[expert])

    return copy
