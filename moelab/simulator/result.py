"""SimResult: what one simulation counted, by layer, by phase and in sum.  Floor 2.

Counts are exact integers; rates and bytes are derived here. Two accountings of hits, always named: per
routing (each token's use counts) and per request (a distinct expert of a set counts once). A layer-step
is a request that routed at least one expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.cost_model.hybrid import HybridTime, Rates, hybrid
from moelab.policies.counts import (
    EVICTIONS,
    HITS,
    LATE,
    LAYER_STEPS,
    MISSES,
    PREFETCHES,
    ROUTED_HITS,
    ROUTINGS,
    UPLOADS,
)
from moelab.policies.policy import PolicyState
from moelab.policies.requests import PHASES
from moelab.simulator.loop import COPIED, LOG_COLUMNS, READ

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


NO_BYTES = (
    "nobody said the bytes of an expert, so no time can be predicted: give expert_bytes to the planner or to "
    "Trace.from_arrays, or simulate without a machine"
)


SEVERAL_FAST_TIERS = (
    "plan has fast tiers {tiers}; times are predicted beside one, whose hits and uploads are counted: simulate without "
    "a machine, or plan for fast0 only"
)
UNKNOWN_BYTES = "unknown: nobody said the bytes of an expert"


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


@dataclass(frozen=True, eq=False)
class SimResult:
    """Result of ``simulate``.

    ``sums`` int64 [3, L, 9] by phase (prefill, decode, mixed; columns in ``loop``), ``counts`` int32 [S, L, 8] the same
    by step, ``None`` where they were not kept, ``totals`` int64 [2, 3, L, E], ``phase_of_step`` int8 [S],
    ``tokens_of_step`` int64 [S]; ``node_bytes`` float64 [nodes, L, E] what one use of an expert reads at home on each
    node (copies share it evenly); ``node_reads`` int64 [S, L, N] what each node of several read in each step, copies as
    ``dispatch`` chose (``None`` on one node, and where a policy moves experts), ``dispatch_excess`` float64 [S, L] how
    far above the least possible maximum that choice may be (``simulator.node_reads``); ``link_bytes`` int64 [tiers, L]
    what one copy moves. ``phase``: the phase that rates and bytes cover, ``None`` for all. ``state`` is the snapshot
    after the last request. ``slowness``: of a byte on each node, as dispatch was told (``None``: equal), by whose rates
    (``slowness_of``).
    """

    model: str
    policy: str
    plan: str
    synthetic: bool
    sums: np.ndarray
    counts: np.ndarray | None
    totals: np.ndarray
    phase_of_step: np.ndarray
    tokens_of_step: np.ndarray
    node_names: tuple[str, ...]
    node_bytes: np.ndarray
    tier_names: tuple[str, ...]
    link_bytes: np.ndarray
    state: PolicyState
    phase: str | None = None
    prediction: dict[str, Any] | None = None
    # int64 [S, L, N]: sources of copies to the fast tier, on several nodes where a policy moves experts.
    node_copies: np.ndarray | None = field(default=None, repr=False)
    policy_lacks: str | None = None  # what it looks at and the trace does not have, and what it does then
    log: np.ndarray | None = field(default=None, repr=False)
    lossy: str | None = None
    node_reads: np.ndarray | None = field(default=None, repr=False)
    dispatch_excess: np.ndarray | None = field(default=None, repr=False)
    # float64 [S, L], on several nodes of a machine: predicted, and by which calibrated times (None: by read rates).
    layer_step_s: np.ndarray | None = field(default=None, repr=False)
    timed_by: str | None = None
    slowness: tuple[float, ...] | None = None
    slowness_of: str = "one node"

    # -- selection ----------------------------------------------------------------------------------

    def of_phase(self, phase: str | None) -> SimResult:
        """The same run, rates and bytes over one phase only (a prediction covers its own phase: dropped)."""
        if phase is not None and phase not in PHASES:
            raise ValueError(f"phase is {phase!r}, expected one of {', '.join(PHASES)}")
        return replace(self, phase=phase, prediction=None)

    @property
    def _steps(self) -> np.ndarray:
        if self.phase is None:
            return np.ones(len(self.phase_of_step), bool)
        return self.phase_of_step == list(PHASES).index(self.phase)

    @property
    def _totals(self) -> np.ndarray:
        """int64 [2, L, E] over the selected phase."""
        if self.phase is None:
            return self.totals.sum(1)
        return self.totals[:, list(PHASES).index(self.phase)]

    @property
    def _by_layer(self) -> np.ndarray:
        """int64 [L, 9] over the selected phase."""
        return self.sums.sum(0) if self.phase is None else self.sums[list(PHASES).index(self.phase)]

    def _sum(self, column: int) -> int:
        return int(self._by_layer[:, column].sum())

    # -- counts ------------------------------------------------------------------------------------

    @property
    def num_tokens(self) -> int:
        return int(self.tokens_of_step[self._steps].sum())

    @property
    def num_layer_steps(self) -> int:
        """Requests of the selected phase with at least one routed expert."""
        return self._sum(LAYER_STEPS)

    @property
    def hits(self) -> int:
        return self._sum(HITS)

    @property
    def misses(self) -> int:
        return self._sum(MISSES)

    @property
    def uploads(self) -> int:
        return self._sum(UPLOADS)

    @property
    def prefetches(self) -> int:
        return self._sum(PREFETCHES)

    @property
    def evictions(self) -> int:
        return self._sum(EVICTIONS)

    @property
    def late(self) -> int:
        """Always 0 here: the simulator's copies arrive before the next request of their layer."""
        return self._sum(LATE)

    @property
    def routings(self) -> int:
        return self._sum(ROUTINGS)

    @property
    def reads(self) -> np.ndarray:
        """int64 [L, E]: how often each expert was read at home in the selected phase: misses, uploads, prefetches."""
        return self._totals[READ] + self._totals[COPIED]

    # -- rates -------------------------------------------------------------------------------------

    @property
    def hit_rate_per_routing(self) -> float | None:
        return _ratio(self._sum(ROUTED_HITS), self.routings)

    @property
    def hit_rate_per_request(self) -> float | None:
        """Distinct experts of each set request that were resident before it."""
        return _ratio(self.hits, self.hits + self.misses)

    @property
    def reads_per_layer_step(self) -> float | None:
        """Distinct misses + uploads + prefetches + late, per layer-step."""
        return _ratio(self.misses + self.uploads + self.prefetches + self.late, self.num_layer_steps)

    @property
    def misses_per_layer_step(self) -> float | None:
        """Distinct misses per layer-step: what the oracle of a policy's class bounds."""
        return _ratio(self.misses, self.num_layer_steps)

    @property
    def uploads_per_layer_step(self) -> float | None:
        return _ratio(self.uploads, self.num_layer_steps)

    @property
    def knows_bytes(self) -> bool:
        """Has every layer expert bytes? Without them all bytes are 0, which does not mean that nothing was read."""
        return bool((self.node_bytes.sum((0, 2)) + self.link_bytes.sum(0) > 0).all())

    @property
    def bytes_of_node(self) -> dict[str, float]:
        """Bytes read from each node's memory: misses, and the source of every copy to a fast tier.

        Of several nodes as ``dispatch`` chose in each layer-step.
        """
        if self.node_reads is not None:
            of_node = self.node_reads[self._steps].sum((0, 1)).astype(float)
            if self.node_copies is not None:
                of_node += self.node_copies[self._steps].sum((0, 1))
            return dict(zip(self.node_names, of_node.tolist(), strict=True))
        return {n: float((self.reads * b).sum()) for n, b in zip(self.node_names, self.node_bytes, strict=True)}

    @property
    def dispatch_quality(self) -> str | None:
        """Whether the copies were chosen optimally in every selected layer-step, and by how much not where unproven."""
        if self.dispatch_excess is None:
            return None
        excess = self.dispatch_excess[self._steps]
        if not excess.any():
            return "optimal in every layer-step"
        above = excess[excess > 0]
        return (
            f"search cut off in {len(above):,} of {excess.size:,} layer-steps, there at most {above.mean():.1%} above "
            f"the optimum on average, {above.max():.1%} in the worst"
        )

    @property
    def bytes_of_link(self) -> dict[str, float]:
        """Bytes copied over the link of each fast tier, in the format of the tier."""
        copied = self._totals[COPIED].sum(1)
        if len(self.tier_names) > 1:  # policies copy to the first alone
            first = float((copied * self.link_bytes[0]).sum())
            return {self.tier_names[0]: first} | dict.fromkeys(self.tier_names[1:], 0.0)
        return {t: float((copied * b).sum()) for t, b in zip(self.tier_names, self.link_bytes, strict=True)}

    def bytes_of_layer_steps(self) -> dict[str, np.ndarray]:
        """``miss_bytes``, ``fast_bytes``, ``upload_bytes`` float64 [S, L] of the selected steps, for ``hybrid``.

        Hits are read in the fast tier's format, uploads and prefetches cross the link in it (or are read at home, if
        that is more). Prefetched bytes stand at the layer that asked, each of the mean size of what was prefetched.
        One expert of a layer counts as any other (their mean, where a plan cuts them into pieces).
        Raises ``ValueError`` where the counts of steps were not kept.
        """
        if self.counts is None:
            raise ValueError("this run kept no counts of its steps: simulate with by_step=True")
        counts = self.counts[self._steps].astype(np.float64)
        home = self.node_bytes.sum(0).mean(1)
        link = self.link_bytes[0] if len(self.link_bytes) else np.zeros(len(home))
        copy = np.maximum(home, link)
        prefetch = 0.0
        if self.prefetches:
            copied = self._totals[COPIED].sum(1) - counts[:, :, UPLOADS].sum(0)
            prefetch = float(copied @ copy) / self.prefetches
        return {
            "miss_bytes": counts[:, :, MISSES] * home,
            "fast_bytes": counts[:, :, HITS] * link,
            "upload_bytes": counts[:, :, UPLOADS] * copy + counts[:, :, PREFETCHES] * prefetch,
        }

    def time(self, rates: Rates, node_gb_per_s: Sequence[float] | None = None) -> HybridTime:
        """Time of the selected layer-steps on a machine of these ``rates`` (``cost_model.hybrid``).

        Of several nodes, whose read rates are ``node_gb_per_s`` and the first of which is that of ``rates``, the
        slowest decides each layer-step; uploads share its memory, whichever they come from, so that none is too cheap.
        Raises ``ValueError`` where expert bytes are not known, nodes without their rates, or of several fast tiers.
        """
        if len(self.tier_names) > 1:
            raise ValueError(SEVERAL_FAST_TIERS.format(tiers=", ".join(self.tier_names)))
        several = self.node_reads is not None and node_gb_per_s is not None
        if several and len(node_gb_per_s or ()) == len(self.node_names):
            parts = self.bytes_of_layer_steps()
            as_first = np.array(node_gb_per_s)[0] / np.array(node_gb_per_s)
            assert self.node_reads is not None
            parts["miss_bytes"] = (self.node_reads[self._steps] * as_first).max(-1)
            return hybrid(**parts, rates=rates)
        if len(self.node_names) != 1:
            got = "none" if node_gb_per_s is None else f"{len(node_gb_per_s)}"
            raise ValueError(
                f"plan uses {', '.join(self.node_names) or 'no node'}, expected node_gb_per_s with the read rate of "
                f"each, got {got}: give them, or simulate with a machine that has as many nodes"
            )
        if not all(self.node_bytes.any(-1).ravel()):
            raise ValueError(NO_BYTES)
        return hybrid(**self.bytes_of_layer_steps(), rates=rates)

    # -- views -------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Plain values, units in the names; what ``--json`` and ``repr`` show."""
        return {
            "model": self.model,
            "routing": "synthetic" if self.synthetic else "recorded",
            "policy": self.policy,
            **({"policy_lacks": self.policy_lacks} if self.policy_lacks else {}),
            "plan": self.plan,
            **({"lossy": self.lossy} if self.lossy else {}),
            "phase": self.phase or "all",
            "tokens": self.num_tokens,
            "layer_steps": self.num_layer_steps,
            "hit_rate_per_routing": self.hit_rate_per_routing,
            "hit_rate_per_request": self.hit_rate_per_request,
            "reads_per_layer_step": self.reads_per_layer_step,
            "uploads_per_layer_step": self.uploads_per_layer_step,
            "prefetches": self.prefetches,
            "evictions": self.evictions,
            "late": self.late,
            "bytes_of_node": self.bytes_of_node if self.knows_bytes else UNKNOWN_BYTES,
            "bytes_of_link": self.bytes_of_link if self.knows_bytes or not self.tier_names else UNKNOWN_BYTES,
            **({"dispatch_by": self.slowness_of} if len(self.node_names) > 1 else {}),
            **(self.prediction or {}),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row for each phase that occurs and each layer (of the selected phase, where one is)."""
        import pandas as pd

        rows = []
        for name in PHASES if self.phase is None else (self.phase,):
            part = replace(self, phase=name)
            if not part._steps.any():
                continue
            for layer, c in enumerate(part._by_layer.tolist()):
                reads = c[MISSES] + c[UPLOADS] + c[PREFETCHES] + c[LATE]
                rows.append(
                    {
                        "policy": self.policy,
                        "routing": "synthetic" if self.synthetic else "recorded",
                        "phase": name,
                        "layer": layer,
                        "layer_steps": c[LAYER_STEPS],
                        "distinct_hits": c[HITS],
                        "distinct_misses": c[MISSES],
                        "uploads": c[UPLOADS],
                        "prefetches": c[PREFETCHES],
                        "evictions": c[EVICTIONS],
                        "hit_rate_per_routing": _ratio(c[ROUTED_HITS], c[ROUTINGS]),
                        "hit_rate_per_request": _ratio(c[HITS], c[HITS] + c[MISSES]),
                        "reads_per_layer_step": _ratio(reads, c[LAYER_STEPS]),
                    }
                )
        return pd.DataFrame(rows)

    def to_xarray(self) -> xr.Dataset:
        """Every figure of ``to_frame`` over (phase, layer)."""
        frame = self.to_frame().drop(columns=["policy", "routing"]).set_index(["phase", "layer"])
        attributes = {name: self.summary()[name] for name in ("model", "routing", "policy", "plan")}
        return frame.astype(float).to_xarray().assign_attrs(attributes)

    def log_frame(self) -> pd.DataFrame:
        """Decisions in the order they were applied; kind 0 admit, 1 evict, 2 prefetch."""
        import pandas as pd

        if self.log is None:
            raise ValueError("this run kept no log of decisions: simulate with log=True")
        return pd.DataFrame(self.log, columns=list(LOG_COLUMNS))

    def __repr__(self) -> str:
        return "SimResult\n" + "\n".join(f"  {k}: {_short(v)}" for k, v in self.summary().items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(k)}</th><td style='text-align:left'>{escape(_short(v))}</td></tr>"
            for k, v in self.summary().items()
        )
        return f"<table><caption>SimResult</caption>{rows}</table>"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v:.4g}" for k, v in value.items()) or "none"
    return "none" if value is None else str(value)
