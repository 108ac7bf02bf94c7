"""live_decode: an engine that generates in the notebook: its text, the experts that light up, what its nodes read.

Floor 6. Shows what ``moelab.exploration.LiveRun`` counts and computes nothing: the twin of every figure is
``view.run.figures()``, that of the map ``view.run.glow``, ``view.run.uses`` or ``homes_of_engine(engine)``. Every
button is a method.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from moelab.domain.machine import Machine
from moelab.domain.plan import Plan
from moelab.exploration import LiveRun, homes_of_engine
from moelab.exploration.map_layers import MapLayer
from moelab.widgets.background import Background
from moelab.widgets.expert_map import ExpertMap
from moelab.widgets.heard_beside import heard_beside
from moelab.widgets.module import module_text
from moelab.widgets.static_picture import map_html
from moelab.widgets.widget import figures_html

if TYPE_CHECKING:
    from moelab.engine.engine import Engine

COLOURS = ("light", "uses", "home")
SECONDS_BETWEEN_MESSAGES = 0.1
AS_LOADED = "as loaded"
_WAIT_AT_END_S = 5.0
_TEXT_IN_A_SAVED_NOTEBOOK = 2000


class LiveDecode(ExpertMap):
    """``LiveDecode(engine, plans={"name": plan})``: generate in the background, apply a plan, generate again.

    ``machine``: for dispatch, as of ``moelab.apply``. The engine is held while it generates: used elsewhere meanwhile
    it raises a ``RuntimeError`` that says so. While a cell runs the kernel hears no button: interrupt it, and a cell
    that is in ``wait`` stops the generation.

    Traits beside those of ``ExpertMap``: ``prompt``, ``max_new_tokens``, ``temperature``, ``seed`` (of
    ``engine.generate``); ``colour_by`` (``light``: the latest tokens' experts; ``uses`` in this prompt; ``home``: where
    each lies); ``chosen_plan``; read-only: ``doing`` (empty, ``generating``, ``applying``), ``text``, ``figures``
    (``LiveRun.figures`` and ``number``, ``prompt``, ``plan``, ``text``), ``runs`` (the same of all prompts that ended),
    ``plan_names``, ``plan_in_use``, ``num_messages`` (sent while generating, about ten a second at most).
    """

    _esm = module_text("map_picture.js", "expert_map.js", "figures_panel.js", "live_figures.js", "live_decode.js")

    prompt = traitlets.Unicode("").tag(sync=True)
    max_new_tokens = traitlets.Int(64, min=1).tag(sync=True)
    temperature = traitlets.Float(0.0, min=0.0).tag(sync=True)
    seed = traitlets.Int(0).tag(sync=True)
    colour_by = traitlets.Enum(COLOURS, default_value="light").tag(sync=True)
    chosen_plan = traitlets.Unicode("").tag(sync=True)
    doing = traitlets.Enum(("", "generating", "applying"), default_value="").tag(sync=True)
    text = traitlets.Unicode("").tag(sync=True)
    figures = traitlets.Dict().tag(sync=True)
    runs = traitlets.List(traitlets.Dict()).tag(sync=True)
    plan_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    plan_in_use = traitlets.Unicode(AS_LOADED).tag(sync=True)
    num_messages = traitlets.Int(0).tag(sync=True)

    def __init__(
        self, engine: Engine | None = None, plans: Mapping[str, Plan] | None = None, *, prompt: str = "",
        machine: Machine | None = None,
    ):  # fmt: skip
        super().__init__()
        self.engine, self.machine = engine, machine
        self.run: LiveRun | None = None
        self.plans: dict[str, Plan] = {}
        self._texts: dict[tuple[Any, ...], tuple[int, str]] = {}
        self._asked: tuple[Any, ...] = ()  # of the prompt that runs: what it is, and all that its text follows from
        self._turn = threading.Lock()
        self._background = Background(lambda what, share: None, self.lock)
        self._running: list[LiveRun] = []
        self._at_exit = weakref.finalize(self, _end, self._running, self._background)
        self.on_msg(self._on_message)
        self.prompt = prompt
        if engine is None:
            self.say("empty", "No engine yet: LiveDecode(moelab.load(folder)), a checkpoint's folder.")
            return
        for name, plan in (plans or {}).items():
            self.add_plan(name, plan)
        self._draw()
        self.say("ready", "Write a prompt and press Generate (Ctrl+Enter). Stop is Escape.")

    # -- generating ----------------------------------------------------------------------------------------

    def generate(self, prompt: str | Sequence[int] | None = None) -> None:
        """Start a prompt (text or token ids; None: the one that is shown) in the background; ``wait`` for it.

        Raises ``ValueError`` where it cannot start: no engine, still busy, an empty prompt.
        """
        engine = self._begin("generating")
        try:
            if isinstance(prompt, str):
                self.prompt = prompt
            given = self.prompt if prompt is None else prompt
            if isinstance(given, str) and not given.strip():
                raise ValueError("prompt: expected a text, got none; write one and press Generate")
            run = LiveRun(engine, given, self.max_new_tokens, temperature=self.temperature, seed=self.seed)
            said = given if isinstance(given, str) else tuple(given)
            self._asked = (said, self.max_new_tokens, self.temperature, self.seed)
        except BaseException:
            self.doing = ""
            raise
        self.run = run
        self._running[:] = [run]
        with self.hold_sync():
            self.num_messages = 0
            self._take(run)
            self.say("busy", "Reading the prompt.")
        self._background.start(lambda report: self._follow(run), self._ended, self._failed)

    def stop(self) -> None:
        """End after the token that is being computed."""
        if self.run is not None:
            self.run.stop()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for what runs; ``False`` where it still does after ``timeout_s``. Stop is heard; Ctrl-C stops it."""
        try:
            with heard_beside(self.comm):
                return self._background.wait(timeout_s)
        except KeyboardInterrupt:
            self.stop()
            self._background.wait(_WAIT_AT_END_S)
            raise

    def close(self) -> None:
        """Stop, and take the widget from the page; the engine stays open."""
        self.stop()
        self._background.wait(_WAIT_AT_END_S)
        super().close()

    def _begin(self, what: str) -> Engine:
        if self.engine is None:
            raise ValueError("no engine: LiveDecode(moelab.load(folder))")
        with self._turn:
            if self.doing:
                raise ValueError(f"still {self.doing}: press Stop, or wait for its end")
            self.doing = what
        return self.engine

    def _follow(self, run: LiveRun) -> LiveRun:
        last = 0.0
        for _ in run:
            now = time.monotonic()
            if now - last >= SECONDS_BETWEEN_MESSAGES:
                last = now
                with self.hold_sync():
                    self._take(run)
                    self.num_messages += 1
                    told = f"Token {run.num_steps} of at most {self.max_new_tokens}. Stop: Escape."
                    self.say("busy", told, run.num_steps / self.max_new_tokens)
        return run

    def _ended(self, run: LiveRun) -> None:
        with self.hold_sync():
            self._take(run)
            self._compare_text(run)
            self.runs = [*self.runs, self.figures]
            self.doing = ""
            why = str(self.figures["finished_by"])
            ends = {"cancelled": "Stopped", "stop": "The model ended the text"}.get(why, "Done")
            self.say("ready", f"{ends} after {run.num_steps} tokens. Apply a plan and generate again to compare.")

    def _failed(self, error: Exception) -> None:
        with self.hold_sync():
            self.doing = ""
            self.show_error(error)

    def _take(self, run: LiveRun) -> None:
        """What the run has so far."""
        self.text = run.text
        asked = self._asked[0]
        prompt = asked[:60] if isinstance(asked, str) else f"{len(asked)} token ids"
        row = {"number": len(self.runs) + 1, "prompt": prompt, "plan": self.plan_in_use, "text": ""}
        self.figures = row | run.figures()
        self._draw()

    def _compare_text(self, run: LiveRun) -> None:
        """Placement on nodes never changes a text; say so where the same was asked before."""
        if self.figures["finished_by"] == "cancelled":
            return
        number, text = self._texts.setdefault(self._asked, (self.figures["number"], run.text))
        if number != self.figures["number"]:
            same = "same as" if text == run.text else "differs from"
            self.figures = self.figures | {"text": f"{same} {number}"}

    # -- plans ---------------------------------------------------------------------------------------------

    def add_plan(self, name: str, plan: Plan) -> None:
        """Offer a plan in the menu."""
        self.plans[name] = plan
        with self.hold_sync():
            self.plan_names = list(self.plans)
            self.chosen_plan = self.chosen_plan or name

    def apply(self, name: str | None = None) -> None:
        """Carry out a plan of the menu (None: the chosen one) in the background; raises ``ValueError`` as ``generate``.

        The plan before stays where the engine cannot do it, and the widget says why.
        """
        name = self.chosen_plan if name is None else name
        if name not in self.plans:
            raise ValueError(f"plan {name!r}: expected one of {list(self.plans)}; offer it with add_plan(name, plan)")
        engine, plan = self._begin("applying"), self.plans[name]
        self.say("busy", f"Moving experts: {name}.")

        def work(report: Any) -> Any:
            from moelab.migration import apply

            with engine.held("LiveDecode, which applies a plan,"):
                return apply(engine, plan, machine=self.machine, progress=False)

        def done(applied: Any) -> None:
            with self.hold_sync():
                self.doing, self.plan_in_use = "", name
                self._draw()
                self.say(
                    "ready",
                    f"Applied {name} in {applied.seconds:.2f} s: {applied.copies_added} copies added, "
                    f"{applied.copies_kept} kept, {applied.copies_removed} removed. Generate again to compare.",
                )

        self._background.start(work, done, self._failed)

    # -- the map -------------------------------------------------------------------------------------------

    def map_layer(self, name: str) -> MapLayer:
        """What the map shows under ``colour_by = name``."""
        assert self.engine is not None, self.message
        if name == "home":
            return homes_of_engine(self.engine)
        shape = (len(self.engine.routed), self.engine.spec.n_routed_experts)
        if name == "light":
            values = np.zeros(shape, np.float32) if self.run is None else self.run.glow
            return MapLayer(values, "used by the latest tokens", limits=(0.0, 1.0))
        uses = np.zeros(shape, np.int64) if self.run is None else self.run.uses
        return MapLayer(uses.astype(np.float32), "uses in this prompt", limits=(0.0, float(max(1, uses.max()))))

    @traitlets.observe("colour_by")
    def _on_colour(self, change: Any) -> None:
        if self.engine is not None:
            self._draw()

    def _draw(self) -> None:
        assert self.engine is not None
        layer = self.map_layer(self.colour_by)
        names = [str(number) for number in self.engine.spec.model_layer_of_layer]
        status, message, progress = self.status, self.message, self.progress
        with self.hold_sync():
            self.show(layer.values, label=layer.label, names=layer.names, limits=layer.limits, layer_names=names)
            self.say("ready" if status == "empty" else status, message, progress)

    # -- messages ------------------------------------------------------------------------------------------

    def _on_message(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        # The form comes with the message: a change of traits may arrive after it.
        try:
            for name in ("prompt", "max_new_tokens", "temperature", "seed"):
                if name in content and not self.doing:
                    setattr(self, name, content[name])
            actions: dict[str, Callable[[], None]] = {
                "generate": self.generate, "stop": self.stop, "apply": lambda: self.apply(content.get("plan")),
            }  # fmt: skip
            if content.get("do") in actions:
                actions[content["do"]]()
        except (ValueError, traitlets.TraitError) as error:
            self.show_error(ValueError(str(error)))

    # -- without JavaScript --------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """The engine, and the figures of the latest prompt; plain values."""
        if self.engine is None:
            return {"status": self.message}
        rows = {"engine": self.engine.name, "plan": self.plan_in_use, "prompts": len(self.runs)}
        return rows | {name: value for name, value in self.figures.items() if name != "plan"}

    def static_html(self) -> str:
        """Text, map and figures of the prompts."""
        if self.engine is None:
            return figures_html({"live decode": self.message})
        text = self.text[:_TEXT_IN_A_SAVED_NOTEBOOK] + (" ..." if len(self.text) > _TEXT_IN_A_SAVED_NOTEBOOK else "")
        spoken = f"<p style='white-space:pre-wrap'><b>{escape(self.prompt)}</b>{escape(text)}</p>" if text else ""
        return spoken + map_html(self.values, self.scale, str(self.scale["label"])) + figures_html(self.summary())


def _end(running: list[LiveRun], background: Background) -> None:
    """When the widget is forgotten or Python exits: no thread is left inside the kernels."""
    for run in running:
        run.stop()
    background.wait(_WAIT_AT_END_S)
