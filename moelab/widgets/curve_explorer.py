"""curve_explorer: misses and reads over the size of the fast tier, with oracle bands, linked to the map.  Floor 6.

Plain twins: ``moelab.sweep(trace, policies, capacities, phase=..., oracles=True)`` (``sweep``) and its picture
``moelab.plots.policy_curves(sweep, of)``; ``expert_miss_ratio(trace, phase=...)`` for the map (``at(slots)``) and the
curve of the experts chosen on it (``curve(chosen)``). Computes nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

import numpy as np
import traitlets

from moelab.analysis.expert_miss_ratio import ExpertMissRatio, expert_miss_ratio
from moelab.domain.plan import PolicyChoice
from moelab.domain.trace import Phase, Trace
from moelab.palette import PALETTE
from moelab.store import StoredTrace
from moelab.sweeps import sweep
from moelab.sweeps.result import SweepResult
from moelab.sweeps.sweep import cells_of
from moelab.widgets.background import Background, Report
from moelab.widgets.chart import Chart, chart_of
from moelab.widgets.chart_svg import chart_svg, legend_html
from moelab.widgets.curve_axis import AXES, axes_of, on_axis
from moelab.widgets.expert_map import ExpertMap
from moelab.widgets.explorer_inputs import trace_of
from moelab.widgets.heard_beside import heard_beside
from moelab.widgets.module import module_text
from moelab.widgets.static_picture import map_html
from moelab.widgets.widget import figures_html

POLICIES_AT_FIRST = ("lru", "lfu", "admit_ema_lfu", "second_touch")
SHARES_AT_FIRST = (0.05, 0.1, 0.2, 0.3, 0.5)
Of = Literal["misses", "reads"]


class CurveExplorer(ExpertMap):
    """``CurveExplorer(trace)``; a sweep of your own by ``sweep=``, otherwise it runs in the background (``wait``).

    A click on the chart chooses a size: the map then shows what an LRU of that size misses of each expert, and the
    table every policy at it. Experts chosen on the map get a curve of their own, and so do the layers that they lie in.

    Traits beside those of ``ExpertMap``: ``of`` (``misses`` or ``reads``), ``axis`` (of ``curve_axis.AXES``: sizes as
    slots per layer, slots of all layers, GB) and ``axes`` (those that the trace allows), ``slots`` (chosen size per
    layer, -1: none), ``sizes`` (those that were simulated), ``hidden`` (policies that are left out of the picture),
    ``names`` (all policies), ``chart`` and ``picture``, ``rows`` (one for each policy at ``slots``: ``policy``,
    ``miss_ratio``, ``reads``, ``uploads``).
    """

    _esm = module_text("map_picture.js", "expert_map.js", "chart.js", "curve_explorer.js")

    of = traitlets.Enum(("misses", "reads"), default_value="misses").tag(sync=True)
    axis = traitlets.Enum(AXES, default_value=AXES[0]).tag(sync=True)
    axes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    slots = traitlets.Int(-1).tag(sync=True)
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    hidden = traitlets.List(traitlets.Unicode()).tag(sync=True)
    chart = traitlets.Dict().tag(sync=True)
    picture = traitlets.Unicode("").tag(sync=True)
    rows = traitlets.List(traitlets.Dict()).tag(sync=True)

    def __init__(
        self,
        trace: Trace | StoredTrace | None = None,
        policies: Sequence[str | PolicyChoice] = POLICIES_AT_FIRST,
        capacities: Iterable[int | float] | None = None,
        *,
        phase: str | None = None,
        sweep: SweepResult | None = None,
    ):
        """``capacities``: slots, or shares of the experts (default: ``SHARES_AT_FIRST``, as far as they differ);
        ``phase``: whose figures are shown (default: decode where the trace has any); ``sweep``: of this very trace,
        with slots per layer."""
        super().__init__()
        self.sweep: SweepResult | None = None
        self.miss_ratio: ExpertMissRatio | None = None
        self._about_trace = ""
        self.background = Background(self._show_progress, self.lock)
        self.on_msg(self._on_message)
        if trace is None:
            self.say("empty", "No trace yet: give one, for example moelab.open_trace(path).load().")
            return
        loaded = trace_of(trace)
        if not loaded.num_tokens:
            self.say("empty", "This trace has no tokens: record some (moelab.record) first.")
            return
        if phase is None and (loaded.tokens.phase == Phase.DECODE).any():
            phase = "decode"
        self._trace, self._phase = loaded, phase
        self.axes = axes_of(loaded.header)
        if capacities is None:  # of few experts some shares are the same slots
            capacities = sorted({max(1, round(share * loaded.header.num_experts)) for share in SHARES_AT_FIRST})
        self._policies, self._capacities = list(policies), list(capacities)
        self.layer_names = [str(number) for number in loaded.header.model_layer_of_layer]
        if sweep is None:
            self.start()
            return
        sweep.check_is_of(loaded)
        self._take((sweep.of_phase(phase), expert_miss_ratio(loaded, phase=phase)))

    # -- the sweep -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Sweep in the background, policy by policy; ``wait`` for it."""
        try:
            cells_of(self._trace, self._policies, self._capacities, "layer")
        except ValueError as error:
            self.show_error(error)
            return
        with self.hold_sync():
            self.can_cancel = True
            self.say("busy", "Simulating every policy at every size.", 0.0)
        self.background.start(self._sweep, self._take, self._failed)

    def _sweep(self, report: Report) -> tuple[SweepResult, ExpertMissRatio]:
        ratios = expert_miss_ratio(self._trace, phase=self._phase)
        rows: list[Any] = []
        for number, policy in enumerate(self._policies):  # one after the other, so that it can be cancelled
            name = policy if isinstance(policy, str) else policy.name
            report(f"{name}, policy {number + 1} of {len(self._policies)}", number / (len(self._policies) + 1))
            rows += sweep(self._trace, [policy], self._capacities, progress=False).rows
        bounds = SweepResult(rows).missing_oracles()
        if bounds:
            report(f"what bounds them: {', '.join(bounds)}", len(self._policies) / (len(self._policies) + 1))
            rows += sweep(self._trace, bounds, self._capacities, progress=False).rows
        return SweepResult(rows).of_phase(self._phase), ratios

    def cancel(self) -> None:
        """End the sweep that runs."""
        self.background.cancel()
        with self.hold_sync():
            self.can_cancel = False
            self.say("empty", "Cancelled. Press Simulate to begin again.")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the sweep; ``False`` where it still runs after ``timeout_s``. Ctrl-C cancels it."""
        try:
            with heard_beside(self.comm):
                return self.background.wait(timeout_s)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def close(self) -> None:
        """End the sweep, and take the widget from the page."""
        self.background.cancel()
        super().close()

    def _show_progress(self, what: str, share: float) -> None:
        self.say("busy", f"Simulating: {what}.", share)

    def _failed(self, error: Exception) -> None:
        self.can_cancel = False
        self.show_error(error)

    def _on_message(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        if content.get("do") == "cancel":
            self.cancel()
        elif content.get("do") == "start" and self.status != "busy":
            self.start()

    def _take(self, found: tuple[SweepResult, ExpertMissRatio]) -> None:
        result, self.miss_ratio = found
        scopes = {row["scope"] for row in result.rows}
        if scopes != {"layer"}:
            self.show_error(ValueError("this sweep has one pool for all layers, expected slots per layer"))
            return
        self.sweep = result
        frame = result.to_frame()
        with self.hold_sync():
            self.can_cancel = False
            self.names = list(dict.fromkeys(frame.policy))
            self.sizes = [int(each) for each in sorted(frame.slots.unique())]
            if self.slots not in self.sizes:
                self.slots = self.sizes[len(self.sizes) // 2]
            self._draw_map()
            self._draw_chart()
            self._about_trace = f"SYNTHETIC routing of {result.model}." if result.synthetic else ""
            self.say("ready", self._words())

    def _words(self) -> str:
        """What the pictures do not say: where the trace is from, and why something is not there."""
        assert self.sweep is not None
        assert self.miss_ratio is not None
        out = [self._about_trace]
        if self.slots not in self.sizes:
            sizes = ", ".join(map(str, self.sizes))
            out.append(f"No policy was simulated at {self.slots} slots, expected one of {sizes}.")
        if self.names and set(self.names) <= set(self.hidden):
            out.append("Every policy is left out: tick one to draw it.")
        if self.chosen.any() and not self.miss_ratio.uses[self.chosen].any():
            out.append("The chosen experts are never used, so they have no curve: choose others.")
        return " ".join(filter(None, out))

    # -- pictures ------------------------------------------------------------------------------------------

    @traitlets.observe("slots")
    def _on_slots(self, change: Any) -> None:
        if self.sweep is not None:
            self._draw_map()

    @traitlets.observe("of", "axis", "hidden", "selection")
    def _on_picture(self, change: Any) -> None:
        if self.sweep is not None:
            try:
                self._draw_chart()
            except ValueError as error:
                self.show_error(error)
                return
            self.say("ready", self._words())

    def _draw_map(self) -> None:
        assert self.miss_ratio is not None
        assert self.sweep is not None
        try:
            values = self.miss_ratio.at(self.slots)
        except ValueError as error:
            self.show_error(error)
            return
        with self.hold_sync():
            label = f"missed by an LRU of {self.slots} slots per layer{self._about(self.slots)}"
            self.show(values, label=label, limits=(0.0, 1.0), layer_names=self.layer_names)
            self.say("ready", self._words())
            frame = self.sweep.to_frame()
            at = frame[frame.slots == self.slots]
            self.rows = [
                {
                    "policy": row.policy, "is_oracle": bool(row.is_oracle),
                    "miss_ratio": float(1 - row.hit_rate_per_request), "reads": float(row.reads_per_layer_step),
                    "uploads": float(row.uploads_per_layer_step),
                }
                for row in at.itertuples()
            ]  # fmt: skip

    def _about(self, slots: int) -> str:
        """Distances are exact where the slots hold the largest set, a whole prompt may be; below they say about."""
        assert self.miss_ratio is not None
        return ", about" if slots < self.miss_ratio.exact_from.max(initial=0) else ""

    def _draw_chart(self) -> None:
        from moelab import plots

        assert self.sweep is not None
        assert self.miss_ratio is not None
        shown = [row for row in self.sweep.rows if row["policy"] not in self.hidden]
        if not shown:
            self.chart, self.picture = {}, ""
            return
        chart = chart_of(plots.policy_curves(SweepResult(shown, phase=self.sweep.phase), cast(Of, self.of)))
        if self.hidden:  # a policy keeps its colour whichever others are drawn
            whole = chart_of(plots.policy_curves(self.sweep, cast(Of, self.of)))
            look_of_name = {one["name"]: (one["colour"], one["dash"]) for one in whole["series"]}
            for one in chart["series"]:
                one["colour"], one["dash"] = look_of_name[one["name"]]
        chosen = self.chosen
        if self.of == "misses" and chosen.any():
            layers = np.asarray(chosen.any(axis=1))
            if not layers.all():
                numbers = [name for name, there in zip(self.layer_names, layers, strict=True) if there]
                told = f"layer {numbers[0]}" if len(numbers) == 1 else f"the {len(numbers)} layers chosen on the map"
                self._add_curve(chart, np.broadcast_to(layers[:, None], chosen.shape), f"LRU, {told}", "dash")
            self._add_curve(chart, chosen, f"LRU, the {int(chosen.sum())} experts chosen on the map", "solid")
        chart = on_axis(chart, self._trace.header, self.axis)
        with self.hold_sync():
            self.chart = chart
            self.picture = chart_svg(chart) + legend_html(chart)

    def _add_curve(self, chart: Chart, experts: np.ndarray, name: str, dash: str) -> None:
        """What an LRU misses of ``experts`` bool [L, E], over slots per layer; nothing where they are never used."""
        assert self.miss_ratio is not None
        own = self.miss_ratio.curve(experts)
        if not np.isfinite(own).all():
            return
        first = max(self._trace.header.top_k, math.ceil(chart["x"]["low"]))
        last = min(len(own) - 1, math.floor(chart["x"]["high"]))
        chart["series"].append(
            {
                "name": name + self._about(first), "dash": dash, "width": 3, "colour": PALETTE[5], "marks": False,
                "fill": "", "x": list(range(first, last + 1)), "y": own[first : last + 1].tolist(), "shown": True,
            }
        )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Plain values: every policy at the chosen size."""
        if self.sweep is None:
            return {"state": self.message or self.status}
        rows = {row["policy"]: f"{row['miss_ratio']:.1%} missed, {row['reads']:.3g} reads" for row in self.rows}
        return {"model": self.sweep.model, "phase": self.sweep.phase or "all", "slots per layer": self.slots, **rows}

    def static_html(self) -> str:
        """Chart, map and table."""
        if self.sweep is None:
            return figures_html(self.summary())
        return self.picture + map_html(self.values, self.scale, str(self.scale["label"])) + figures_html(self.summary())
