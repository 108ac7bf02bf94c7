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
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from moelab.dispatch.c_face import dispatch_arguments
from moelab.domain.plan import Plan
from moelab.domain.plan_copies import Copies, copies_on_nodes, whole_on
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
    started, before = time.perf_counter(), _resident_bytes()
    copies = _copies(engine, plan)
    _check_fast_tier(plan, copies, engine)
    new = _new_placements(engine, copies, machine, progress)
    peak = _resident_bytes()
    old = [layer.placement for layer in engine.routed]
    owners = [layer.owner for layer in engine.routed]
    tier_before = engine.fast_tier.plan if engine.fast_tier is not None else None
    _turn(engine, new)
    if plan.fast_tiers:
        try:
            engine.use_plan(plan)
        except BaseException:
            _turn_back(engine, old, owners, tier_before)
            raise
    elif tier_before is not None:
        engine.use_plan(None)
    kept = sum(len(each.memory_of_copy) - len(each.new_copies) for each in new)
    removed, removed_bytes = _leave(old, owners, new)
    return Applied(
        plan=str(plan.planner.get("name", plan.fingerprint())),
        num_nodes=new[0].num_nodes,
        virtual_nodes=engine.pool.virtual,
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


def _copies(engine: Engine, plan: Plan) -> list[Copies]:
    """Of every layer; a plan of one node has everything there, whole."""
    layout, shape = engine.routed[0].layout, (len(engine.routed), engine.spec.n_routed_experts)
    if engine.isa == "numba":
        raise ValueError("the engine runs on Numba, whose workers know no nodes: load it with a native isa")
    units = -(-layout.intermediate_size // GROUP)
    home = plan.format_of_tier[next(tier for tier in plan.tiers if tier.startswith("node"))]
    if set(home.expert_bytes) - {0, layout.expert_bytes}:
        raise ValueError(
            f"plan says {sorted(set(home.expert_bytes))} bytes for an expert at home; this engine's take "
            f"{layout.expert_bytes}: re-plan on a trace of this engine"
        )
    if not plan.keep_home:
        raise ValueError(
            "plan has keep_home false; the engine keeps a home copy of every expert: re-plan with keep_home true"
        )
    if sum(tier.startswith("node") for tier in plan.tiers) == 1 and engine.pool.num_nodes == 1:
        return [whole_on(np.zeros(shape[1], np.int64), units) for _ in range(shape[0])]
    return copies_on_nodes(plan, np.zeros(shape, np.int64), engine.pool.num_nodes, units)


def _check_fast_tier(plan: Plan, copies: list[Copies], engine: Engine) -> None:
    units = -(-engine.routed[0].layout.intermediate_size // GROUP)
    if plan.fast_tiers and any((of_layer[2] - of_layer[1] != units).any() for of_layer in copies):
        raise ValueError(
            "plan cuts experts into pieces beside a fast tier, whose slots are filled from whole homes: re-plan with "
            "whole experts"
        )


def _new_placements(
    engine: Engine, copies: list[Copies], machine: Machine | None, progress: bool
) -> list[NodePlacement]:
    """All complete; what they hold that is new goes with them where this raises."""
    pool, new = engine.pool, []
    slowness = _slowness(machine, pool.num_nodes)
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


def _turn(engine: Engine, placements: list[NodePlacement]) -> None:
    for layer, placement in zip(engine.routed, placements, strict=True):
        layer.place(placement)
        layer.owner = placement
    engine.forget_programs()


def _turn_back(engine: Engine, old: list[NodePlacement | None], owners: list, tier: Plan | None) -> None:
    for layer, placement, owner in zip(engine.routed, old, owners, strict=True):
        layer.place(placement, None if placement is not None else owner.addresses)
        layer.owner = owner
    engine.forget_programs()
    engine.use_plan(tier)


def _leave(old: list[NodePlacement | None], owners: list, new: list[NodePlacement]) -> tuple[int, int]:
    """(copies, bytes) that went."""
    num_copies, num_bytes = 0, 0
    for before, owner, after in zip(old, owners, new, strict=True):
        if before is None:  # whole experts in an arena
            num_copies, num_bytes = num_copies + len(owner), num_bytes + owner.num_bytes
            owner.close()
        else:
            num_copies += len(set(before.memory_of_copy) - set(after.memory_of_copy))
            num_bytes += before.release(after)
    return num_copies, num_bytes


def _slowness(machine: Machine | None, num_nodes: int) -> np.ndarray | None:
    rates = [] if machine is None else [node.best_read_gb_per_s for node in machine.nodes]
    known = [rate for rate in rates if rate is not None]
    return known[0] / np.array(known) if len(known) == len(rates) == num_nodes else None


def _resident_bytes() -> int | None:
    """Of this process, anonymous and shared."""
    file = Path("/proc/self/statm")
    if not file.is_file():
        return None
    import mmap

    return int(file.read_text().split()[1]) * mmap.PAGESIZE
