"""explorer_plans: what the buttons of a placement explorer do with its plan: keep, save, replay, apply.  Floor 6.

Does not know how the plan came about: sliders, map and figures are those of ``placement_explorer``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import traitlets

from moelab.domain.plan import Plan
from moelab.widgets.background import Report
from moelab.widgets.explorer_figures import ExplorerFigures

if TYPE_CHECKING:
    from moelab.engine.engine import Engine


class ExplorerPlans(ExplorerFigures):
    """What is done with the plan of the ``outcome``.

    Traits: ``kept`` (``Figures.as_dict`` of plan A), ``replay_html``, ``has_engine``, ``note`` (what became of the
    plan, beside the buttons: it stays while figures come and go).
    """

    kept = traitlets.Dict().tag(sync=True)
    replay_html = traitlets.Unicode("").tag(sync=True)
    has_engine = traitlets.Bool(False).tag(sync=True)
    note = traitlets.Unicode("").tag(sync=True)

    engine: Engine | None
    _kept_plan: Plan | None = None
    _replay_options: dict[str, Any]

    def _settings_text(self) -> str:
        raise NotImplementedError("a subclass says what its sliders and menus stand at")

    @property
    def plan(self) -> Plan:
        """The plan as shown; of a preview, the quick placement (its planner's name says so)."""
        assert self.outcome is not None, self.message
        found = self.outcome.figures
        told = {name: value for name, value in found.as_dict().items() if name not in ("memory", "seconds")}
        return self.outcome.plan.model_copy(update={"prediction": told})

    def save(self, path: str | Path = "plan.json") -> None:
        """Write the plan, its figures as the prediction."""
        assert self.outcome is not None, self.message
        if not str(path).strip() or not Path(path).name:
            raise ValueError(
                f"file name of the plan is {str(path)!r}, expected one such as plan.json: write it beside Save"
            )
        self.plan.save(path)
        what = "the preview's plan" if self.outcome.figures.is_preview else "the plan"
        self.note = f"Saved {what} as {Path(path)}. Load it with moelab.Plan.load, run it with moelab.replay."

    def keep(self) -> None:
        """Keep the plan as A, to compare what follows with it."""
        assert self.outcome is not None, self.message
        self._kept_plan = self.plan
        self.kept = {**self.outcome.figures.as_dict(), "settings": self._settings_text()}

    @property
    def kept_plan(self) -> Plan | None:
        """Plan A."""
        return self._kept_plan

    def replay(self) -> None:
        """Really execute held-out tokens here under the plan, prediction beside measurement, in the background."""
        assert self.outcome is not None, self.message
        plan, nodes = self.plan, self.outcome.settings.nodes

        def work(report: Report) -> str:
            from moelab.execution.replay import replay

            report("executing the routed experts", -1.0)
            virtual = {"virtual_nodes": nodes} if nodes > 1 else {}
            options = {"tokens": 32, "phase": self.exploration.phase, **virtual, **self._replay_options}
            return replay(self.exploration.trace, plan, progress=False, **options)._repr_html_()

        def done(html: str) -> None:
            with self.hold_sync():
                self.replay_html = html
                self.can_cancel = False
                self.say("ready")

        self.say("busy", "Replay: executing the routed experts on this machine.")
        self.can_cancel = True
        self.background.start(work, done, self._failed)

    def apply(self) -> None:
        """Carry the plan out in the live engine; raises ``ValueError`` without one."""
        if self.engine is None:
            raise ValueError("no live engine: PlacementExplorer(trace, machine, engine=moelab.load(folder))")
        from moelab.migration import apply

        applied = apply(self.engine, self.plan, progress=False)
        self.note = (
            f"Applied in {applied.seconds:.2f} s: {applied.copies_added} copies added, {applied.copies_kept} kept, "
            f"{applied.copies_removed} removed."
        )
