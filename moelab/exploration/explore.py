"""explore: settings and edits -> plan and figures, on a sample at once, on everything in full.  Floor 4.

The plain-Python twin of ``widgets.PlacementExplorer``. One trace is split once, by request; every plan is made on one
part and scored on the other. ``preview`` takes a quick placement where the planner has not searched yet, and stretches
of the held-out steps; ``full`` lets the planner search and simulates every step of both parts. Both say how far above
the bound they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.domain.plan import FastTier, Plan, PlanModel, PolicyChoice, TierFormat
from moelab.domain.trace import Phase, Trace, TraceHeader
from moelab.exploration.bound import bound_of
from moelab.exploration.draft import FAST, Draft
from moelab.exploration.edit import Edit, edited
from moelab.exploration.figures import Figures, figures
from moelab.exploration.machine_of_nodes import machine_of_nodes
from moelab.exploration.memory import memory_of_tiers, other_bytes
from moelab.exploration.quick_placement import EXACT, filled, quick_placement
from moelab.exploration.regret import regret_of_experts
from moelab.exploration.sample import Part, stretches, whole
from moelab.exploration.search import search
from moelab.exploration.settings import Settings, check_units
from moelab.kernels.measured_share import kernel_share
from moelab.planner.placements import per_layer
from moelab.planner.static_plan import of_phase, split
from moelab.simulator.result import SimResult
from moelab.simulator.simulate import simulate

PREVIEW_ROUTINGS = 500_000
"""That a preview simulates at most: 1,040 tokens of 60 layers and 8 experts."""
CONTEXT = 4096
"""Tokens of the cache that ``memory`` counts."""

Progress = Callable[[str, float], None]
"""Told what runs and the part done, 0 to 1; what it raises ends the work."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A plan and what it is worth on ``part``. ``regret`` is found when it is first asked for."""

    settings: Settings
    edits: tuple[Edit, ...]
    plan: Plan
    draft: Draft
    figures: Figures
    result: SimResult
    part: Part
    find_regret: Callable[[], np.ndarray] | None = None

    @cached_property
    def regret(self) -> np.ndarray | None:
        """float64 [L, E]: reads of each expert beyond the bound (``exploration.regret``); ``None`` without a bound."""
        return None if self.find_regret is None else self.find_regret()


class Exploration:
    """Placements of one trace on one machine.

    ``machine`` ``None``: no times. ``model``: a ``ModelSpec`` or a preset's name, for the bytes of what the trace does
    not say (experts, the rest of the model). ``phase``: whose steps are counted (default: decode where there is any).
    ``preview_tokens``: of the held-out part that a preview simulates (default: ``PREVIEW_ROUTINGS``).
    Raises ``ValueError`` for what does not fit.
    """

    def __init__(
        self,
        trace: Trace,
        machine: Machine | None = None,
        model: ModelSpec | str | None = None,
        *,
        phase: str | None = "auto",
        held_out: float = 0.25,
        seed: int = 0,
        expert_bytes: int | Sequence[int] | None = None,
        preview_tokens: int | None = None,
    ):
        header = trace.header
        self.trace, self.machine = trace, machine
        self.model = ModelSpec.preset(model) if isinstance(model, str) else model
        if phase == "auto":
            phase = "decode" if (trace.tokens.phase == Phase.DECODE).any() else None
        self.phase, self.held_out, self.seed = phase, held_out, seed
        self.train, self.test, self.how = split(trace, held_out=held_out, seed=seed)
        self.loads = of_phase(self.train, phase).loads()
        _check_same_model(header, self.model)
        self.expert_bytes = _expert_bytes(header.num_layers, header.expert_bytes, expert_bytes, self.model)
        self.intermediate = header.moe_intermediate_size or (
            self.model.moe_intermediate_size if self.model is not None else None
        )
        if preview_tokens is None:
            preview_tokens = PREVIEW_ROUTINGS // (header.num_layers * header.top_k)
        self.preview_part = stretches(self.test, preview_tokens, seed)
        self.warmed_part = self.preview_part
        if phase is not None:  # steps that do not count need a phase that does
            self.warmed_part = stretches(self.test, preview_tokens, seed, warm_tokens=preview_tokens)
        self.other_bytes = other_bytes(self.model, CONTEXT)
        self._full_parts: dict[str, Part] = {}
        self._searched: dict[Settings, tuple[Plan, Draft]] = {}
        self._trace_fingerprint = trace.fingerprint()

    # -- the plan --------------------------------------------------------------------------------------

    def plan(self, settings: Settings, edits: Sequence[Edit] = (), *, searched: bool = True) -> Plan:
        """The planner's plan after the edits; without ``searched`` a quick placement stands in for it."""
        return self._place(settings, tuple(edits), searched=searched)[0]

    def _place(self, settings: Settings, edits: tuple[Edit, ...], *, searched: bool) -> tuple[Plan, Draft, str]:
        """(plan, draft, who placed it)."""
        key = replace(settings, policy="static")
        plan: Plan | None = None
        if searched and key not in self._searched:
            check_units(settings, self.num_units)
            found = search(self, settings)
            self._searched[key] = (found, Draft.of_plan(found))
        if key in self._searched:
            plan, draft = self._searched[key]
            placed_by = settings.planner
            if settings.policy == "static" != plan.policy.name:  # a tier that its own policy was to fill
                draft = filled(draft, self.loads, self._slots(plan, draft, settings))
                placed_by += ", filled with the hottest"
        else:
            check_units(settings, self.num_units)
            draft = quick_placement(settings, self.loads, self.num_units)
            placed_by = settings.planner if settings.planner in EXACT else f"quick stand-in for {settings.planner}"
        original = draft
        for edit in edits:
            draft = edited(draft, edit, self.loads, self._slots(plan, draft, settings))
        if edits:
            placed_by += f", {len(edits)} edit{'s' * (len(edits) > 1)} by hand"
        choice = PolicyChoice(name=settings.policy, seed=self.seed)
        if plan is None:
            return self._plan_of(settings, draft, placed_by, choice), draft, placed_by
        if draft is original and plan.policy == choice:
            return plan, draft, placed_by
        told = {**plan.planner, **({"edits": [str(edit) for edit in edits]} if edits else {})}
        return draft.put_into(plan, planner=told, prediction={}, policy=choice), draft, placed_by

    @property
    def num_units(self) -> int:
        """Of 32 rows, of an expert; 1 where the intermediate size is not known."""
        return -(-(self.intermediate or 1) // Plan.model_fields["piece_unit"].default)

    def _slots(self, plan: Plan | None, draft: Draft, settings: Settings) -> np.ndarray:
        """int [L]: experts that fast0 holds in each layer."""
        if plan is not None:
            fast = next((one for one in plan.fast_tiers if one.tier == FAST), None)
            if fast is None or fast.slots_per_layer is None:
                return draft.fast.sum(1)
            return np.asarray(fast.slots_per_layer)
        return np.full(len(self.loads), min(settings.slots_per_layer, self.loads.shape[1]))

    def _plan_of(self, settings: Settings, draft: Draft, placed_by: str, policy: PolicyChoice) -> Plan:
        header = self.trace.header
        slots = (min(settings.slots_per_layer, header.num_experts),) * header.num_layers
        has_fast = settings.nodes == 1 or settings.slots_per_layer > 0
        tiers = (*(f"node{n}" for n in range(settings.nodes)), *((FAST,) if has_fast else ()))
        weights = TierFormat(weight_format=header.quantization, expert_bytes=self.expert_bytes)
        return Plan(
            model=PlanModel(
                name=header.model, model_type=header.model_type, num_layers=header.num_layers,
                num_experts=header.num_experts, top_k=header.top_k, moe_intermediate_size=self.intermediate,
                fingerprint=header.model_fingerprint,
            ),
            tiers=tiers,
            placements=draft.placements(tiers, self.num_units),
            fast_tiers=(FastTier(tier=FAST, slots_per_layer=slots),) if has_fast else (),
            format_of_tier=dict.fromkeys(tiers, weights),
            pinned=tuple((int(layer), int(expert), FAST) for layer, expert in np.argwhere(draft.pinned)),
            policy=policy,
            planner={"name": placed_by, "held_out": self.held_out, "seed": self.seed, **self.how},
            fingerprints={"trace": self._trace_fingerprint}, node_rates=self._node_rates(settings.nodes),
        )  # fmt: skip

    def _node_rates(self, num_nodes: int) -> tuple[float, ...] | None:
        """GB/s for dispatch, of a machine of as many nodes; ``None`` of one, of others, of unknown ones."""
        if num_nodes < 2 or self.machine is None or len(self.machine.nodes) != num_nodes:
            return None
        known = [rate for node in self.machine.nodes if (rate := node.best_read_gb_per_s) is not None]
        return tuple(known) if len(known) == num_nodes else None

    # -- figures ---------------------------------------------------------------------------------------

    def preview(self, settings: Settings, edits: Sequence[Edit] = ()) -> Outcome:
        """Figures on stretches of held-out steps, under a quick placement where the planner has not searched yet.

        A policy that remembers sees as many steps before each stretch, which do not count.
        """
        part = self.preview_part if settings.policy == "static" else self.warmed_part
        return self._outcome(settings, tuple(edits), part, searched=False, on_progress=None)

    def full(self, settings: Settings, edits: Sequence[Edit] = (), on_progress: Progress | None = None) -> Outcome:
        """Figures on every step of the held-out part, and the planning part beside, under the planner's placement."""
        if "test" not in self._full_parts:
            self._full_parts["test"] = whole(self.test)
            if self.how["split"] != "none":
                self._full_parts["train"] = whole(self.train)
        return self._outcome(
            settings, tuple(edits), self._full_parts["test"], searched=True, on_progress=on_progress or _silent,
        )  # fmt: skip

    def _outcome(
        self, settings: Settings, edits: tuple[Edit, ...], part: Part, *, searched: bool, on_progress: Progress | None
    ) -> Outcome:
        begin = time.perf_counter()
        if on_progress is not None:
            on_progress(f"{settings.planner} searches", 0.0)
        plan, draft, placed_by = self._place(settings, edits, searched=searched)
        machine, efficiency, why = self._machine(settings)

        def run(of: Part, what: str, begins: float, **options: Any) -> SimResult:
            told = None if on_progress is None else (lambda share: on_progress(what, begins + share / 3))
            return simulate(
                of.trace, options.pop("plan", plan), options.pop("machine", None), phase=self.phase,
                efficiency=efficiency, requests=of.requests, progress=False, on_progress=told, **options,
            )  # fmt: skip

        result = run(part, "held-out part", 0.0, machine=machine)
        on_train: float | None = None
        bound = bound_of(result, plan, draft, machine, lambda oracle: run(part, "oracle", 1 / 3, plan=oracle))
        if on_progress is not None:
            if "train" in self._full_parts:
                on_train = run(self._full_parts["train"], "planning part", 2 / 3, by_step=False).reads_per_layer_step
            on_progress("done", 1.0)
        found = figures(
            result, part, machine=machine, efficiency=efficiency, why_no_time=why,
            bound=bound,
            memory=memory_of_tiers(plan, self._whole_machine(settings), self.other_bytes), placed_by=placed_by,
            stands_in_for=settings.planner if placed_by.startswith("quick") else "", scored_on=self.scored_on(part),
            is_preview=on_progress is None,
        )  # fmt: skip
        found = replace(found, seconds=time.perf_counter() - begin, train_reads_per_layer_step=on_train)
        if bound is None:
            return Outcome(settings, edits, plan, draft, found, result, part)

        def find_regret() -> np.ndarray:
            hidden_size = part.trace.header.hidden_size
            return regret_of_experts(result, bound, plan, draft, part.requests, machine, hidden_size)

        return Outcome(settings, edits, plan, draft, found, result, part, find_regret)

    def scored_on(self, part: Part) -> str:
        """What stands behind a figure, in words."""
        of = {"request": "held-out requests", "time": "held-out steps, split in time", "none": "in sample"}
        words = of[self.how["split"]] + (f", {self.phase} only" if self.phase else "")
        return f"sample of {words}" if part.is_sample else words

    def _whole_machine(self, settings: Settings) -> Machine | None:
        return None if self.machine is None else machine_of_nodes(self.machine, settings.nodes)

    def _machine(self, settings: Settings) -> tuple[Machine | None, float, str]:
        """(machine that gives times or ``None``, kernel efficiency, why there is none)."""
        machine = self._whole_machine(settings)
        if machine is None:
            return None, 1.0, "no machine was given: machine=moelab.this_machine() or a preset"
        if 0 in self.expert_bytes:
            return None, 1.0, "the trace does not say the bytes of an expert: give model= or expert_bytes="
        if any(node.best_read_gb_per_s is None for node in machine.nodes):
            return None, 1.0, f"{machine.name} has no read rates: probe it with moelab.this_machine()"
        return machine, kernel_share(machine, self.trace.header.quantization).share, ""


def _check_same_model(header: TraceHeader, model: ModelSpec | None) -> None:
    if model is None:
        return
    found, given = (header.num_layers, header.num_experts), (model.num_moe_layers, model.n_routed_experts)
    if found != given:
        raise ValueError(
            f"trace of {header.model} is {found[0]} layers x {found[1]} experts, model {model.name} is {given[0]} x "
            f"{given[1]}: expected the model that was recorded, or none"
        )


def _silent(what: str, share: float) -> None:
    """Nobody asked for progress."""


def _expert_bytes(
    num_layers: int, recorded: Sequence[int], given: int | Sequence[int] | None, model: ModelSpec | None
) -> tuple[int, ...]:
    if given is not None:
        return per_layer("expert_bytes", given, num_layers)
    if 0 in recorded and model is not None and model.sizes_exact:
        return (model.expert_bytes(model.native_formats["routed_experts"]),) * num_layers
    return tuple(recorded)
