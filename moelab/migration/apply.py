"""apply: a live engine goes over to another plan, between two generations.  Floor 4.

The difference of the two plans becomes moves: a copy that both have stays where it is. All new copies, on their nodes,
are complete before any layer turns to them, then every layer turns at once, then what is left over goes and its pages
return to the system. Whatever fails before the turn (no room on a node, a plan that does not fit) leaves the engine as
it was. Moving experts between nodes changes no bit of what the engine computes.

Needs room for all new copies at once, beside the old ones. Does not know why a plan is good.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from moelab.dispatch.c_face import dispatch_arguments
from moelab.domain.plan import Plan
from moelab.domain.plan_copies import Copies, copies_on_nodes
from moelab.kernels import NodePlacement, RoutedExperts
from moelab.kernels.job import GROUP
from moelab.migration.result import Applied

if TYPE_CHECKING:
    from moelab.domain.machine import Machine
    from moelab.engine.engine import Engine


def apply(engine: Engine, plan: Plan, *, machine: Machine | None = None, progress: bool = True) -> Applied:
    """Carry out ``plan`` in ``engine`` from its next step on: homes on nodes, copies and pieces, and a fast tier.

    ``machine`` tells dispatch the read rates of the nodes (equal without). The plan before stays whole where this
    raises: ``ValueError`` for another model or what the engine cannot do, ``MemoryError`` where a node has no room.
    """
    plan.check_matches(
        what="engine", model=engine.name, num_layers=len(engine.routed), num_experts=engine.spec.n_routed_experts,
        top_k=engine.spec.num_experts_per_tok, fingerprint=engine.spec.fingerprint,
    )  # fmt: skip
    from moelab.engine.placement import check_change  # torch: whoever has an engine has it

    started, before = time.perf_counter(), _resident_bytes()
    slowness = _slowness(machine, engine.pool.num_nodes)
    copies = _copies(engine, plan)
    num_nodes = engine.routed[0].num_nodes if copies is None else engine.pool.num_nodes
    _check_fast_tier(plan, copies, engine)
    check_change(engine, plan, num_nodes)
    new = [] if copies is None else _new_placements(engine, copies, slowness, progress)
    peak = _resident_bytes()
    old = [(layer.placement, layer.owner) for layer in engine.routed]
    tier = engine.fast_tier
    choice, tier_plan = dict(engine.tier_choice), None if tier is None else tier.plan
    try:
        _turn(engine, [(placement, placement) for placement in new])
        if plan.fast_tiers:
            engine.use_plan(plan)
        elif tier is not None:
            engine.use_plan(None)
    except BaseException:
        _turn(engine, old if new else [])
        if engine.fast_tier is not tier:  # its memory went before the new one's was asked for
            engine.use_plan(tier_plan, **choice)
        raise
    kept = sum(len(each.memory_of_copy) - len(each.new_copies) for each in new)
    removed, removed_bytes = _leave(old, new)
    return Applied(
        plan=str(plan.planner.get("name", plan.fingerprint())),
        num_nodes=num_nodes,
        virtual_nodes=engine.pool.virtual,
        slowness=None if slowness is None else tuple(slowness.tolist()),
        copies_added=sum(len(each.new_copies) for each in new),
        copies_kept=kept,
        copies_removed=removed,
        bytes_added=sum(each.num_new_bytes for each in new),
        bytes_removed=removed_bytes,
        seconds=time.perf_counter() - started,
        resident_before_bytes=before,
        resident_peak_bytes=peak,
        resident_after_bytes=_resident_bytes(),
        fast_tier=None if engine.fast_tier is None else f"{int(engine.fast_tier.resident.sum())} experts",
    )


def _copies(engine: Engine, plan: Plan) -> list[Copies] | None:
    """Of every layer; ``None`` where homes stay as they are, because the plan names one node, which says nothing."""
    layout, shape = engine.routed[0].layout, (len(engine.routed), engine.spec.n_routed_experts)
    nodes = [tier for tier in plan.tiers if tier.startswith("node")]
    home = plan.format_of_tier[nodes[0]]
    if set(home.expert_bytes) - {0, layout.expert_bytes}:
        raise ValueError(
            f"plan says {sorted(set(home.expert_bytes))} bytes for an expert at home; this engine's take "
            f"{layout.expert_bytes}: re-plan on a trace of this engine"
        )
    if not plan.keep_home:
        raise ValueError(
            "plan has keep_home false; the engine keeps a home copy of every expert: re-plan with keep_home true"
        )
    if len(nodes) == 1:
        return None
    if engine.isa == "numba":
        raise ValueError("the engine runs on Numba, whose workers know no nodes: load it with a native isa")
    units = -(-layout.intermediate_size // GROUP)
    return copies_on_nodes(plan, np.zeros(shape, np.int64), engine.pool.num_nodes, units)


def _check_fast_tier(plan: Plan, copies: list[Copies] | None, engine: Engine) -> None:
    units = -(-engine.routed[0].layout.intermediate_size // GROUP)
    if copies is None:
        placements = [layer.placement for layer in engine.routed if layer.placement is not None]
        cut = any(len(each.pieces) > each.num_experts for each in placements)
        if plan.fast_tiers and cut:
            raise ValueError(
                "homes are cut into pieces by an earlier plan; apply one of whole experts before a fast tier"
            )
    elif plan.fast_tiers and any((of_layer[2] - of_layer[1] != units).any() for of_layer in copies):
        raise ValueError(
            "plan cuts experts into pieces beside a fast tier, whose slots are filled from whole homes: re-plan with "
            "whole experts"
        )


def _new_placements(
    engine: Engine, copies: list[Copies], slowness: np.ndarray | None, progress: bool
) -> list[NodePlacement]:
    """All complete; what they hold that is new goes with them where this raises."""
    pool, new = engine.pool, []
    with tqdm(total=len(copies), desc="moving experts", unit="layer", disable=not progress, delay=1) as bar:
        for layer, of_layer in zip(engine.routed, copies, strict=True):
            placement = NodePlacement(
                layer.layout, layer.num_experts, of_layer, pool.memory_node_of_node, slowness=slowness,
                keep=layer.placement, **dispatch_arguments(len(of_layer[0]), pool.num_nodes),
            )  # fmt: skip
            new.append(placement)
            wanted = sorted({expert for expert, *_ in placement.new_copies})

            def fill(
                worker: int, num_workers: int, layer: RoutedExperts = layer, placement: NodePlacement = placement,
                wanted: list[int] = wanted,
            ) -> None:  # fmt: skip
                for expert in wanted[worker::num_workers]:
                    placement.fill(expert, _block(layer, expert))

            pool.run(fill)
            bar.update()
    return new


def _block(layer: RoutedExperts, expert: int) -> np.ndarray:
    """The whole expert where it lies now."""
    if layer.placement is not None:
        return layer.placement[expert]
    block: np.ndarray = layer.owner[expert]
    return block


def _turn(engine: Engine, homes: list[tuple[NodePlacement | None, Any]]) -> None:
    """Every layer reads its new homes (placement or ``None``, owner) from the next step on.

    Native steps hold addresses of the tables before: they go first, so that an interrupt leaves none.
    """
    engine.forget_programs()
    for layer, (placement, owner) in zip(engine.routed, homes or [], strict=bool(homes)):
        layer.place(placement, None if placement is not None else owner.addresses)
        layer.owner = owner
    engine.forget_programs()


def _leave(old: list[tuple[NodePlacement | None, Any]], new: list[NodePlacement]) -> tuple[int, int]:
    """(copies, bytes) that went."""
    num_copies, num_bytes = 0, 0
    for (before, owner), after in zip(old if new else [], new, strict=True):
        if before is None:  # whole experts in an arena
            num_copies, num_bytes = num_copies + len(owner), num_bytes + owner.num_bytes
            owner.close()
        else:
            num_copies += len(set(before.memory_of_copy) - set(after.memory_of_copy))
            num_bytes += before.release(after)
    return num_copies, num_bytes


def _slowness(machine: Machine | None, num_nodes: int) -> np.ndarray | None:
    """Relative time of a byte on each node; raises ``ValueError`` for a machine that does not say it."""
    if machine is None:
        return None
    rates = [node.best_read_gb_per_s for node in machine.nodes]
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates) or len(rates) != num_nodes:
        raise ValueError(
            f"machine {machine.name} has {len(rates)} nodes with read rates {rates}; expected the {num_nodes} of the "
            "engine's pool, each with a rate: give its own machine file, or none (equal rates)"
        )
    return known[0] / np.array(known)


def _resident_bytes() -> int | None:
    """Of this process, anonymous and shared."""
    file = Path("/proc/self/statm")
    if not file.is_file():
        return None
    import mmap

    return int(file.read_text().split()[1]) * mmap.PAGESIZE
