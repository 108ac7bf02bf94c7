"""trace_browser: requests of a trace, their text coloured by how it was routed, and the routes of one token.  Floor 6.

Plain twins: ``request_table(trace)``, ``token_values(trace, request, by, layer=..., slot=..., expert=...)`` and
``token_routes(trace, request, token)`` of ``moelab.analysis.token_routes`` give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import traitlets

from moelab.analysis.token_routes import WAYS, TokenValues, request_table, rows_of_request, token_routes, token_values
from moelab.domain.trace import NO_TOKEN_ID, Phase, Trace
from moelab.engine.text import TextCodec, TextStream
from moelab.store import StoredTrace
from moelab.widgets.explorer_inputs import trace_of
from moelab.widgets.module import module_text
from moelab.widgets.static_picture import map_colours
from moelab.widgets.widget import Widget, binary, figures_html

MOST_TOKENS = 3000
"""Of a request that are shown; a browser grows slow beyond."""
_IN_A_SAVED_NOTEBOOK = 400


class TraceBrowser(Widget):
    """``TraceBrowser(trace, decode=tokenizer.decode)``; without ``decode``, or without recorded token ids, positions.

    Traits: ``requests`` (rows of ``request_table``); ``request``, ``by`` (one of ``WAYS``), ``layer`` (MoE layer),
    ``slot``, ``expert``: what is shown, the browser writes them too; ``token`` (place in the request, -1: none);
    ``pieces`` (text of each token), ``num_prompt`` (how many of them are prompt); ``token_data`` (bytes: float32, a
    value for each token); ``scale`` (as of ``ExpertMap``); ``routes`` (of ``token``: ``layers``, then ``experts`` and
    ``weights`` of each); ``layer_names``, ``num_experts``, ``top_k``.
    """

    _esm = module_text("trace_browser.js")

    requests = traitlets.List(traitlets.Dict()).tag(sync=True)
    request = traitlets.Int(-1).tag(sync=True)
    by = traitlets.Enum(WAYS, default_value="expert").tag(sync=True)
    ways = traitlets.List(default_value=[str(way) for way in WAYS]).tag(sync=True)
    layer = traitlets.Int(0).tag(sync=True)
    slot = traitlets.Int(0).tag(sync=True)
    expert = traitlets.Int(0).tag(sync=True)
    token = traitlets.Int(-1).tag(sync=True)
    pieces = traitlets.List(traitlets.Unicode()).tag(sync=True)
    num_prompt = traitlets.Int(0).tag(sync=True)
    token_data = binary()
    scale = traitlets.Dict().tag(sync=True)
    routes = traitlets.Dict().tag(sync=True)
    layer_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    num_experts = traitlets.Int(0).tag(sync=True)
    top_k = traitlets.Int(0).tag(sync=True)

    def __init__(
        self, trace: Trace | StoredTrace | None = None, *, decode: Callable[[list[int]], str | None] | None = None
    ):
        """``decode``: token ids to text. A stored trace is read whole."""
        super().__init__()
        self._trace: Trace | None = None
        self._decode = decode
        self._note = ""
        self._shown = TokenValues(np.zeros(0, np.float32), "")
        if trace is None:
            self.say("empty", "No trace yet: call show(trace), for example with moelab.open_trace(path).load().")
        else:
            self.show(trace)

    def show(self, trace: Trace | StoredTrace) -> None:
        """Show a trace, its first request at first."""
        loaded = trace_of(trace)
        self._trace = loaded if loaded.num_tokens else None
        if not loaded.num_tokens:
            self.say("empty", "This trace has no tokens: record some (moelab.record) and show it again.")
            return
        header = loaded.header
        with self.hold_sync():
            self.requests = request_table(loaded).to_dict("records")
            self.layer_names = [str(number) for number in header.model_layer_of_layer]
            self.num_experts, self.top_k = header.num_experts, header.top_k
            self.layer, self.slot, self.expert, self.token = 0, 0, 0, -1
            first = int(self.requests[0]["request"])
            self.request = first
        self._show_request()

    @property
    def values(self) -> np.ndarray:
        """float32 [T]: what colours the tokens, as ``token_values`` gives it."""
        return self._shown.values

    @traitlets.observe("request")
    def _new_request(self, change: Any) -> None:
        if self._trace is not None and change["old"] != -1:
            self.token = -1
            self._show_request()

    def _show_request(self) -> None:
        trace = self._trace
        assert trace is not None
        try:
            rows = rows_of_request(trace, self.request)
        except ValueError as error:
            self.show_error(error)
            return
        shown = rows[:MOST_TOKENS]
        ids = trace.tokens.token_id[shown]
        with self.hold_sync():
            self.pieces = self._text(ids, trace.tokens.position[shown])
            self.num_prompt = int((trace.tokens.phase[shown] == Phase.PREFILL).sum())
        if len(rows) > len(shown):
            self._note = f"The first {len(shown):,} of {len(rows):,} tokens. {self._note}".strip()
        self._colour()

    def _text(self, ids: np.ndarray, positions: np.ndarray) -> list[str]:
        """Text of each token, or its position where there is none: then ``_note`` says why."""
        self._note = ""
        if self._decode is None or (ids == NO_TOKEN_ID).all():
            self._note = "Positions stand for the text: record with keep_text=True and give decode=tokenizer.decode."
            return [f"{position} " for position in positions]
        stream = TextStream(cast(TextCodec, SimpleNamespace(decode=self._decode)))
        try:
            pieces = [stream.push(int(token)) for token in ids]
            if pieces:
                pieces[-1] += stream.rest()
        except Exception as error:  # somebody else's tokenizer: whatever it raises, the routing can still be seen
            self._note = (
                f"Positions stand for the text: decode raised {type(error).__name__} ({error}); give the decode of "
                "this model's tokenizer."
            )
            return [f"{position} " for position in positions]
        return pieces

    @traitlets.observe("by", "layer", "slot", "expert")
    def _colour(self, change: Any = None) -> None:
        if self._trace is None or self.request == -1:
            return
        try:
            shown = token_values(
                self._trace, self.request, self.by, layer=self.layer, slot=self.slot, expert=self.expert
            )
        except ValueError as error:
            self.show_error(error)
            return
        self._shown = shown
        known = shown.values[np.isfinite(shown.values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        with self.hold_sync():
            self.scale = (
                {"kind": "categories", "label": shown.label, "names": list(shown.names)}
                if shown.names
                else {"kind": "continuous", "label": shown.label, "low": low, "high": high}
            )
            self.token_data = shown.values[:MOST_TOKENS].tobytes()
            self._say_ready()

    def _say_ready(self) -> None:
        """Ready, with what there is to know of the request and of its colours."""
        assert self._trace is not None
        has_gates = self.by != "gate weight" or bool(self._trace.gate_weights.any())
        self.say("ready", f"{self._note}{'' if has_gates else ' This trace has no gate weights: all are 0.'}".strip())

    @traitlets.observe("token")
    def _route(self, change: Any) -> None:
        if self._trace is None or self.token < 0:
            self.routes = {}
            if self._trace is not None and self.status == "error":
                self._say_ready()
            return
        try:
            frame = token_routes(self._trace, self.request, self.token)
        except ValueError as error:
            self.routes = {}
            self.show_error(error)
            return
        if self.status == "error":
            self._say_ready()
        of_layer = [frame[frame.layer == int(name)] for name in self.layer_names]
        self.routes = {
            "token": self.token,
            "layers": self.layer_names,
            "experts": [rows.expert.tolist() for rows in of_layer],
            "weights": [rows.gate_weight.astype(float).tolist() for rows in of_layer],
        }

    def summary(self) -> dict[str, Any]:
        """Plain values."""
        if self._trace is None:
            return {"trace": self.message}
        return {
            "model": self._trace.header.model,
            "requests": len(self.requests),
            "shown": f"request {self.request}, {len(self.pieces)} tokens",
            "coloured by": self.scale.get("label", ""),
            "token": "none" if self.token < 0 else self.token,
        }

    def static_html(self) -> str:
        """The request's beginning in its colours, and the token's routes."""
        if self._trace is None:
            return figures_html(self.summary())
        count = min(_IN_A_SAVED_NOTEBOOK, len(self.pieces))
        colours = map_colours(self._shown.values[None, :count], self.scale)[0]
        text = "".join(_span(piece, rgb) for piece, rgb in zip(self.pieces, colours, strict=False))
        more = f" &hellip; ({len(self.pieces) - count} more tokens)" if count < len(self.pieces) else ""
        table = ""
        if self.routes:
            experts = zip(self.routes["layers"], self.routes["experts"], strict=True)
            table = figures_html({f"layer {name}": ", ".join(map(str, ids)) for name, ids in experts})
        return f"{figures_html(self.summary())}<p style='white-space:pre-wrap'>{text}{more}</p>{table}"


def _span(piece: str, rgb: Sequence[int]) -> str:
    """A token on its colour, in black or white, whichever can be read."""
    red, green, blue = (int(each) for each in rgb)
    ink = "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#fff"
    return f"<span style='background:rgb({red},{green},{blue});color:{ink}'>{escape(piece)}</span>"
