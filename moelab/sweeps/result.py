"""SweepResult: the rows of a sweep as a table, as arrays over (policy, capacity), as a picture in numbers.  Floor 4."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from moelab.domain.trace import Trace
from moelab.policies.requests import PHASES
from moelab.sweeps.rows import Row

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


class SweepResult:
    """``rows`` in the order asked for, policy by policy; ``phase``: whose figures tables show, ``None`` for all.

    ``num_computed`` rows were simulated now, ``num_known`` were there before.
    """

    def __init__(self, rows: list[Row], *, num_computed: int = 0, num_known: int = 0, phase: str | None = None):
        self.rows = rows
        self.num_computed = num_computed
        self.num_known = num_known
        self.phase = phase

    def of_phase(self, phase: str | None) -> SweepResult:
        """The same runs, figures of one phase; raises ``ValueError`` for an unknown one or one that does not occur."""
        if phase is not None and phase not in PHASES:
            raise ValueError(f"phase is {phase!r}, expected one of {', '.join(PHASES)}")
        if phase is not None and phase not in self.rows[0]["of_phase"]:
            raise ValueError(f"the trace of {self.rows[0]['model']} has no {phase} steps: choose another phase")
        return SweepResult(self.rows, num_computed=self.num_computed, num_known=self.num_known, phase=phase)

    def table(self) -> list[dict[str, Any]]:
        """One flat row for each policy and capacity, units in the names."""
        phase = self.phase or "all"
        out = []
        for row in self.rows:
            labels = {name: value for name, value in row.items() if name not in ("key", "of_phase")}
            out.append({**labels, "phase": phase, **row["of_phase"][phase], "key": row["key"]})
        return out

    def to_frame(self) -> pd.DataFrame:
        """``table`` as a frame."""
        import pandas as pd

        return pd.DataFrame(self.table())

    def to_xarray(self) -> xr.Dataset:
        """Every figure over (policy, slots); ``share_of_experts`` beside ``slots``, ``is_oracle`` beside ``policy``."""
        frame = self.to_frame()
        names = list(self.rows[0]["of_phase"]["all"])
        policies, slots = list(dict.fromkeys(frame["policy"])), list(dict.fromkeys(frame["slots"]))
        out = frame.set_index(["policy", "slots"])[names].astype(float).to_xarray().sel(policy=policies, slots=slots)
        by_policy, by_slots = frame.drop_duplicates("policy"), frame.drop_duplicates("slots")
        out = out.assign_coords(
            is_oracle=("policy", by_policy["is_oracle"].to_numpy()),
            scored_on=("policy", by_policy["scored_on"].to_numpy()),
            share_of_experts=("slots", by_slots["share_of_experts"].to_numpy()),
        )
        return out.assign_attrs({name: frame[name][0] for name in ("model", "routing", "scope", "phase")})

    @property
    def model(self) -> str:
        return self.rows[0]["model"]

    @property
    def synthetic(self) -> bool:
        return self.rows[0]["routing"] == "synthetic"

    def check_is_of(self, trace: Trace) -> None:
        """ValueError for another trace. Rows from before they had its fingerprint are told by their shape."""
        row, header = self.rows[0], trace.header
        found = (row["model"], row["num_layers"], row["num_experts"], row["top_k"])
        here = (header.model, header.num_layers, header.num_experts, header.top_k)
        if found != here or row.get("trace") not in (None, trace.fingerprint()):
            said = "{} ({} x {}, top-{}), {}".format
            raise ValueError(
                f"this sweep is of {said(*found, row.get('trace'))}; the trace is {said(*here, trace.fingerprint())}: "
                "expected a sweep of this very trace"
            )

    def missing_oracles(self) -> list[str]:
        """Oracles that bound a policy of this sweep and are not in it."""
        there = {row["policy"] for row in self.rows}
        return sorted({row["oracle"] for row in self.rows if row["oracle"]} - there)

    def regret(self) -> pd.DataFrame:
        """Misses per layer-step beside those of the oracle of the policy's class, at each capacity.

        ``oracle`` and what follows are empty where nothing bounds a policy: it prefetches, overflows or starts with
        residents. ``regret`` is never negative where all experts have one size. Raises ``ValueError`` where an oracle
        is not in the sweep.
        """
        if missing := self.missing_oracles():
            raise ValueError(
                f"regret needs {' and '.join(missing)} in the sweep: add them to the policies, "
                "or sweep with oracles=True"
            )
        frame = self.to_frame()
        columns = ["policy", "slots", "share_of_experts", "oracle", "misses_per_layer_step"]
        rows = frame.loc[~frame["is_oracle"], [*columns, "hit_rate_per_request"]]
        of_oracle = frame.loc[frame["is_oracle"], ["policy", "slots", "misses_per_layer_step"]]
        of_oracle = of_oracle.set_axis(["oracle", "slots", "oracle_misses_per_layer_step"], axis=1)
        out = rows.merge(of_oracle, on=["oracle", "slots"], how="left")
        return out.assign(regret=out["misses_per_layer_step"] - out["oracle_misses_per_layer_step"])

    def reads(self) -> pd.DataFrame:
        """Reads per layer-step: a line for each policy, a column for each capacity."""
        frame = self.to_frame()
        wide = frame.pivot(index="policy", columns="slots", values="reads_per_layer_step")
        return wide.loc[list(dict.fromkeys(frame["policy"]))]

    @property
    def title(self) -> str:
        """What the numbers are; synthetic routing says so, and so does a policy that saw the future."""
        first = self.rows[0]
        where = "in each layer" if first["scope"] == "layer" else "over all layers"
        synthetic = "SYNTHETIC routing, " if first["routing"] == "synthetic" else ""
        notes = [f"{r['policy']} is an oracle" for r in self._one_of_each() if r["is_oracle"]]
        notes += [f"{r['policy']} in sample" for r in self._one_of_each() if "in sample" in r["scored_on"]]
        note = f" ({'; '.join(notes)})" if notes else ""
        return f"reads per layer-step by slots {where}: {first['model']}, {synthetic}{self.phase or 'all'} steps{note}"

    def _one_of_each(self) -> list[Row]:
        return list({row["policy"]: row for row in self.rows}.values())

    def __repr__(self) -> str:
        return f"SweepResult: {self.title}\n{self.reads().to_string(float_format='{:.3f}'.format)}"

    def _repr_html_(self) -> str:
        table = self.reads().to_html(float_format="{:.3f}".format, border=0)
        return f"<div><b>{escape(self.title)}</b>{table}</div>"
