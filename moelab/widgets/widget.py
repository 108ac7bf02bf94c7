"""widget: what all widgets share: the state that they are in, and what a saved notebook shows in their place.  Floor 6.

``status`` is one of ``STATUSES``; ``message`` then says what to do. Where no kernel runs (nbconvert, a viewer) the
output's ``text/html`` is shown: ``static_html``, a picture and its figures without JavaScript. Does not know what a
widget shows. Work in the background changes traits too: ``lock`` keeps its changes and those of the kernel's thread
apart, which ipywidgets does not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, Literal

import anywidget
import traitlets

from moelab.widgets.module import style_text

Status = Literal["empty", "busy", "ready", "error"]
STATUSES: tuple[Status, ...] = ("empty", "busy", "ready", "error")


def binary() -> Any:
    """A trait of bytes that crosses as one binary buffer, both ways (ipywidgets hands the browser's as memoryview)."""
    return traitlets.Bytes(b"").tag(sync=True, from_json=lambda value, widget: bytes(value or b""))


class Widget(anywidget.AnyWidget):
    """A widget of moelab; subclasses set ``_esm`` by ``module_text`` and write ``static_html`` and ``summary``.

    Traits: ``status`` (``STATUSES``), ``message`` (a sentence that says what to do), ``progress`` (0 to 1 of what runs,
    -1 where nothing does), ``can_cancel`` (a button sends the message ``{"do": "cancel"}``).
    """

    _css = style_text()

    status = traitlets.Enum(STATUSES, default_value="empty").tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)
    progress = traitlets.Float(-1.0).tag(sync=True)
    can_cancel = traitlets.Bool(False).tag(sync=True)

    def __init__(self, **kwargs: Any):
        self.lock = threading.RLock()
        super().__init__(**kwargs)

    @contextmanager
    def hold_sync(self) -> Iterator[None]:
        """As of ipywidgets, one thread at a time: two would send each other's states, or lose them."""
        with self.lock, super().hold_sync():
            yield

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """What the browser writes; not while another thread changes traits."""
        with self.lock:
            super().set_state(sync_data)

    def summary(self) -> dict[str, Any]:
        """What ``repr`` and the saved notebook show; plain values, units in the names."""
        raise NotImplementedError(f"{type(self).__name__} has no summary: every widget writes its own")

    def static_html(self) -> str:
        """The picture in place of the widget, HTML without JavaScript."""
        raise NotImplementedError(f"{type(self).__name__} has no static picture: every widget draws its own")

    def say(self, status: Status, message: str = "", progress: float = -1.0) -> None:
        """Set the state; one message to the browser."""
        with self.hold_sync():
            self.status, self.message, self.progress = status, message, progress

    def show_error(self, error: BaseException) -> None:
        """The error as the widget's state: our errors say what was expected and what to do."""
        text = str(error) or "no message"
        self.say("error", text if isinstance(error, ValueError | MemoryError) else f"{type(error).__name__}: {text}")

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        return {**data, "text/plain": repr(self), "text/html": self.static_html()}, metadata

    def __repr__(self) -> str:
        lines = [f"  {name}: {value}" for name, value in self.summary().items()]
        return "\n".join([type(self).__name__, *lines])


def figures_html(rows: dict[str, Any]) -> str:
    """A table of names and values, escaped."""
    left = "style='text-align:left'"
    cells = [f"<tr><th {left}>{escape(str(n))}</th><td {left}>{escape(str(v))}</td></tr>" for n, v in rows.items()]
    return f"<table>{''.join(cells)}</table>"
