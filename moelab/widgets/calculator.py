"""calculator: a form, figures and a chart that follow it: what SizingCalculator and CostCalculator share.  Floor 6.

A subclass says which inputs there are and which plain call answers; it computes nothing. Inputs that contradict each
other put the widget into its error state with the call's own message. Does not know sizes or prices.
"""

from __future__ import annotations

from typing import Any

import traitlets

from moelab.domain.summary import summary_html
from moelab.widgets.chart import Chart
from moelab.widgets.chart_svg import chart_svg, legend_html
from moelab.widgets.module import module_text
from moelab.widgets.widget import Widget

Control = dict[str, Any]
"""``name``, ``label``, ``kind`` (``select``, ``number``, ``text``, ``range``); ``options`` of a select; ``low``,
``high``, ``step`` and ``unit`` of a number; ``optional``: may be left empty, then it is ``None``; ``only``: shown
while other inputs have these values; ``group``: a heading."""


class Calculator(Widget):
    """Form beside figures and a chart.

    Traits: ``controls`` (a list of ``Control``); ``inputs`` (value of each by name; the browser writes it too);
    ``figures`` (names and texts, in order); ``headline`` (the one figure that was asked for); ``call`` (the plain
    Python call with the same numbers); ``chart`` (``Chart``), ``picture`` (its SVG).
    """

    _esm = module_text("form.js", "chart.js", "calculator.js")

    controls = traitlets.List(traitlets.Dict()).tag(sync=True)
    inputs = traitlets.Dict().tag(sync=True)
    figures = traitlets.List(traitlets.List(traitlets.Unicode())).tag(sync=True)
    headline = traitlets.Unicode("").tag(sync=True)
    call = traitlets.Unicode("").tag(sync=True)
    chart = traitlets.Dict().tag(sync=True)
    picture = traitlets.Unicode("").tag(sync=True)

    def answer(self, inputs: dict[str, Any]) -> tuple[str, str, dict[str, Any], Chart | None]:
        """(headline, call, figures, chart) of complete inputs; raises ``ValueError`` as the plain call does."""
        raise NotImplementedError(f"{type(self).__name__} answers nothing: every calculator makes its own plain call")

    def set(self, **inputs: Any) -> None:
        """Change some inputs by name; ValueError for one that the form does not have."""
        unknown = sorted(set(inputs) - set(self.inputs))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: expected one of {', '.join(self.inputs)}")
        self.inputs = {**self.inputs, **inputs}

    @traitlets.observe("inputs")
    def _follow(self, change: Any) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Ask again with the inputs as they are."""
        if not self.inputs:
            return
        names = {control["name"] for control in self.controls}
        if names != set(self.inputs):
            self._clear()
            odd = ", ".join(sorted(names ^ set(self.inputs)))
            what = f"inputs: {odd} lacking or unknown, expected all of the form: change some by set(name=value)"
            self.show_error(ValueError(what))
            return
        missing = self._missing()
        if missing:
            self._clear()
            self.say("empty", f"Fill in: {', '.join(missing)}.")
            return
        try:
            headline, call, figures, chart = self.answer(dict(self.inputs))
        except Exception as error:  # whatever it is, the widget says it: nobody sees a traceback of an observer
            self._clear()
            self.show_error(error)
            return
        with self.hold_sync():
            self.headline, self.call = headline, call
            self.figures = [[str(name), str(text)] for name, text in figures.items()]
            self.chart = chart or {}
            self.picture = chart_svg(chart) + legend_html(chart) if chart else ""
            self.say("ready")

    def _missing(self) -> list[str]:
        """Inputs that are needed and empty, by heading and label."""
        out, group = [], ""
        for control in self.controls:
            group = control.get("group", group)
            if not control.get("optional") and self.inputs[control["name"]] in (None, ""):
                out.append(f"{control['label']} ({group})" if group else control["label"])
        return out

    def _clear(self) -> None:
        with self.hold_sync():
            self.headline, self.call, self.figures, self.chart, self.picture = "", "", [], {}, ""

    def summary(self) -> dict[str, Any]:
        """The figures, plain."""
        rows = {name: text for name, text in self.figures}
        return rows or {"state": self.message or self.status}

    def static_html(self) -> str:
        """Headline, picture and figures."""
        return summary_html(f"{type(self).__name__}: {self.headline}", self.summary()) + self.picture
