"""expert_map: values of every expert of every layer on a canvas, and which experts are chosen.  Floor 6.

Shows what it is given: the plain twin of a map is the array itself (``values``). Choosing is by click, by a box, by
keys, or from Python (``choose``). Everything of one map crosses to the browser as one binary trait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import traitlets

from moelab.widgets.module import module_text
from moelab.widgets.static_picture import map_html
from moelab.widgets.widget import Widget, binary, figures_html

PINNED, EDITED = 1, 2
"""Bits of ``marks``: a ring on the cell."""


class ExpertMap(Widget):
    """A map layer x expert; ``values`` float [L, E], NaN where nothing is known.

    Traits: ``num_layers``, ``num_experts``; ``map_data`` (bytes: float32 values [L, E] by place, uint16 expert at each
    place [L, E], uint8 marks [L, E] by place); ``scale`` (``{"kind": "continuous", "label", "low", "high"}`` or
    ``{"kind": "categories", "label", "names"}``, then values are indices of the names); ``layer_names`` (L texts);
    ``selection`` (bytes: uint8 [L, E] by expert, 1: chosen; the browser writes it too); ``num_selected``.
    """

    _esm = module_text("map_picture.js", "expert_map.js", "expert_map_widget.js")

    num_layers = traitlets.Int(0).tag(sync=True)
    num_experts = traitlets.Int(0).tag(sync=True)
    map_data = binary()
    scale = traitlets.Dict(default_value={"kind": "continuous", "label": "", "low": 0, "high": 1}).tag(sync=True)
    layer_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    selection = binary()
    num_selected = traitlets.Int(0).tag(sync=True)

    def __init__(self, values: Any = None, *, label: str = "value", names: Sequence[str] | None = None, **kwargs: Any):
        """``names``: of categories, then ``values`` are their indices; else a continuous scale called ``label``."""
        super().__init__(**kwargs)
        self._values = np.zeros((0, 0), np.float32)
        if values is None:
            self.say("empty", "No values yet: call show(values) with an array of layers x experts.")
        else:
            self.show(values, label=label, names=names)

    @property
    def values(self) -> np.ndarray:
        """float32 [L, E]: what is shown, by expert."""
        return self._values

    @property
    def chosen(self) -> np.ndarray:
        """bool [L, E]: the experts that are chosen."""
        if not self.selection:
            return np.zeros(self._values.shape, bool)
        return np.frombuffer(self.selection, np.uint8).reshape(self._values.shape) > 0

    def choose(self, mask: Any) -> None:
        """Choose the experts of bool [L, E]; raises ``ValueError`` for another shape."""
        mask = np.asarray(mask, bool)
        if mask.shape != self._values.shape:
            raise ValueError(f"mask is {mask.shape}, expected layers x experts {self._values.shape} as the map shows")
        self.selection = mask.astype(np.uint8).tobytes()

    def show(
        self,
        values: Any,
        *,
        label: str = "value",
        names: Sequence[str] | None = None,
        limits: tuple[float, float] | None = None,
        order: np.ndarray | None = None,
        marks: np.ndarray | None = None,
        layer_names: Sequence[str] | None = None,
    ) -> None:
        """Show ``values`` [L, E]; ``order`` int [L, E]: the expert at each place of a layer (default: by id).

        ``marks`` uint8 [L, E] by expert (``PINNED``, ``EDITED``); ``limits`` of the scale (default: of the values).
        Raises ``ValueError`` where shapes differ.
        """
        values = np.asarray(values, np.float32)
        if values.ndim != 2 or not values.size:
            raise ValueError(f"values are {values.shape}, expected [layers, experts], at least one of each")
        order = np.tile(np.arange(values.shape[1]), (len(values), 1)) if order is None else np.asarray(order)
        marks = np.zeros(values.shape, np.uint8) if marks is None else np.asarray(marks, np.uint8)
        for name, array in (("order", order), ("marks", marks)):
            if array.shape != values.shape:
                raise ValueError(f"{name} is {array.shape}, expected that of values: {values.shape}")
        at_place = [np.take_along_axis(array, order, 1) for array in (values, marks)]
        is_new_shape = values.shape != self._values.shape
        self._values = values
        with self.hold_sync():
            self.num_layers, self.num_experts = values.shape
            self.layer_names = [str(name) for name in layer_names or range(len(values))]
            if is_new_shape:
                self.selection = bytes(values.size)
            self.scale = _scale(values, label, names, limits)
            self.map_data = at_place[0].tobytes() + order.astype(np.uint16).tobytes() + at_place[1].tobytes()
            self.say("ready")

    @traitlets.observe("selection")
    def _count(self, change: Any) -> None:
        self.num_selected = int(np.frombuffer(self.selection, np.uint8).astype(bool).sum()) if self.selection else 0

    def summary(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "shape": f"{self.num_layers} layers x {self.num_experts} experts",
            "shows": self.scale["label"] or "nothing",
            "chosen": self.num_selected,
        }

    def static_html(self) -> str:
        """The map as a picture."""
        if not self._values.size:
            return figures_html({"map": self.message})
        return map_html(self._values, self.scale, str(self.scale["label"]))


def _scale(
    values: np.ndarray, label: str, names: Sequence[str] | None, limits: tuple[float, float] | None
) -> dict[str, Any]:
    if names is not None:
        return {"kind": "categories", "label": label, "names": [str(name) for name in names]}
    known = values[np.isfinite(values)]
    low, high = limits or ((float(known.min()), float(known.max())) if known.size else (0.0, 1.0))
    return {"kind": "continuous", "label": label, "low": float(low), "high": float(high)}
