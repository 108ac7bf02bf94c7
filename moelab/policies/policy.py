"""Policy: one record per policy, and the state it starts from.  Floor 1.

Knows how a plan's fast tiers and initial residents become arrays. Does not know any algorithm (one
file each beside this one) nor who calls (simulator or live engine): both start with
``PolicyState.of_plan`` and from then on only ``contract.close_request`` changes residency.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from moelab.domain.plan import Plan, PolicyChoice
from moelab.policies.signature import UNLIMITED
from moelab.policies.view import View

CALLER_PARAMETERS: dict[str, int] = {"overflow": 0}
"""Parameters that every policy has because the caller acts on them (``FLAG_OVERFLOW``)."""


@dataclass(frozen=True)
class PolicySetup:
    """What a policy may know when its state is allocated.

    ``resident`` int8 [L, E] and ``pinned`` bool [L, E] (never to be evicted), ``expert_bytes`` int64
    [1 + F, L], ``free_slots`` and ``free_bytes`` int64 [F, P]: room left beside the initial residents.
    ``first_use`` int64 [L, E] only for oracles: the first use of each expert, in the form of ``next_use``.
    """

    num_layers: int
    num_experts: int
    resident: np.ndarray
    pinned: np.ndarray
    expert_bytes: np.ndarray
    free_slots: np.ndarray
    free_bytes: np.ndarray
    parameters: Mapping[str, float | int]
    first_use: np.ndarray | None = None

    @property
    def num_pools(self) -> int:
        return self.free_slots.shape[1]


def no_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """(float_state, int_state) of a policy that remembers nothing."""
    return np.zeros(0, np.float64), np.zeros(0, np.int64)


@dataclass(frozen=True)
class Policy:
    """One policy. ``decide`` is ``view.DECIDE``, compiled with ``compiled``.

    ``parameters`` are its names with defaults; a float default goes to ``float_parameters``, an int to
    ``int_parameters``, each in this order; ``seed`` is filled from the plan's. ``new_state`` returns
    (float_state, int_state). ``prefetches``: it may copy what the request does not use (no oracle of
    demand bounds it). ``fills``: it puts experts into free room; one that does not leaves an empty tier empty.
    ``bypasses``: it may leave a miss outside though room could be made. ``layers_are_apart``: where each layer has its
    own pool, what it decides in a layer depends on that layer's requests alone, so that the simulator may replay layer
    after layer. ``lossy``: its use changes what the model computes. ``reads``: the optional
    arrays (names of ``Trace.extras``) that it looks at; an engine that runs it computes them, a recorder keeps them;
    ``without_reads``: what it does where a trace has none.
    ``reference``: where the definition comes from.
    """

    name: str
    decide: Any
    reference: str
    parameters: Mapping[str, float | int]
    new_state: Callable[[PolicySetup], tuple[np.ndarray, np.ndarray]] = no_state
    needs_next_use: bool = False
    prefetches: bool = False
    bypasses: bool = False
    layers_are_apart: bool = False
    lossy: bool = False
    fills: bool = True
    reads: tuple[str, ...] = ()
    without_reads: str = ""

    def lacks(self, extras: Collection[str]) -> str | None:
        """What a trace with these optional arrays does not tell it, and what it does then; ``None``: nothing."""
        missing = [name for name in self.reads if name not in extras]
        return f"the trace has no {', '.join(missing)}: it acts as {self.without_reads}" if missing else None

    def chosen(self, choice: PolicyChoice) -> dict[str, float | int]:
        """Defaults with the plan's values over them; raises ``ValueError`` for an unknown name or type."""
        known = {**CALLER_PARAMETERS, **self.parameters}
        unknown = sorted(set(choice.parameters) - set(known))
        if unknown:
            raise ValueError(
                f"policy {self.name} got parameters {', '.join(unknown)}, expected some of {', '.join(known)}: "
                "correct the plan's policy"
            )
        values = {**known, **choice.parameters}
        for name, default in known.items():
            if isinstance(default, int) and int(values[name]) != values[name]:
                raise ValueError(f"policy {self.name}: {name} is {values[name]}, expected an integer")
        if "seed" in self.parameters and "seed" not in choice.parameters:
            values["seed"] = choice.seed
        return values

    def oracle(self, choice: PolicyChoice) -> str | None:
        """The policy that bounds its hits from above with these parameters, from an empty tier.

        ``None`` where it may prefetch or overflow its capacity, which no oracle may.

        ``min_demand`` where it admits whatever fits, else ``min_bypass``. Parameters of admission
        (``hysteresis`` above -1, a limit of uploads) make any policy one that may bypass.
        """
        values = self.chosen(choice)
        if self.prefetches or values["overflow"]:
            return None
        admits_all = values.get("hysteresis", -1.0) <= -1 and values.get("max_uploads", UNLIMITED) >= UNLIMITED
        return "min_demand" if admits_all and not self.bypasses else "min_bypass"


@dataclass
class PolicyState:
    """Residency, room and everything a policy remembers: plain arrays (shapes as in ``signature``).

    ``copy()`` is a snapshot and ``==`` is parity.
    """

    policy: str
    overflow: bool
    upload_budget: int
    resident: np.ndarray
    pinned: np.ndarray
    expert_bytes: np.ndarray
    free_slots: np.ndarray
    free_bytes: np.ndarray
    float_parameters: np.ndarray
    int_parameters: np.ndarray
    float_state: np.ndarray
    int_state: np.ndarray

    @classmethod
    def of_plan(cls, plan: Plan, policy: Policy, first_use: np.ndarray | None = None) -> PolicyState:
        """State before the first request: residents of the plan's placements, the rest of the room free.

        Raises ``ValueError`` where the placements do not fit the capacity, where several fast tiers mix
        per-layer and global capacity, or where experts without a home copy could be evicted.
        """
        shape = (plan.model.num_layers, plan.model.num_experts)
        tiers = [fast.tier for fast in plan.fast_tiers]
        nodes = [tier for tier in plan.tiers if tier.startswith("node")]
        if policy.name != "static" and not plan.keep_home:
            raise ValueError(
                f"policy {policy.name} may evict, but keep_home is false: an evicted expert would be lost; "
                "use policy static or keep_home true"
            )
        scopes = {fast.slots_per_layer is not None for fast in plan.fast_tiers}
        if len(scopes) > 1:
            raise ValueError(
                f"fast tiers {', '.join(tiers)} mix capacity per layer with one global pool: give all of them one scope"
            )
        num_pools = shape[0] if scopes == {True} else 1
        free_slots = np.full((len(tiers), num_pools), UNLIMITED, np.int64)
        free_bytes = np.full((len(tiers), num_pools), UNLIMITED, np.int64)
        home = plan.format_of_tier[nodes[0]].expert_bytes if nodes else (0,) * shape[0]
        expert_bytes = np.array([home, *(plan.format_of_tier[t].expert_bytes for t in tiers)], np.int64)
        resident = np.zeros(shape, np.int8)
        pinned = np.zeros(shape, bool)
        for index, fast in enumerate(plan.fast_tiers):
            here = plan.resident(fast.tier)
            if (twice := np.argwhere(here & (resident > 0))).size:
                raise ValueError(
                    f"layer {twice[0, 0]} expert {twice[0, 1]} lies on two fast tiers, expected one: "
                    "remove one placement"
                )
            resident[here] = index + 1
            if fast.slots_per_layer is not None:
                free_slots[index] = np.asarray(fast.slots_per_layer) - here.sum(1)
            elif fast.slots is not None:
                free_slots[index] = fast.slots - here.sum()
            elif fast.capacity_bytes is not None:
                if not expert_bytes[index + 1].all():
                    raise ValueError(
                        f"{fast.tier} has a capacity in bytes but format_of_tier gives 0 bytes for an expert: "
                        "say the expert bytes of every layer, or give the capacity in slots"
                    )
                free_bytes[index] = fast.capacity_bytes - int(here.sum(1) @ expert_bytes[index + 1])
            if free_slots[index].min() < 0 or free_bytes[index].min() < 0:
                raise ValueError(
                    f"placements exceed the capacity of {fast.tier} by "
                    f"{-min(free_slots[index].min(), free_bytes[index].min())} "
                    f"{'bytes' if fast.capacity_bytes is not None else 'slots'}: place fewer experts there"
                )
        for layer, expert, tier in plan.pinned:
            if tier in tiers:
                pinned[layer, expert] = resident[layer, expert] == tiers.index(tier) + 1
        values = policy.chosen(plan.policy)
        own = {name: values[name] for name in policy.parameters}
        setup = PolicySetup(*shape, resident, pinned, expert_bytes, free_slots, free_bytes, own, first_use=first_use)
        float_state, int_state = policy.new_state(setup)
        is_float = {name: isinstance(default, float) for name, default in policy.parameters.items()}
        return cls(
            policy=policy.name,
            overflow=bool(values["overflow"]),
            upload_budget=UNLIMITED if plan.upload_budget is None else plan.upload_budget,
            resident=resident,
            pinned=pinned,
            expert_bytes=expert_bytes,
            free_slots=free_slots,
            free_bytes=free_bytes,
            float_parameters=np.array([v for n, v in own.items() if is_float[n]], np.float64),
            int_parameters=np.array([v for n, v in own.items() if not is_float[n]], np.int64),
            float_state=float_state,
            int_state=int_state,
        )

    def view(self) -> View:
        """A view over these arrays (not copies), with room for the longest answer; the caller sets each request."""
        num_layers, num_experts = self.resident.shape
        names = (f.name for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray))
        return View(
            upload_budget=self.upload_budget,
            admit=np.zeros((num_experts, 2), np.int32),
            evict=np.zeros((num_layers * num_experts, 2), np.int32),
            prefetch=np.zeros((num_layers * num_experts, 3), np.int32),
            num_out=np.zeros(3, np.int64),
            **{name: getattr(self, name) for name in names},
        )

    def copy(self) -> PolicyState:
        """Snapshot: no array is shared."""
        arrays = {
            f.name: getattr(self, f.name).copy() for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)
        }
        return replace(self, **arrays)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PolicyState):
            return NotImplemented
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
