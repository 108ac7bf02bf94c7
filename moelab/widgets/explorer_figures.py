"""explorer_figures: the preview at once, the full figure in the background: waited for, cancelled, failed.  Floor 6.

Twins: ``exploration.preview(settings, edits)`` and ``exploration.full(settings, edits)``. Does not know sliders, nor
how the map is drawn.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import traitlets

from moelab.exploration import Edit, Exploration, Outcome, Settings, warm
from moelab.widgets.background import Background, Report
from moelab.widgets.expert_map import ExpertMap
from moelab.widgets.heard_beside import heard_beside

PAUSE_S = 0.4  # a slider that still moves starts no full figure
_LOOK_S = 0.05  # how soon a wait sees that it was cancelled


class ExplorerFigures(ExpertMap):
    """An ``ExpertMap`` of an ``exploration``. Traits: ``figures`` (``Figures.as_dict``), ``preview_ms``."""

    figures = traitlets.Dict().tag(sync=True)
    preview_ms = traitlets.Float(0.0).tag(sync=True)

    background: Background
    exploration: Exploration
    edits: tuple[Edit, ...]
    outcome: Outcome | None
    _is_closed = False

    @property
    def settings(self) -> Settings:
        """What the sliders and menus say."""
        raise NotImplementedError("a subclass has the sliders and menus")

    def _take(self, outcome: Outcome) -> None:
        raise NotImplementedError("a subclass draws it")

    def _preview(self) -> None:
        """The preview now, the full figure in the background."""
        begin = time.perf_counter()
        self.background.cancel()
        try:
            outcome = self.exploration.preview(self.settings, self.edits)
        except ValueError as error:
            self.show_error(error)
            return
        self._show_preview(outcome, begin)

    def _show_preview(self, outcome: Outcome, begin: float) -> None:
        """``begin``: when it was asked for, by ``time.perf_counter``."""
        with self.hold_sync():
            self._take(outcome)
            self.preview_ms = 1e3 * (time.perf_counter() - begin)
        self.full(after_s=PAUSE_S)

    def full(self, *, after_s: float = 0.0) -> None:
        """Start the full figure in the background (``wait`` for it)."""
        settings, edits = self.settings, self.edits
        with self.hold_sync():
            before = "Preview. " if self.outcome is not None and self.outcome.figures.is_preview else ""
            self.say("busy", f"{before}The full figure follows.", 0.0)
            self.can_cancel = True

        def work(report: Report) -> Outcome:
            return self.exploration.full(settings, edits, report)

        def done(outcome: Outcome) -> None:
            with self.hold_sync():
                self._take(outcome)
                self.can_cancel = False
                self.say("ready")

        self.background.start(work, done, self._failed, after_s=after_s)

    def cancel(self) -> None:
        """End what runs in the background; the preview stays."""
        self.background.cancel()
        with self.hold_sync():
            self.can_cancel = False
            self.say("ready", "Cancelled. The preview stands; press Full figure to compute it.")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for what runs in the background, or for Cancel; ``False`` where it still runs after ``timeout_s``.

        The page's buttons work meanwhile where the kernel has subshells (``heard_beside``). Everywhere Ctrl-C, or the
        notebook's stop button, cancels what is waited for, and the cell ends.
        """
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            with heard_beside(self.comm):
                while not self.background.wait(_LOOK_S) and self.can_cancel:
                    if ends is not None and time.monotonic() >= ends:
                        return False
        except KeyboardInterrupt:
            self.cancel()
            raise
        return True

    def close(self) -> None:
        """End what runs, and take the widget from the page; an engine stays open."""
        self._is_closed = True
        self.background.cancel()
        super().close()

    def start_warming(self) -> None:
        """Every policy of the menu is ready before it is chosen; ``warmth`` is the thread."""
        self.warmth = threading.Thread(target=self._warm, daemon=True)
        self.warmth.start()

    def _warm(self) -> None:
        time.sleep(PAUSE_S)
        with suppress(ValueError):  # who then chooses such a policy is told
            warm(self.exploration, is_wanted=lambda: not self._is_closed)

    def _failed(self, error: Exception) -> None:
        self.can_cancel = False
        self.show_error(error)

    def _show_progress(self, what: str, share: float) -> None:
        self.say("busy", f"Preview. The full figure follows: {what}.", share)
