"""sizing_calculator: does a model fit a machine and how fast does it run there, as a form.  Floor 6.

Plain twin: ``moelab.size(model, machine, format=..., context=..., ...)`` gives the same numbers (``sizing``), and
``moelab.plots.speed_curve(sizing)`` the same picture. Computes nothing itself.
"""

from __future__ import annotations

from typing import Any

from moelab.domain import machine_presets
from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec, presets
from moelab.sizing import RECIPES, Sizing, size
from moelab.sizing.places import LAYOUTS
from moelab.widgets.calculator import Calculator, Control
from moelab.widgets.chart import Chart, chart_of

KV_FORMATS = ("bf16", "float16", "fp8", "fp8_g128", "Q8_0", "Q4_0")


class SizingCalculator(Calculator):
    """``SizingCalculator("kimi-k2.6", "forge-moe-gen4")``; ``model`` and ``machine`` are presets or documents of yours.

    Inputs (trait ``inputs``): ``model``, ``machine``, ``format``, ``context`` (tokens), ``batch``, ``kv_format``,
    ``layout``, ``routed_fast_gb`` (GB of experts on GPUs; ``None``: only what RAM lacks), ``disk_gb_per_s``.
    ``sizing``: the answer, ``None`` while there is none. Other traits as ``Calculator``.
    """

    def __init__(self, model: ModelSpec | str = "kimi-k2.6", machine: Machine | str = "forge-moe-gen4", **inputs: Any):
        """`inputs`: first values by name. ValueError for an unknown name."""
        super().__init__()
        self.sizing: Sizing | None = None
        self._models: dict[str, ModelSpec | str] = {name: name for name in presets()}
        self._machines: dict[str, Machine | str] = {name: name for name in machine_presets.names()}
        if not isinstance(model, str):
            self._models[str(model.name or "yours")] = model
        # A preset with a GPU beside it is no name of the list; an unknown one says so when it is asked for.
        self._machines[machine if isinstance(machine, str) else machine.name] = machine
        self.controls = _controls(list(self._models), list(self._machines))
        start = {control["name"]: control.get("value") for control in self.controls}
        start["model"] = model if isinstance(model, str) else str(model.name or "yours")
        start["machine"] = machine if isinstance(machine, str) else machine.name
        unknown = sorted(set(inputs) - set(start))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: expected one of {', '.join(start)}")
        self.inputs = start | inputs

    def answer(self, inputs: dict[str, Any]) -> tuple[str, str, dict[str, Any], Chart | None]:
        """See ``Calculator``; the plain call is ``moelab.size``."""
        from moelab import plots

        self.sizing = None
        options = {name: inputs[name] for name in ("format", "context", "batch", "kv_format", "layout")}
        if inputs["routed_fast_gb"] is not None:
            options["routed_fast_bytes"] = int(inputs["routed_fast_gb"] * 1e9)
        if inputs["disk_gb_per_s"] is not None:
            options["disk_gb_per_s"] = float(inputs["disk_gb_per_s"])
        sizing = size(self._models[inputs["model"]], self._machines[inputs["machine"]], **options)
        self.sizing = sizing
        said = ", ".join(f"{name}={value!r}" for name, value in options.items())
        # A document of one's own is no name that the call could be given.
        model = f'"{inputs["model"]}"' if isinstance(self._models[inputs["model"]], str) else "model"
        machine = f'"{inputs["machine"]}"' if isinstance(self._machines[inputs["machine"]], str) else "machine"
        call = f"moelab.size({model}, {machine}, {said})"
        if sizing.prediction is None:
            headline = "fits; no prediction, a ceiling only" if sizing.places.fits else "does not fit"
            return headline, call, sizing.summary(), None
        low, high = sizing.prediction.interval_tok_per_s
        headline = f"{sizing.prediction.tok_per_s:.1f} tok/s predicted ({low:.1f} to {high:.1f})"
        if sizing.batch > 1:  # what was published, and so the picture, is of one stream
            return f"{headline}, {sizing.batch} streams together", call, sizing.summary(), None
        return headline, call, sizing.summary(), chart_of(plots.speed_curve(sizing))


def _controls(models: list[str], machines: list[str]) -> list[Control]:
    return [
        {"name": "model", "label": "model", "kind": "select", "options": models},
        {"name": "machine", "label": "machine", "kind": "select", "options": machines},
        {"name": "format", "label": "weights", "kind": "select", "options": list(RECIPES), "value": "native"},
        {"name": "context", "label": "context", "kind": "number", "low": 0, "high": 1_048_576, "step": 1024,
         "unit": "tokens", "value": 8192},
        {"name": "batch", "label": "batch", "kind": "range", "low": 1, "high": 64, "step": 1, "unit": "sequences",
         "value": 1},
        {"name": "kv_format", "label": "cache", "kind": "select", "options": list(KV_FORMATS), "value": "bf16"},
        {"name": "layout", "label": "experts over nodes", "kind": "select", "options": list(LAYOUTS), "value": "split"},
        {"name": "routed_fast_gb", "label": "experts on GPUs", "kind": "number", "low": 0, "high": 10_000, "step": 1,
         "unit": "GB", "optional": True, "hint": "only what RAM lacks"},
        {"name": "disk_gb_per_s", "label": "disk", "kind": "number", "low": 0, "high": 1000, "step": 0.5,
         "unit": "GB/s", "optional": True, "hint": "no streaming"},
    ]  # fmt: skip
