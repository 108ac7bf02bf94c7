"""placement_explorer: the map, sliders and menus of a placement, and what it is worth, live.  Floor 6.

Shows what ``moelab.exploration`` computes and computes nothing: the twin of every figure is
``explorer.exploration.preview(explorer.settings, explorer.edits)`` or ``.full(...)``. Every button is a method.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.domain.trace import Trace
from moelab.exploration import MAP_LAYERS, Edit, Exploration, Outcome, Settings, select
from moelab.exploration.map_layers import MapLayer
from moelab.exploration.settings import fitting
from moelab.widgets.background import Background
from moelab.widgets.expert_map import EDITED, PINNED
from moelab.widgets.explorer_choices import choices_of, first_settings, split_of
from moelab.widgets.explorer_inputs import machine_of, trace_of
from moelab.widgets.explorer_layers import ExplorerLayers
from moelab.widgets.explorer_plans import ExplorerPlans
from moelab.widgets.module import module_text
from moelab.widgets.static_picture import map_html
from moelab.widgets.widget import figures_html

if TYPE_CHECKING:
    from moelab.engine.engine import Engine
    from moelab.store import StoredTrace

_SETTINGS = ("slots_per_layer", "nodes", "extra_memory", "planner", "policy")


class PlacementExplorer(ExplorerPlans):
    """Explore placements of ``trace`` on ``machine``.

    ``trace``: also a stored one, read whole; ``machine``, ``model``: also a preset's name (of the model: bytes that the
    trace does not say, memory of all but the experts).
    ``engine``: a live one, for ``apply``. ``replay_options``: of ``moelab.replay``. Others: those of ``Exploration``.

    Raises ``TypeError`` and ``ValueError`` for what it cannot explore.

    Traits beside those of ``ExpertMap``, ``ExplorerFigures`` and ``ExplorerPlans``: ``slots_per_layer`` (of fast0, 0 to
    E), ``nodes``, ``extra_memory`` (bytes of replicas over those of one copy of every expert), ``planner``, ``policy``;
    ``colour_by`` (``MAP_LAYERS``), ``map_order`` (``id``, ``load``); read-only: ``choices`` (what menus and sliders
    offer), ``split`` (planning and held-out part), ``edits_made`` (texts), ``asked`` and ``answered`` (counts of the
    browser's changes).
    """

    _esm = module_text(
        "map_picture.js", "expert_map.js", "figures_panel.js", "explorer_controls.js", "placement_explorer.js"
    )

    slots_per_layer = traitlets.Int(0, min=0).tag(sync=True)
    nodes = traitlets.Int(1, min=1).tag(sync=True)
    extra_memory = traitlets.Float(0.0, min=0.0).tag(sync=True)
    planner = traitlets.Unicode("frequency").tag(sync=True)
    policy = traitlets.Unicode("static").tag(sync=True)
    colour_by = traitlets.Enum(MAP_LAYERS, default_value="load").tag(sync=True)
    map_order = traitlets.Enum(("id", "load"), default_value="load").tag(sync=True)
    choices = traitlets.Dict().tag(sync=True)
    split = traitlets.Dict().tag(sync=True)
    edits_made = traitlets.List(traitlets.Unicode()).tag(sync=True)
    asked = traitlets.Int(0).tag(sync=True)
    answered = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        trace: Trace | StoredTrace | None = None,
        machine: Machine | str | None = None,
        model: ModelSpec | str | None = None,
        *,
        engine: Engine | None = None,
        replay_options: dict[str, Any] | None = None,
        settings: Settings | None = None,
        **options: Any,
    ):
        super().__init__()
        self.background = Background(self._show_progress, self.lock)
        self.engine, self._replay_options = engine, dict(replay_options or {})
        self.edits: tuple[Edit, ...] = ()
        self.outcome: Outcome | None = None
        self._is_setting = False
        self.on_msg(self._on_message)
        if trace is None:
            self.say(
                "empty", "No trace yet: PlacementExplorer(trace, machine), a trace from moelab.open_trace(folder)."
            )
            return
        loaded = trace_of(trace)
        if not loaded.num_tokens:
            self.say("empty", "This trace has no tokens: record some (moelab.record) first.")
            return
        self.exploration = Exploration(loaded, machine_of(machine), model, **options)
        self._layers = ExplorerLayers(self.exploration)
        self._order = np.argsort(-self.exploration.loads, axis=1, kind="stable")
        chosen = settings or first_settings(self.exploration)
        with self.hold_sync():
            self.has_engine = engine is not None
            self.split = split_of(self.exploration)
            self._set(chosen)
            self._preview()
        self.start_warming()

    # -- settings ------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """What the sliders and menus say."""
        return Settings(**{name: getattr(self, name) for name in _SETTINGS})

    def _set(self, settings: Settings) -> None:
        self._is_setting = True
        try:
            for name in _SETTINGS:
                setattr(self, name, getattr(settings, name))
            self.choices = choices_of(self.exploration, settings)
        finally:
            self._is_setting = False

    @traitlets.observe(*_SETTINGS)
    def _on_settings(self, change: Any) -> None:
        if self._is_setting or not hasattr(self, "exploration"):
            return
        values = {name: getattr(self, name) for name in _SETTINGS}
        values["slots_per_layer"] = min(values["slots_per_layer"], self.num_experts or values["slots_per_layer"])
        try:
            settings = fitting(values, self.exploration.trace.extras)
        except ValueError as error:
            self.show_error(error)
            return
        gave_way = [name for name in ("planner", "policy") if values[name] != getattr(settings, name)]
        self._set(settings)  # also where nothing else is new: a trait must not name what is not in use
        if gave_way:
            here = f"{settings.nodes} node(s) and {settings.slots_per_layer} slots a layer"
            self.note = "; ".join(
                f"{values[name]} does not go with {here}: {getattr(settings, name)} in its place" for name in gave_way
            )
        if self.outcome is None or settings != self.outcome.settings:
            self._preview()

    @traitlets.observe("colour_by", "map_order")
    def _on_map(self, change: Any) -> None:
        if self.outcome is not None:
            self._draw()

    @traitlets.observe("asked")
    def _on_asked(self, change: Any) -> None:
        self.answered = self.asked

    # -- figures -------------------------------------------------------------------------------------------

    def _take(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.figures = outcome.figures.as_dict()
        self.edits_made = [str(edit) for edit in self.edits]
        self._draw()

    # -- the map -------------------------------------------------------------------------------------------

    def map_layer(self, name: str) -> MapLayer:
        """What the map shows under ``colour_by = name``."""
        assert self.outcome is not None, self.message
        return self._layers.layer(name, self.outcome)

    def _draw(self) -> None:
        assert self.outcome is not None
        layer, draft = self.map_layer(self.colour_by), self.outcome.draft
        marks = np.where(draft.pinned, PINNED, 0).astype(np.uint8)
        for edit in self.edits:
            marks |= np.where(edit.chosen, EDITED, 0).astype(np.uint8)
        names = [str(name) for name in self.exploration.trace.header.model_layer_of_layer]
        status, message, progress = self.status, self.message, self.progress
        with self.hold_sync():
            self.show(
                layer.values, label=layer.label, names=layer.names, limits=layer.limits, marks=marks,
                order=self._order if self.map_order == "load" else None, layer_names=names,
            )  # fmt: skip
            self.say("ready" if status == "empty" else status, message, progress)

    # -- choosing and editing --------------------------------------------------------------------------------

    def query(self, text: str) -> None:
        """Choose experts by a query over the map layers, ``layer`` and ``expert`` (``exploration.select``)."""
        assert self.outcome is not None, self.message
        self.choose(select(text, self._layers.columns(text, self.outcome)))

    def edit(self, action: str, tier: str = "") -> None:
        """``action`` of ``exploration.ACTIONS`` on the chosen experts (``tier`` of ``move``); raises ``ValueError``."""
        begin, edits = time.perf_counter(), (*self.edits, Edit(action, self.chosen, tier))
        outcome = self.exploration.preview(self.settings, edits)
        self.edits = edits
        self.background.cancel()
        self._show_preview(outcome, begin)

    def undo(self) -> None:
        """Take the last edit back."""
        self.edits = self.edits[:-1]
        self._preview()

    def clear_edits(self) -> None:
        """Back to the planner's placement."""
        self.edits = ()
        self._preview()

    def _settings_text(self) -> str:
        fast = (
            f"{self.slots_per_layer} slot{'s' * (self.slots_per_layer > 1)} a layer, " if self.slots_per_layer else ""
        )
        return f"{self.planner}, {fast}{self.policy}, {self.nodes} node{'s' * (self.nodes > 1)}"

    # -- messages ------------------------------------------------------------------------------------------

    def _on_message(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        simple: dict[str, Callable[[], None]] = {
            "undo": self.undo, "clear_edits": self.clear_edits, "keep": self.keep, "replay": self.replay,
            "apply": self.apply, "cancel": self.cancel, "full": self.full,
        }  # fmt: skip
        action = content.get("do")
        try:
            if action in simple:
                simple[action]()
            elif action == "query":
                self.query(content["text"])
                self.say("ready", f"{self.num_selected} experts chosen.")
            elif action == "save":
                self.save(content.get("path", ""))
            elif action is not None:
                self.edit(action, content.get("tier", ""))
        except Exception as error:  # a button must not fail without a word on the page
            self.show_error(error)

    # -- without JavaScript --------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Settings and figures; plain values."""
        if self.outcome is None:
            return {"status": self.message}
        return {"settings": self._settings_text(), "edits": len(self.edits), **self.outcome.figures.summary()}

    def static_html(self) -> str:
        """The map and the figures."""
        if self.outcome is None:
            return figures_html({"placement explorer": self.message})
        return map_html(self.values, self.scale, str(self.scale["label"])) + figures_html(self.summary())
