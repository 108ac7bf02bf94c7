"""node_problem: what every planner of NUMA nodes solves: layer-steps to plan on and to score on, tiers, rates, budgets.

Floor 3. Built from a trace and the options that all of these planners share, so that one plan differs from another
only by its placement. Does not know how a placement is found or written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moelab.dispatch import MOST_TIERS
from moelab.domain.machine import Machine
from moelab.domain.trace import Trace, TraceHeader
from moelab.kernels.piece_bytes import bytes_of_pieces
from moelab.planner.balanced_packing import whole_shares
from moelab.planner.batches import in_batches
from moelab.planner.cut_price import CutPrice, measured_price
from moelab.planner.layer_steps import LayerSteps, StepKind, groups_of_requests
from moelab.planner.placements import num_units_of, per_layer
from moelab.planner.static_plan import of_phase, split
from moelab.planner.step_maximum import WHOLE, TierTimes


@dataclass(frozen=True, eq=False)
class NodeProblem:
    """Tiers are nodes first, then fast tiers; N counts both, ``num_nodes`` the first.

    ``train`` and ``test``: layer-steps to plan on and to score on (the same where nothing is held out, see ``how``).
    ``tier_bytes`` int64 [N, L]: of one expert on a tier (1 each where the trace does not say them: ``has_bytes``).
    ``budget`` int64 [N]: bytes of experts that a tier may hold. ``layer_weight`` float64 [L]: bytes of a layer's expert
    over their mean. ``piece_units`` int64 [num_nodes]: rows units of a cut expert on each node. ``rates_said``
    [num_nodes]: GB/s as given or as the machine's; ``None`` where nobody says them.
    """

    header: TraceHeader
    trace_fingerprint: str
    machine: Machine | None
    train: LayerSteps
    test: LayerSteps
    how: dict[str, Any]
    tiers: tuple[str, ...]
    num_nodes: int
    times: TierTimes
    tier_bytes: np.ndarray
    has_bytes: bool
    budget: np.ndarray
    layer_weight: np.ndarray
    intermediate: int | None
    weight_format: str
    piece_units: np.ndarray
    cut_price: CutPrice
    keep_home: bool = True
    rates_said: tuple[float, ...] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(L, E)."""
        return self.header.num_layers, self.header.num_experts

    @property
    def can_cut(self) -> bool:
        """Is the intermediate size known, with a unit of rows for every node?"""
        return self.intermediate is not None and bool((self.piece_units > 0).all())

    @property
    def all_bytes(self) -> int:
        """Bytes of one copy of every expert."""
        return int(self.tier_bytes[0].sum() * self.header.num_experts)

    @property
    def node_share(self) -> np.ndarray:
        """float64 [num_nodes]: part of the experts whose home a node is: as its rate, but no more than it may hold."""
        largest = int(self.tier_bytes[0].max())  # whole experts
        most = self.budget[: self.num_nodes] // largest * largest / self.all_bytes
        if most.sum() <= 1:
            return most / most.sum()
        share = self.node_rates / self.node_rates.sum()
        for _ in range(self.num_nodes):  # what is above a node's budget goes to the others
            full = share >= most
            rest = np.where(full, 0, self.node_rates)
            if not rest.any():
                break
            share = np.where(full, most, (1 - most[full].sum()) * rest / rest.sum())
        return share

    @property
    def node_rates(self) -> np.ndarray:
        """float64 [num_nodes]: relative read rates, of mean 1."""
        return 1 / (self.times.slowness[: self.num_nodes] * WHOLE)

    def room(self, masks: np.ndarray, homes: np.ndarray | None = None) -> np.ndarray:
        """int64 [N]: bytes of the budgets that are left under ``masks`` [L, E] (and ``homes`` of fast-tier experts)."""
        return self.budget - self.used(masks, homes)

    def lifted(self, masks: np.ndarray) -> NodeProblem:
        """With budgets that hold ``masks``, unless what each node may hold was said: shares that follow from rates are
        nobody's limit to a baseline that does not look at rates."""
        if "node_bytes" in self.how:
            return self
        held = np.where(np.arange(len(self.tiers)) < self.num_nodes, self.used(masks), 0)
        return replace(self, budget=np.maximum(self.budget, held))

    def used(self, masks: np.ndarray, homes: np.ndarray | None = None, *, exact: bool = False) -> np.ndarray:
        """int64 [N]: bytes that each tier holds; a cut expert counts by its pieces, in proportion to their units.

        ``exact``: as the kernels round pieces (``kernels.piece_bytes``), which budgets do not ask for.
        """
        held = masks if homes is None else masks | homes
        num_units = int(self.piece_units.sum())
        out = np.zeros(len(self.tiers), np.int64)
        for tier in range(len(self.tiers)):
            out[tier] = ((held >> tier & 1) * self.tier_bytes[tier][:, None]).sum()
            if tier < self.num_nodes:
                pieces = self.tier_bytes[tier] * self.piece_units[tier] // num_units
                if exact and self.has_bytes:
                    stop = np.full(self.shape[0], self.piece_units[: tier + 1].sum())
                    pieces = bytes_of_pieces(
                        self.tier_bytes[tier], stop - self.piece_units[tier], stop, num_units,
                        hidden_size=self.header.hidden_size, intermediate_size=self.intermediate,
                        weight_format=self.weight_format,
                    )  # fmt: skip
                out[tier] += ((held == 0) * pieces[:, None]).sum()
        return out


def node_problem(
    trace: Trace,
    *,
    nodes: int | None = None,
    extra_memory: float = 0.0,
    steps: StepKind = "step",
    batch: int | None = None,
    machine: Machine | str | None = None,
    node_rates: Sequence[float] | None = None,
    node_bytes: Sequence[int] | None = None,
    fast_slots: Sequence[int] = (),
    fast_rates: Sequence[float] | None = None,
    keep_home: bool = True,
    held_out: float = 0.25,
    seed: int = 0,
    phase: str | None = None,
    expert_bytes: int | Sequence[int] | None = None,
    moe_intermediate_size: int | None = None,
    weight_format: str | None = None,
    cut_price: CutPrice | None = None,
) -> NodeProblem:
    """The problem of ``nodes`` NUMA nodes (default: the machine's, or 2).

    ``extra_memory``: bytes beyond one copy of every expert, as a fraction of these, over all nodes; they and the homes
    are shared out in proportion to the rates of the nodes, unless ``node_bytes`` [num_nodes] says what each may hold
    (experts where the bytes of one are not known; ``how`` says what extra memory it is). ``node_rates`` and
    ``fast_rates``: GB/s, by default the machine's; nodes beyond the machine's are virtual, of equal rate.
    ``fast_slots``: experts of all layers together that each fast tier holds. ``steps``: ``step`` or ``token``.
    ``batch``: requests decoded together (``batches``), which the trace has one by one.
    ``held_out``, ``seed``, ``phase``, ``expert_bytes``, ``moe_intermediate_size``, ``weight_format``: as in
    ``frequency``. Raises ``ValueError`` for what is impossible.
    """
    header, machine = trace.header, Machine.given(machine)
    num_nodes = nodes if nodes is not None else (len(machine.nodes) if machine and len(machine.nodes) > 1 else 2)
    num_tiers = num_nodes + len(fast_slots)
    if num_nodes < 1 or num_tiers > MOST_TIERS:
        raise ValueError(f"got {num_nodes} nodes and {len(fast_slots)} fast tiers, expected 1 to {MOST_TIERS} in all")
    if node_bytes is not None and extra_memory:
        raise ValueError(
            f"got node_bytes and extra_memory {extra_memory}, expected one of both: node_bytes says what copies may "
            "take"
        )
    if not 0 <= extra_memory <= num_nodes - 1:
        raise ValueError(
            f"extra_memory is {extra_memory}, expected 0 to {num_nodes - 1} (every expert on all {num_nodes} nodes)"
        )
    rates, rates_of = _node_rates(num_nodes, machine, node_rates)
    fast, fast_rates_of = _fast_rates(len(fast_slots), machine, fast_rates)
    whole, kind = of_phase(trace, phase), steps
    if batch is not None:
        whole, kind = _batched(whole, steps, batch, seed), "step"
    part, rest, how = split(whole, held_out=held_out, seed=seed, steps=kind)
    train = LayerSteps.of_trace(part, kind)
    test = train if how["split"] == "none" else LayerSteps.of_trace(rest, kind)
    intermediate = moe_intermediate_size or header.moe_intermediate_size
    price = cut_price or measured_price(machine, header.hidden_size, intermediate, num_nodes)
    num_units = num_units_of(intermediate)
    units = whole_shares(num_units, rates)
    said = per_layer("expert_bytes", header.expert_bytes if expert_bytes is None else expert_bytes, header.num_layers)
    has_bytes = 0 not in said
    layer_bytes = np.array(said if has_bytes else (1,) * header.num_layers, np.int64)
    mean_rate = rates.mean()
    slowness = np.concatenate([mean_rate / rates, np.where(fast > 0, mean_rate / np.maximum(fast, 1e-9), 1e-12)])
    pieces = np.concatenate([units / num_units * WHOLE * price.slice_factor, np.zeros(len(fast_slots))])
    budgets = _node_budgets(layer_bytes, header.num_experts, extra_memory, rates, node_bytes, fast_slots, keep_home)
    if node_bytes is not None:
        beyond = sum(budgets) / (int(layer_bytes.sum()) * header.num_experts) - 1
        extra_memory = float(np.clip(beyond, 0, num_nodes - 1))
        how["node_bytes"] = budgets
    budgets += [int(slots * layer_bytes.max()) for slots in fast_slots]
    return NodeProblem(
        header=header,
        trace_fingerprint=trace.fingerprint(),
        machine=machine,
        train=train,
        test=test,
        how={
            "nodes": num_nodes, "extra_memory": extra_memory, "steps": steps, "held_out": held_out, "seed": seed, **how,
            **({} if batch is None else {"batch": batch}),
            "phase": phase or "all", "rates": rates_of, **({"fast_rates": fast_rates_of} if fast_slots else {}),
        },
        tiers=(*(f"node{n}" for n in range(num_nodes)), *(f"fast{f}" for f in range(len(fast_slots)))),
        num_nodes=num_nodes,
        times=TierTimes(num_nodes, slowness / WHOLE, np.rint(pieces).astype(np.int64), float(price.barrier)),
        tier_bytes=np.tile(layer_bytes, (num_tiers, 1)),
        has_bytes=has_bytes,
        budget=np.array(budgets, np.int64),
        layer_weight=layer_bytes / layer_bytes.mean(),
        intermediate=intermediate,
        weight_format=weight_format or header.quantization,
        piece_units=units,
        cut_price=price,
        keep_home=keep_home,
        rates_said=None if rates_of.startswith("equal") or num_nodes < 2 else tuple(rates.tolist()),
    )  # fmt: skip


def _batched(trace: Trace, steps: StepKind, batch: int, seed: int) -> Trace:
    if steps == "step" and groups_of_requests(trace, steps)[1] < len(np.unique(trace.tokens.request)):
        raise ValueError(
            f"batch is {batch}, but the requests of this trace are already in batches: leave it out, or take each "
            "token as its own (steps token)"
        )
    return in_batches(trace, batch, seed)


def _node_rates(num_nodes: int, machine: Machine | None, given: Sequence[float] | None) -> tuple[np.ndarray, str]:
    """(GB/s [num_nodes], where they come from); only their ratios matter."""
    if given is not None:
        rates = np.array(given, np.float64)
        if rates.shape != (num_nodes,) or not (rates > 0).all():
            raise ValueError(f"node_rates are {list(given)}, expected {num_nodes} numbers above 0")
        return rates, "as given"
    if machine is None or num_nodes > len(machine.nodes):
        return np.ones(num_nodes), "equal" if machine is None else "equal: more nodes than the machine has, virtual"
    found = [node.best_read_gb_per_s for node in machine.nodes[:num_nodes]]
    if any(rate is None for rate in found):
        return np.ones(num_nodes), "equal: the machine has no read rates"
    return np.array(found, np.float64), f"{machine.source} of {machine.name}"


def _fast_rates(num_fast: int, machine: Machine | None, given: Sequence[float] | None) -> tuple[np.ndarray, str]:
    """(GB/s [F] relative to the nodes' unit, where they come from); 0 where unknown: then fast tiers take no time."""
    if given is not None:
        rates = np.array(given, np.float64)
        if rates.shape != (num_fast,) or not (rates > 0).all():
            raise ValueError(f"fast_rates are {list(given)}, expected {num_fast} numbers above 0")
        return rates, "as given"
    found = [] if machine is None else [tier.read_gb_per_s for tier in machine.fast_tiers[:num_fast]]
    if len(found) < num_fast or any(rate is None for rate in found):
        return np.zeros(num_fast), "unknown: fast tiers count as taking no time"
    return np.array(found, np.float64), f"{machine.source} of {machine.name}" if machine else ""


def _node_budgets(
    layer_bytes: np.ndarray, num_experts: int, extra_memory: float, rates: np.ndarray,
    given: Sequence[int] | None, fast_slots: Sequence[int], keep_home: bool,
) -> list[int]:  # fmt: skip
    """Bytes of each node: its share of one copy of everything, in whole experts, and of the extra memory."""
    total, largest = int(layer_bytes.sum()) * num_experts, int(layer_bytes.max())
    in_fast = 0 if keep_home else int(layer_bytes.min()) * sum(fast_slots)
    if given is not None:
        budgets = [int(each) for each in given]
        if len(budgets) != len(rates) or sum(budgets) < total - in_fast:
            raise ValueError(
                f"node_bytes are {budgets}, expected {len(rates)} numbers that hold all experts ({total:,} bytes)"
            )
        return budgets
    share = rates / rates.sum()
    homes = [-(-int(np.ceil(total * part - 1e-6)) // largest) * largest for part in share]
    return [home + int(total * extra_memory * part + 1e-6) for home, part in zip(homes, share, strict=True)]
