"""apply: a live engine goes over to another plan, between two generations.  Floor 4.

The difference of the two plans becomes moves (`moves`): layer after layer the new copies are complete, on their nodes,
before the old ones go, so that one layer at most is there twice. Then the fast tier changes, and in the end experts
that the new plan keeps there alone (``keep_home`` false) give up their homes. Whatever fails on the way, or Ctrl-C,
takes everything back: the engine is what it was. Moving experts between nodes changes no bit of what it computes.

Experts that come home again after such a plan are read from the checkpoint. Does not know why a plan is good.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from moelab.domain.machine import Machine
from moelab.domain.node_slowness import NodeSlowness, node_slowness, slowness_of_machine
from moelab.domain.plan import Plan
from moelab.domain.plan_copies import Copies, copies_on_nodes
from moelab.kernels.job import GROUP
from moelab.migration.interrupts import held_interrupts
from moelab.migration.moves import Moves
from moelab.migration.result import Applied

if TYPE_CHECKING:
    from moelab.engine.engine import Engine


def apply(
    engine: Engine,
    plan: Plan,
    *,
    machine: Machine | str | None = None,
    allow_unbound: bool = False,
    extra_bytes: int | None = None,
    progress: bool = True,
) -> Applied:
    """Carry out ``plan`` in ``engine`` from its next step on: homes on nodes, copies and pieces, and a fast tier.

    ``machine`` tells dispatch its read rates of the nodes in place of those that the plan was made for. The plan before
    stays whole where this raises: ``ValueError`` for another model or what the engine cannot do, ``MemoryError`` where
    a node has no room, ``RuntimeError`` while another thread holds the engine, ``OSError`` where the system refuses to
    bind memory to a real node, unless ``allow_unbound``.
    ``extra_bytes``: the most that experts take on their way beyond before and after (default: one layer's); layers of
    more go in batches of experts, and ``ValueError`` says where one expert alone is more.
    Room is asked for before the first move; see ``Applied.peak_extra_bytes``.
    """
    engine.check_caller()
    plan.check_matches(
        what="engine", model=engine.name, num_layers=len(engine.routed), num_experts=engine.spec.n_routed_experts,
        top_k=engine.spec.num_experts_per_tok, fingerprint=engine.spec.fingerprint,
    )  # fmt: skip
    from moelab.engine.homes import planned_homeless  # torch: whoever has an engine has it
    from moelab.engine.placement import check_change

    started, before = time.perf_counter(), _resident_bytes()
    told = _told(engine, plan, Machine.given(machine))
    target = _target(engine, plan)
    num_nodes = engine.routed[0].num_nodes if target is None else len(target.memory_nodes)
    check_change(engine, plan, num_nodes)
    moves = Moves(
        engine.routed,
        engine.pool,
        engine.pool.memory_node_of_node if target is None else target.memory_nodes,
        allow_unbound,
        extra_bytes,
    )
    peak = _Peak()
    tier, choice = engine.fast_tier, dict(engine.tier_choice)
    tier_plan = None if tier is None else tier.plan
    if tier is not None:
        tier.settle()  # from here on nobody reads homes but us
    engine.forget_programs()  # native steps hold addresses of the tables before
    given_up, done = 0, False
    try:
        if target is not None:
            _go(engine, moves, target, told.values, peak, progress)
        if plan.fast_tiers or tier is not None:
            engine.change_tier(plan if plan.fast_tiers else None)
        peak.look()
        with held_interrupts():
            # Made before there is no way back: what may fail leaves the old plan whole.
            give_up = None if plan.keep_home else engine.prepare_to_give_up(plan)
            moves.commit()
            given_up = 0 if give_up is None else give_up()
            done = True
    except BaseException as error:
        if not done:  # else Ctrl-C came at the very end: the new plan is whole
            with held_interrupts():
                _take_back(engine, moves, tier, tier_plan, choice, error)
        raise
    finally:
        engine.forget_programs()
    return Applied(
        plan=str(plan.planner.get("name", plan.fingerprint())),
        num_nodes=num_nodes,
        virtual_nodes=engine.pool.virtual,
        binding=engine.binding,
        slowness=told.said,
        slowness_of=told.source,
        copies_added=moves.num_added,
        copies_kept=moves.num_kept,
        copies_removed=moves.num_removed,
        bytes_added=moves.added_bytes,
        bytes_removed=moves.removed_bytes,
        bytes_not_returned=moves.unreturned_bytes,
        peak_extra_bytes=moves.peak_extra_bytes,
        homes_given_up=0 if plan.keep_home else int(planned_homeless(plan).sum()),
        home_bytes_given_up=given_up,
        homes_from_checkpoint=moves.num_fetched,
        seconds=time.perf_counter() - started,
        resident_before_bytes=before,
        resident_peak_bytes=peak.num_bytes,
        resident_after_bytes=_resident_bytes(),
        fast_tier=None if engine.fast_tier is None else f"{int(engine.fast_tier.resident.sum())} experts",
    )


def _take_back(
    engine: Engine, moves: Moves, tier: Any, tier_plan: Plan | None, choice: dict[str, Any], error: BaseException
) -> None:
    """The fast tier of before first, while every expert has a home, then the homes. What cannot be is noted."""
    try:
        if engine.fast_tier is not tier:  # its memory went before the new one's was asked for
            engine.change_tier(tier_plan, **choice)
    except Exception as second:
        error.add_note(f"the fast tier of before could not be made again ({second}): the engine runs without one")
        if tier_plan is not None and not tier_plan.keep_home:
            moves.commit()  # homes that were given up for it must stay now
            return
    if stuck := moves.undo():
        error.add_note(
            f"layers {', '.join(map(str, stuck))} stay where the new plan has them: the room that they left was taken "
            "meanwhile. They are whole, and results are the same; apply a plan again when there is room"
        )


@dataclass(frozen=True)
class _Target:
    """Where the homes go: copies of each layer, and what the nodes of the copies are bound to."""

    copies: list[Copies]
    memory_nodes: list[int | None]


def _target(engine: Engine, plan: Plan) -> _Target | None:
    """``None`` where homes stay as they are: the plan names one node, which says nothing, and every expert has one."""
    from moelab.engine.homes import check_home_bytes, homeless_of

    layout = engine.routed[0].layout
    nodes = [tier for tier in plan.tiers if tier.startswith("node")]
    check_home_bytes(plan, layout)
    if engine.isa == "numba" and (len(nodes) > 1 or not plan.keep_home):
        raise ValueError("the engine runs on Numba, whose workers know no nodes: load it with a native isa")
    homeless, units = homeless_of(engine.routed), -(-layout.intermediate_size // GROUP)
    if len(nodes) > 1:
        # Those that will have no home stay on the way where they are, as far as that can be.
        now = _first_node(engine)
        return _Target(copies_on_nodes(plan, now, engine.pool.num_nodes, units), engine.pool.memory_node_of_node)
    if not homeless.any():
        return None
    copies = [_with_all(layer.placement, units) for layer in engine.routed]
    num_nodes = engine.routed[0].num_nodes
    return _Target(copies, engine.pool.memory_node_of_node if num_nodes == engine.pool.num_nodes else [None])


def _first_node(engine: Engine) -> np.ndarray:
    """int64 [L, E]: the node of each expert's first copy, 0 where nodes are not told apart."""
    found = np.zeros((len(engine.routed), engine.spec.n_routed_experts), np.int64)
    for layer, routed in enumerate(engine.routed):
        if routed.placement is not None and routed.placement.num_nodes > 1:
            for expert, _, _, node in sorted(routed.placement.memory_of_copy, reverse=True):
                found[layer, expert] = node
    return found


def _with_all(placement: Any, units: int) -> Copies:
    """The copies of a layer, and the homeless experts whole, each on the node that has the fewest bytes by then."""
    rows = list(placement.memory_of_copy)
    held = placement.bytes_of_node.copy()
    for expert in np.flatnonzero(placement.homeless).tolist():
        node = int(held.argmin())
        held[node] += placement.layout.expert_bytes
        rows.append((expert, 0, units, node))
    table = np.array(sorted(rows), np.int64).reshape(-1, 4)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def _go(
    engine: Engine, moves: Moves, target: _Target, slowness: np.ndarray | None, peak: _Peak, progress: bool
) -> None:
    from moelab.engine.homes import CheckpointExperts, dispatch_for, homeless_of

    with ExitStack() as stack:
        fetch = None
        if homeless_of(engine.routed).any():
            source = CheckpointExperts(engine)
            stack.callback(source.close)
            fetch = source.fetch
        bar = stack.enter_context(
            tqdm(total=len(target.copies), desc="moving experts", unit="layer", disable=not progress, delay=1)
        )

        moves.go(
            target.copies, slowness=slowness if len(target.memory_nodes) > 1 else None, dispatch=dispatch_for,
            fetch=fetch, on_filled=peak.look, on_layer=bar.update,
        )  # fmt: skip


class _Peak:
    """The largest resident size that was seen; ``None`` where the system does not say."""

    def __init__(self) -> None:
        self.num_bytes = _resident_bytes()

    def look(self) -> None:
        now = _resident_bytes()
        if now is not None and self.num_bytes is not None:
            self.num_bytes = max(self.num_bytes, now)


def _told(engine: Engine, plan: Plan, machine: Machine | None) -> NodeSlowness:
    """Relative time of a byte on each node; raises ``ValueError`` for a machine that does not say it."""
    num_nodes = engine.pool.num_nodes
    if machine is None:
        if sum(tier.startswith("node") for tier in plan.tiers) == 1:  # homes stay, and so does what dispatch was told
            return _told_before(engine)
        return node_slowness(plan, None, num_nodes)
    told = slowness_of_machine(machine, num_nodes)
    if told.values is None:
        raise ValueError(
            f"machine {machine.name} has {len(machine.nodes)} nodes with read rates "
            f"{[node.best_read_gb_per_s for node in machine.nodes]}; expected the {num_nodes} of the engine's pool, "
            "each with a rate: give its own machine file, or none (the plan's rates)"
        )
    return told


def _told_before(engine: Engine) -> NodeSlowness:
    placement = engine.routed[0].placement
    if placement is None or placement.num_nodes == 1:
        return NodeSlowness(None, "one node")
    return NodeSlowness(placement.slowness.copy(), "as before: the plan names one node")


def _resident_bytes() -> int | None:
    """Of this process, anonymous and shared."""
    file = Path("/proc/self/statm")
    if not file.is_file():
        return None
    import mmap

    return int(file.read_text().split()[1]) * mmap.PAGESIZE
