"""analyse(trace): popularity, reuse, co-activation and stability in one result, with intervals.  Floor 2.

Puts together what one file each computes, and says what the input could not give: a single request has no
interval, counts have no order, a synthetic trace says so in every table. Knows no pictures
(``moelab.plots``) and no policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.analysis.bootstrap import LEVEL, NUM_SAMPLES, RequestLoads
from moelab.analysis.coactivation import Coactivation, coactivation, coactivation_of_counts
from moelab.analysis.lag_overlap import LagOverlap, lag_overlap
from moelab.analysis.popularity import Popularity, popularity, popularity_of_counts
from moelab.analysis.reuse_share import ReuseShare, reuse_share
from moelab.analysis.stability import NUM_WINDOWS, Stability, stability
from moelab.domain.counts import CountsTable
from moelab.domain.trace import Phase, Trace
from moelab.store import StoredTrace

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Analysis:
    """Result of ``analyse``. A part is ``None`` where the input cannot give it; ``notes`` say why.

    ``phase``: the tokens that were taken, ``None`` for all; ``num_requests`` is 0 where not known.
    """

    model: str
    synthetic: bool
    phase: str | None
    num_tokens: int
    num_decode_tokens: int
    num_requests: int
    num_samples: int
    seed: int
    popularity: Popularity
    reuse: ReuseShare | None
    lags: LagOverlap | None
    coactivation: Coactivation | None
    stability: Stability | None
    notes: tuple[str, ...]

    @property
    def routing(self) -> str:
        return "synthetic" if self.synthetic else "recorded"

    def to_frame(self) -> pd.DataFrame:
        """One row for each figure: part, metric, group, value, interval, and the baseline to hold it against."""
        import pandas as pd

        rows: list[dict[str, Any]] = []

        def add(part: str, metric: str, group: Any, value: float, *rest: float, baseline: float = np.nan) -> None:
            low, high = rest or (np.nan, np.nan)
            rows.append(
                {
                    "routing": self.routing, "part": part, "metric": metric, "group": str(group), "value": value,
                    "low": low, "high": high, "baseline": baseline,
                }
            )  # fmt: skip

        for row in self.popularity.summary().itertuples():
            add("popularity", row.metric, row.domain, row.value, row.low, row.high, baseline=row.of_one_request)
        if self.reuse is not None:
            for row in self.reuse.to_frame().itertuples():
                add("reuse", "uses_within", f"{row.slots_per_layer} slots", row.uses_within, row.low, row.high)
        if self.lags is not None:
            for row in self.lags.to_frame().itertuples():
                add(
                    "reuse",
                    "overlap",
                    f"lag {row.lag_tokens}",
                    row.overlap,
                    row.low,
                    row.high,
                    baseline=row.same_request,
                )
        if self.coactivation is not None:
            for row in self.coactivation.to_frame().itertuples():
                pair = f"layer {row.layer}: {row.expert_a}, {row.expert_b}"
                add("coactivation", "lift", pair, row.lift, row.low, row.high, baseline=1.0)
            summary = self.coactivation.summary()
            for metric, base in (
                ("pairs_found_lift", "pairs_held_out_lift"),
                ("adjacent_top_20%_pair_share", "adjacent_top_20%_pair_share_of_independence"),
            ):
                value, beside = summary[metric], summary[base]
                if value is not None:
                    add("coactivation", metric, "all", value, baseline=np.nan if beside is None else beside)
        if self.stability is not None:
            halves = self.stability.summary()
            for metric in ("share_of_top_20%_held_out", "hot_set_jaccard"):
                chosen_on = halves["share_of_top_20%_in_sample"] if "held_out" in metric else np.nan
                add("stability", metric, "halves", halves[metric], halves[f"{metric}_low"], halves[f"{metric}_high"],
                    baseline=chosen_on)  # fmt: skip
            for row in self.stability.to_frame().itertuples():
                add("stability", f"{row.kind}_js_bits", row.group, row.js_bits, row.low, row.high, baseline=row.null_95)
        return pd.DataFrame(rows)

    def head(self) -> dict[str, Any]:
        """What was analysed; plain values."""
        return {
            "model": self.model,
            "routing": self.routing,
            "phase": self.phase or "all",
            "tokens": self.num_tokens,
            "decode_tokens": self.num_decode_tokens,
            "requests": self.num_requests or None,
            "interval": f"{LEVEL:.0%} basic bootstrap over requests, {self.num_samples} samples, seed {self.seed}"
            if self.num_requests > 1
            else None,
            "notes": list(self.notes),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything that the tables hold, as JSON can; NaN where there is no interval."""
        parts: dict[str, Any] = {"popularity": _rows(self.popularity.summary())}
        reuse = (
            {} if self.reuse is None else {"first_uses": self.reuse.first_uses, "within": _rows(self.reuse.to_frame())}
        )
        lags = {} if self.lags is None else {"lags": _rows(self.lags.to_frame())}
        parts["reuse"] = {**reuse, **lags} or None
        parts["coactivation"] = (
            None
            if self.coactivation is None
            else {**self.coactivation.summary(), "top_pairs": _rows(self.coactivation.to_frame())}
        )
        parts["stability"] = (
            None if self.stability is None else {**self.stability.summary(), "groups": _rows(self.stability.to_frame())}
        )
        return {**self.head(), **parts}

    def __repr__(self) -> str:
        lines = [f"  {name}: {value}" for name, value in self.head().items() if value not in (None, [])]
        return "\n".join(["Analysis", *lines, self.to_frame().to_string(index=False, float_format="%.3f")])

    def _repr_html_(self) -> str:
        """All tables; the head says whether the routing is synthetic."""
        head = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>"
            f"{escape(', '.join(value) if isinstance(value, list) else str(value))}</td></tr>"
            for name, value in self.head().items()
            if value not in (None, [])
        )
        parts = [part for part in (self.popularity, self.reuse, self.lags, self.coactivation, self.stability) if part]
        tables = "".join(f"<p>{part._repr_html_()}</p>" for part in parts)
        return f"<table><caption>Analysis</caption>{head}</table>{tables}"


def analyse(
    trace: Trace | StoredTrace | CountsTable,
    *,
    phase: str | None = None,
    num_windows: int = NUM_WINDOWS,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    progress: bool = True,
) -> Analysis:
    """Analyse a trace, in memory or opened on disk, or counts as far as they go.

    ``phase``: ``prefill`` or ``decode`` only. ``num_samples``: resamples of the bootstrap over requests. Raises
    ``ValueError`` for an unknown phase or one without tokens.
    """
    if isinstance(trace, CountsTable):
        return _analyse_counts(trace, phase, num_samples, seed)
    if isinstance(trace, StoredTrace):
        trace = trace.load(extras=())
    trace = _of_phase(trace, phase)
    from tqdm.auto import tqdm

    with tqdm(total=6, desc="analyse", delay=1, disable=not progress) as bar:

        def done(result: Any) -> Any:
            bar.update()
            return result

        loads = done(RequestLoads.of_trace(trace))
        options: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "loads": loads}
        return Analysis(
            model=trace.header.model,
            synthetic=trace.header.synthetic,
            phase=phase,
            num_tokens=trace.num_tokens,
            num_decode_tokens=int((trace.tokens.phase == Phase.DECODE).sum()),
            num_requests=loads.num_requests,
            num_samples=num_samples,
            seed=seed,
            popularity=done(popularity(trace, **options)),
            reuse=done(reuse_share(trace, **options)),
            lags=done(lag_overlap(trace, **options)),
            coactivation=done(coactivation(trace, **options)),
            stability=done(stability(trace, num_windows=num_windows, **options)),
            notes=_notes(trace, loads),
        )


def _of_phase(trace: Trace, phase: str | None) -> Trace:
    if phase is None and trace.num_tokens:
        return trace
    if phase not in (None, "prefill", "decode"):
        raise ValueError(f"phase is {phase!r}, expected prefill or decode")
    taken = trace if phase is None else trace.phase(Phase[phase.upper()])
    if not taken.num_tokens:
        raise ValueError(f"the trace of {trace.header.model} has no {phase or ''} tokens: choose another phase")
    return taken


def _notes(trace: Trace, loads: RequestLoads) -> tuple[str, ...]:
    notes = []
    if trace.header.synthetic:
        notes.append("SYNTHETIC routing: nothing here was recorded from a model")
    if loads.num_requests == 1:
        notes.append(
            "one request: no interval, windows and halves are cut in time, its hot sets are hotter than a mix's"
        )
    elif loads.num_requests < 20:
        notes.append(f"{loads.num_requests} requests only: intervals from so few are too narrow")
    if loads.requests_per_cluster > 1:
        notes.append(f"requests were drawn in groups of {loads.requests_per_cluster}, to fit into memory")
    phases = trace.tokens.phase
    if (phases == Phase.PREFILL).all():
        notes.append("prefill only: nothing here is decode")
    elif (phases == Phase.PREFILL).any():
        notes.append("prefill and decode together; give a phase for one of them")
    if trace.header.native_top_k not in (None, trace.header.top_k):
        notes.append(f"recorded at top-{trace.header.top_k}, the model's own is top-{trace.header.native_top_k}")
    return tuple(notes)


def _analyse_counts(table: CountsTable, phase: str | None, num_samples: int, seed: int) -> Analysis:
    if phase not in (None, table.phase):
        raise ValueError(f"phase is {phase!r}, but these counts are of phase {table.phase}: leave it out")
    pairs = coactivation_of_counts(table)
    notes = [
        "counts only: no order, so no reuse, lag overlap or miss ratios; no requests, so no interval and no stability"
    ]
    notes.append(
        "no pairs: no co-activation" if pairs is None else f"of all pairs only those with {table.pair_rule} are known"
    )
    if table.synthetic:
        notes.append("SYNTHETIC routing: nothing here was recorded from a model")
    return Analysis(
        model=table.model, synthetic=table.synthetic, phase=table.phase, num_tokens=table.num_tokens,
        num_decode_tokens=table.num_tokens if table.phase == "decode" else 0, num_requests=0, num_samples=num_samples,
        seed=seed, popularity=popularity_of_counts(table), reuse=None, lags=None, coactivation=pairs, stability=None,
        notes=tuple(notes),
    )  # fmt: skip


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict(orient="records")
