"""Plan: where every expert lives, and what the dynamic slots may do. Version 1 loads for ever.

Knows placements, tiers, formats and fingerprints; refuses what contradicts itself. Does not know how
a plan is found (``moelab.planner``) or carried out (``moelab.replay``, ``moelab.migration``).
Floor 0: NumPy and pydantic only.

A placement is (layer, expert, piece, tier). A piece is a range ``[start, stop)`` in units of
``piece_unit`` intermediate rows: those rows of gate_proj and up_proj and, of down_proj, the output
rows ``[start, stop) x H / I``. The pieces of an expert on the node tiers partition it (each range
may be held by several tiers: replicas). Placements are stored by column, because K2 has 23,040.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moelab.domain.summary import summary_html, summary_text
from moelab.domain.unique_rows import unique_rows

PLAN_VERSION = 1


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Placements(_Document):
    """Columns of equal length, one entry for each placed piece; ``tier`` indexes ``Plan.tiers``."""

    layer: tuple[int, ...]
    expert: tuple[int, ...]
    start: tuple[int, ...]
    stop: tuple[int, ...]
    tier: tuple[int, ...]

    @model_validator(mode="after")
    def _equal_lengths(self) -> Placements:
        lengths = {name: len(getattr(self, name)) for name in PLACEMENT_COLUMNS}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"placement columns have lengths {lengths}, expected equal lengths")
        return self

    @classmethod
    def whole(cls, layer: Any, expert: Any, tier: Any, num_units: int) -> Placements:
        """Whole experts: every piece is ``[0, num_units)``; arrays are broadcast together."""
        layer, expert, tier = np.broadcast_arrays(layer, expert, tier)
        return cls(
            layer=tuple(layer.ravel().tolist()),
            expert=tuple(expert.ravel().tolist()),
            start=(0,) * layer.size,
            stop=(num_units,) * layer.size,
            tier=tuple(tier.ravel().tolist()),
        )

    def __len__(self) -> int:
        return len(self.layer)

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns as int64 arrays, which cannot be written to."""
        return dict(self._converted.arrays)

    @cached_property
    def _converted(self) -> _Columns:
        return _Columns(self)


class _Columns:
    """The columns as arrays, converted once; equal only to itself, so that placements compare by their own columns."""

    def __init__(self, placements: Placements):
        self.arrays = {name: np.asarray(getattr(placements, name), np.int64) for name in PLACEMENT_COLUMNS}
        for array in self.arrays.values():
            array.flags.writeable = False


PLACEMENT_COLUMNS = ("layer", "expert", "start", "stop", "tier")


class FastTier(_Document):
    """Capacity of one fast tier: slots per layer, slots over all layers, or bytes; exactly one."""

    tier: str
    slots_per_layer: tuple[int, ...] | None = None
    slots: int | None = Field(default=None, ge=0)
    capacity_bytes: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_capacity(self) -> FastTier:
        given = [n for n in ("slots_per_layer", "slots", "capacity_bytes") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                f"fast tier {self.tier} gives {given or 'no capacity'}, expected exactly one of "
                "slots_per_layer, slots, capacity_bytes"
            )
        return self


class TierFormat(_Document):
    """Weight format of experts on a tier and the bytes of one expert there, by layer (L integers)."""

    weight_format: str
    expert_bytes: tuple[int, ...]


class PolicyChoice(_Document):
    """The policy of the dynamic slots; ``static`` never moves anything."""

    name: str = "static"
    parameters: dict[str, float | int] = Field(default_factory=dict)
    seed: int = 0


class PlanModel(_Document):
    """The model a plan is for.

    ``moe_intermediate_size`` is ``None`` where the trace did not say it: then experts are placed whole only.
    """

    name: str
    model_type: str
    num_layers: int = Field(ge=1)
    num_experts: int = Field(ge=1)
    top_k: int = Field(ge=1)
    moe_intermediate_size: int | None = Field(default=None, ge=1)
    fingerprint: str | None = None


class Plan(_Document):
    """Plan version 1.

    ``upload_budget`` is the largest number of uploads in one layer-step, ``None`` without a limit.
    ``keep_home``: an expert on a fast tier keeps its copy in RAM. ``prediction`` is written by the
    planner, in the units of its keys' names, and is never altered by a measurement. ``node_rates``: GB/s of each node
    tier, in their order, that the plan was made for and by which dispatch chooses copies (only their ratios matter);
    ``None``: nobody said them, and they counted as equal.
    """

    version: Literal[1] = 1
    model: PlanModel
    tiers: tuple[str, ...]
    piece_unit: int = Field(default=32, ge=1)
    placements: Placements
    fast_tiers: tuple[FastTier, ...] = ()
    format_of_tier: dict[str, TierFormat]
    pinned: tuple[tuple[int, int, str], ...] = ()
    keep_home: bool = True
    policy: PolicyChoice = PolicyChoice()
    upload_budget: int | None = Field(default=None, ge=0)
    node_rates: tuple[float, ...] | None = None
    planner: dict[str, Any] = Field(default_factory=dict)
    fingerprints: dict[str, str] = Field(default_factory=dict)
    prediction: dict[str, Any] = Field(default_factory=dict)

    @property
    def num_units(self) -> int:
        """Pieces are ranges within ``[0, num_units)``; 1 where the intermediate size is not known."""
        return -(-(self.model.moe_intermediate_size or 1) // self.piece_unit)

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        if len(set(self.tiers)) != len(self.tiers) or not self.tiers:
            raise ValueError(f"tiers are {self.tiers}, expected distinct names, at least one")
        for tier in self.tiers:
            kind = tier.rstrip("0123456789")
            if kind not in ("node", "fast") or tier == kind:
                raise ValueError(f"tier is called {tier}, expected node0..N or fast0..F")
            if tier not in self.format_of_tier:
                raise ValueError(f"format_of_tier has no entry for {tier}: say its weight format")
            got = len(self.format_of_tier[tier].expert_bytes)
            if got != self.model.num_layers:
                raise ValueError(
                    f"format_of_tier[{tier}].expert_bytes has {got} entries, expected "
                    f"num_layers = {self.model.num_layers}"
                )
        fast = {t for t in self.tiers if t.startswith("fast")}
        if {f.tier for f in self.fast_tiers} != fast:
            raise ValueError(
                f"fast_tiers give capacities of {sorted(f.tier for f in self.fast_tiers)}, expected "
                f"exactly the fast tiers {sorted(fast)}"
            )
        for f in self.fast_tiers:
            if f.slots_per_layer is not None and len(f.slots_per_layer) != self.model.num_layers:
                raise ValueError(
                    f"{f.tier}.slots_per_layer has {len(f.slots_per_layer)} entries, expected {self.model.num_layers}"
                )
        self._check_node_rates()
        self._check_placements()
        return self

    def _check_node_rates(self) -> None:
        if self.node_rates is None:
            return
        num_nodes = sum(tier.startswith("node") for tier in self.tiers)
        if len(self.node_rates) != num_nodes or not all(0 < rate < float("inf") for rate in self.node_rates):
            raise ValueError(f"node_rates are {list(self.node_rates)}, expected {num_nodes} numbers above 0, or none")

    def _check_placements(self) -> None:
        model, columns = self.model, self.placements.arrays()
        bounds = {
            "layer": model.num_layers,
            "expert": model.num_experts,
            "tier": len(self.tiers),
        }
        for name, bound in bounds.items():
            column = columns[name]
            if column.size and (column.min() < 0 or column.max() >= bound):
                raise ValueError(f"placements.{name} spans {column.min()}..{column.max()}, expected 0..{bound - 1}")
        start, stop = columns["start"], columns["stop"]
        if ((start < 0) | (stop > self.num_units) | (start >= stop)).any():
            raise ValueError(f"a piece lies outside [0, {self.num_units}) units of {self.piece_unit} rows or is empty")
        rows = np.stack([columns[n] for n in PLACEMENT_COLUMNS], axis=1)
        if len(unique_rows(rows)[0]) != len(rows):
            raise ValueError("a piece is placed twice on the same tier: remove the duplicate")
        self._check_cover(columns)
        self._check_pinned(columns)

    def _check_pinned(self, columns: Mapping[str, np.ndarray]) -> None:
        """What is pinned must lie there, whole: a pin on nothing would protect nothing."""
        if not self.pinned:
            return
        whole = (columns["start"] == 0) & (columns["stop"] == self.num_units)
        placed = set(zip(*(columns[name][whole].tolist() for name in ("layer", "expert", "tier")), strict=True))
        for layer, expert, tier in self.pinned:
            if tier not in self.tiers:
                raise ValueError(f"layer {layer} expert {expert} is pinned to {tier}, expected one of {self.tiers}")
            if (layer, expert, self.tiers.index(tier)) not in placed:
                raise ValueError(
                    f"layer {layer} expert {expert} is pinned to {tier}, where the plan does not place it whole: "
                    "place it there or drop the pin"
                )

    def _check_cover(self, columns: Mapping[str, np.ndarray]) -> None:
        """Every expert is covered once by its distinct node pieces, or lies whole on a fast tier."""
        model, num_units = self.model, self.num_units
        on_node = np.array([t.startswith("node") for t in self.tiers])[columns["tier"]]
        key = columns["layer"] * model.num_experts + columns["expert"]
        pieces = np.stack([key, columns["start"], columns["stop"]], axis=1)[on_node]
        distinct = unique_rows(pieces)[0]
        covered = np.zeros(model.num_layers * model.num_experts, np.int64)
        np.add.at(covered, distinct[:, 0], distinct[:, 2] - distinct[:, 1])
        same = distinct[1:, 0] == distinct[:-1, 0]
        if (same & (distinct[1:, 1] < distinct[:-1, 2])).any():
            at = int(distinct[1:][same & (distinct[1:, 1] < distinct[:-1, 2])][0, 0])
            raise ValueError(
                f"pieces of layer {at // model.num_experts} expert {at % model.num_experts} overlap, "
                "expected a partition (replicas repeat the same ranges on another node)"
            )
        whole_fast = np.zeros_like(covered, bool)
        whole = ~on_node & (columns["start"] == 0) & (columns["stop"] == num_units)
        whole_fast[key[whole]] = True
        missing = (covered != num_units) & ~(whole_fast & (covered == 0) & (not self.keep_home))
        if missing.any():
            at = int(np.flatnonzero(missing)[0])
            raise ValueError(
                f"layer {at // model.num_experts} expert {at % model.num_experts} has "
                f"{covered[at]} of {num_units} units on node tiers"
                + (" (keep_home is true)" if self.keep_home else "")
                + ": place every expert whole, or whole on a fast tier with keep_home false"
            )

    # -- look-ups ---------------------------------------------------------------------------------

    def resident(self, tier: str) -> np.ndarray:
        """bool [L, E]: experts that the plan places whole on a fast tier from the start."""
        columns = self.placements.arrays()
        mask = np.zeros((self.model.num_layers, self.model.num_experts), bool)
        here = columns["tier"] == self.tiers.index(tier)
        mask[columns["layer"][here], columns["expert"][here]] = True
        return mask

    def check_matches(
        self,
        *,
        what: str,
        model: str,
        num_layers: int,
        num_experts: int,
        top_k: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Raise ``ValueError`` where the plan is for another model than ``what`` (engine or trace).

        ``fingerprint`` is that of the ModelSpec, compared where both sides know one: names of folders differ,
        and Kimi K2, K2.5 and K2.6 are of one architecture.
        """
        mine = (self.model.num_layers, self.model.num_experts)
        if mine != (num_layers, num_experts):
            raise ValueError(
                f"plan is for {self.model.name} ({mine[0]} x {mine[1]}); {what} is {model} "
                f"({num_layers} x {num_experts}): re-plan or load the matching one"
            )
        if top_k is not None and top_k != self.model.top_k:
            raise ValueError(
                f"plan is for {self.model.name} with top-{self.model.top_k}; {what} is {model} with top-{top_k}: "
                "re-plan or load the matching one"
            )
        planned = self.fingerprints.get("model")
        if planned and fingerprint and planned != fingerprint:
            raise ValueError(
                f"plan is for architecture {planned} ({self.model.name}); {what} is {fingerprint} ({model}): "
                "re-plan or load the matching one"
            )

    def fingerprint(self) -> str:
        """Short sha256 of what the plan decides (not prediction and planner); rates that nobody said add none."""
        left_out = {"prediction", "planner", "fingerprints"} | (set() if self.node_rates else {"node_rates"})
        text = self.model_dump_json(exclude=left_out)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # -- files ------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.model_dump_json(exclude_none=True) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan; raises ``ValueError`` that names the file, what was expected and what to do."""
        path = Path(path)
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            raise ValueError(f"plan {path} does not exist: give the path of a plan file") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"plan {path} is not JSON ({error}): expected a file of `moelab plan`") from None
        version = data.get("version") if isinstance(data, dict) else None
        if version != PLAN_VERSION:
            raise ValueError(f"plan {path} has version {version!r}, expected {PLAN_VERSION}: re-plan or update moelab")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "plan"
            raise ValueError(f"plan {path}: {where}: {first['msg']}") from None

    def summary(self) -> dict[str, Any]:
        """What ``_repr_html_`` shows; plain values."""
        columns = self.placements.arrays()
        count_of_tier = np.bincount(columns["tier"], minlength=len(self.tiers))
        return {
            "model": f"{self.model.name} ({self.model.num_layers} x {self.model.num_experts}, top-{self.model.top_k})",
            "planner": self.planner.get("name", "unknown"),
            "placements": ", ".join(f"{t}: {c}" for t, c in zip(self.tiers, count_of_tier, strict=True)),
            "policy": self.policy.name,
            "keep_home": self.keep_home,
            "upload budget": "none" if self.upload_budget is None else self.upload_budget,
            **({} if self.node_rates is None else {"node rates": " : ".join(f"{r:g}" for r in self.node_rates)}),
            **{f"predicted {k.removeprefix('predicted_')}": v for k, v in self.prediction.items()},
        }

    def __repr__(self) -> str:
        return summary_text("Plan", self.summary())

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return summary_html("Plan", self.summary())
