"""Homes: where the experts of an engine lie in memory, given up by those that live on a fast tier alone, and fetched
again from the checkpoint.

A plan with `keep_home` false leaves experts without a home: their slot is all there is of them, in the format of the
tier, so that only the checkpoint knows their own bytes. It does not know plans' reasons, moves or steps. Floor 2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.domain.model import ModelSpec
from moelab.domain.node_slowness import node_slowness
from moelab.domain.plan import Plan
from moelab.domain.plan_copies import Copies, copies_on_nodes, has_several
from moelab.engine.expert_tensors import Strip
from moelab.engine.loader import open_model, weights_fingerprint
from moelab.engine.strips import STRIP_BYTES
from moelab.kernels.copy_memory import give_back
from moelab.kernels.isa import choose_isa
from moelab.kernels.job import GROUP
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.node_placement import NodePlacement, memory_of_arena
from moelab.kernels.pool import Pool
from moelab.kernels.routed import RoutedExperts
from moelab.kernels.scratch import aligned

if TYPE_CHECKING:
    from moelab.engine.engine import Engine


def homeless_of(routed: Sequence[RoutedExperts]) -> np.ndarray:
    """bool [L, E]: experts without a home now."""
    none = np.zeros(routed[0].num_experts, bool)
    return np.stack([none if layer.placement is None else layer.placement.homeless for layer in routed])


def planned_homeless(plan: Plan) -> np.ndarray:
    """bool [L, E]: experts of which the plan places nothing on a node; it then places them whole on a fast tier."""
    columns = plan.placements.arrays()
    on_node = np.array([tier.startswith("node") for tier in plan.tiers])[columns["tier"]]
    homeless = np.ones((plan.model.num_layers, plan.model.num_experts), bool)
    homeless[columns["layer"][on_node], columns["expert"][on_node]] = False
    return homeless


def homes_of_plan(
    plan: Plan, name: str, isa: str | None, allow_unbound: bool, spec: ModelSpec, layout: ExpertLayout, pool: Pool
) -> list[NodePlacement]:
    """Empty homes of all layers on the nodes of a plan that names several, to be filled; homeless experts on node 0.

    Dispatch is told the rates that the plan names (equal where it names none).
    Raises `ValueError` for a plan of another model or more nodes than the pool has, `MemoryError` where a node has no
    room, `OSError` where the system refuses to bind memory to it (`allow_unbound`: then it lies where it may).
    """
    if choose_isa(isa).isa == "numba":
        raise ValueError("plan has homes on several nodes; Numba's workers know no nodes: choose a native isa")
    plan.check_matches(
        what="engine", model=name, num_layers=spec.num_moe_layers, num_experts=spec.n_routed_experts,
        top_k=spec.num_experts_per_tok, fingerprint=spec.fingerprint,
    )  # fmt: skip
    check_home_bytes(plan, layout)
    slowness = node_slowness(plan, None, pool.num_nodes).values
    node_of_homeless = np.zeros((plan.model.num_layers, plan.model.num_experts), np.int64)
    copies = copies_on_nodes(plan, node_of_homeless, pool.num_nodes, -(-layout.intermediate_size // GROUP))
    homes = [
        NodePlacement(
            layout, plan.model.num_experts, of_layer, pool.memory_node_of_node, slowness=slowness,
            **(dispatch_for(len(of_layer[0]), pool.num_nodes) if has_several(of_layer) else {}),
        )
        for of_layer in copies
    ]  # fmt: skip
    if not allow_unbound:
        for placement in homes:
            placement.check_bound(pool.memory_node_of_node)
    return homes


def dispatch_for(num_copies: int, num_nodes: int) -> Any:
    """What `NodePlacement` is told where a piece has several copies."""
    from moelab.dispatch.c_face import dispatch_arguments  # Numba, which nothing else here needs

    return dispatch_arguments(num_copies, num_nodes)


def check_home_bytes(plan: Plan, layout: ExpertLayout) -> None:
    """ValueError where the plan counts on other bytes of an expert at home."""
    home = plan.format_of_tier[next(tier for tier in plan.tiers if tier.startswith("node"))]
    if set(home.expert_bytes) - {0, layout.expert_bytes}:
        raise ValueError(
            f"plan says {sorted(set(home.expert_bytes))} bytes for an expert at home; this engine's take "
            f"{layout.expert_bytes}: re-plan on a trace of this engine"
        )


def prepare_to_give_up(routed: Sequence[RoutedExperts], homeless: np.ndarray) -> Callable[[], int]:
    """Experts of `homeless` bool [L, E] have no home once the answer is called; it tells the bytes that returned.

    All tables are made here, where a failure changes nothing: the call itself makes no copy and nothing can run out.
    Whoever calls it knows that those experts are in slots for good.
    """
    made = []
    for layer, gone in zip(routed, homeless, strict=True):
        if gone.any():
            old, owner = layer.placement, layer.owner
            new = NodePlacement.of_arena(owner, gone) if old is None else _without(old, gone)
            held = memory_of_arena(owner) if old is None else old.memory_of_copy
            left = [memory for copy, memory in held.items() if gone[copy[0]]]
            made.append((layer, new, left, owner if old is None else old))

    def give_up() -> int:
        num_bytes = 0
        for layer, new, left, before in made:
            layer.place(new)
            layer.owner = new
            for memory in left:
                num_bytes += len(memory.memory) if give_back(memory) else 0
            before.close()
        return num_bytes

    return give_up


def _without(old: NodePlacement, gone: np.ndarray) -> NodePlacement:
    """The same copies but for those experts."""
    rows = np.array([copy for copy in old.memory_of_copy if not gone[copy[0]]], np.int64).reshape(-1, 4)
    columns: Copies = (rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3])
    return NodePlacement(
        old.layout, old.num_experts, columns, [None] * old.num_nodes, slowness=old.slowness, keep=old, homeless=gone,
        dispatch=old.struct.dispatch, dispatch_scratch=old.scratch_length,
    )  # fmt: skip


class CheckpointExperts:
    """Whole experts of an engine read from its checkpoint again, packed as its homes are. Any thread may ask.

    Raises `ValueError` where the folder holds another checkpoint by now.
    """

    def __init__(self, engine: Engine) -> None:
        self._opened = open_model(Path(engine.directory))
        if (found := weights_fingerprint(self._opened)) != engine.weights_fingerprint:
            self.close()
            raise ValueError(
                f"{engine.directory} holds weights {found} by now; expected {engine.weights_fingerprint}, which this "
                "engine was loaded from: experts without a home come from there, so load the engine again"
            )
        self._layout = engine.routed[0].layout
        self._strips: dict[int, dict[int, list[Strip]]] = {}

    def fetch(self, layer: int, expert: int) -> np.ndarray:
        """uint8 [expert_bytes] of an expert of MoE layer `layer`."""
        source = self._opened.experts[layer]
        if layer not in self._strips:
            of_expert: dict[int, list[Strip]] = defaultdict(list)
            for strip in source.strips(STRIP_BYTES):
                of_expert[strip.expert].append(strip)
            self._strips[layer] = of_expert
        block = aligned(self._layout.expert_bytes)
        for strip in self._strips[layer][expert]:
            source.pack(strip, block, self._layout)
        return block

    def close(self) -> None:
        self._opened.checkpoint.close()
