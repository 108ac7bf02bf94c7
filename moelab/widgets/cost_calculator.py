"""cost_calculator: an API's prices beside a machine of one's own, as a form.  Floor 6.

Plain twin: ``CostComparison(TokenPrices(...), MachineCost(...), Traffic(...), tok_per_s)`` gives the same numbers
(``comparison``), ``moelab.plots.break_even(comparison)`` the same picture. No price stands in this code: each is an
input with its date and source, and the form is empty until they are given.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from moelab.sizing import CostComparison, MachineCost, Sizing, TokenPrices, Traffic
from moelab.widgets.calculator import Calculator, Control
from moelab.widgets.chart import Chart, chart_of

RENT, PURCHASE = "rent", "purchase"


class CostCalculator(Calculator):
    """``CostCalculator(sizing)`` takes the predicted rate and its interval of ``moelab.size``; or give ``tok_per_s``.

    Inputs (trait ``inputs``) are the fields of ``TokenPrices``, ``MachineCost`` and ``Traffic`` under their own names,
    those of the machine's source and date with ``machine_`` before; ``ownership``: ``rent`` or ``purchase``;
    ``tok_per_s``, ``prefill_tok_per_s``, ``tokens_per_month``. ``comparison``: the answer, ``None`` without one.
    """

    def __init__(self, sizing: Sizing | None = None, **inputs: Any):
        """`inputs`: first values by name. ValueError for an unknown name, or a sizing without a prediction."""
        super().__init__()
        self.comparison: CostComparison | None = None
        self._interval: tuple[float, float] | None = None
        self.controls = _controls()
        start = {control["name"]: control.get("value") for control in self.controls}
        if sizing is not None:
            if sizing.prediction is None:
                raise ValueError(
                    f"{sizing.machine.name}: no rate is predicted ({'; '.join(sizing.places.lacks) or 'all on GPUs'}), "
                    "expected a sizing with a prediction: give tok_per_s instead"
                )
            start["tok_per_s"] = sizing.prediction.tok_per_s
            self._interval = sizing.prediction.interval_tok_per_s
            self._rate = sizing.prediction.tok_per_s
        unknown = sorted(set(inputs) - set(start))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: expected one of {', '.join(start)}")
        self.inputs = start | inputs

    def answer(self, inputs: dict[str, Any]) -> tuple[str, str, dict[str, Any], Chart | None]:
        """See ``Calculator``; the plain call is ``CostComparison``."""
        from moelab import plots

        self.comparison = None
        prices = TokenPrices(
            inputs["input_per_million"], inputs["output_per_million"], inputs["date"], inputs["source"],
            cached_per_million=inputs["cached_per_million"], currency=inputs["currency"],
        )  # fmt: skip
        is_rent = inputs["ownership"] == RENT
        machine = MachineCost(
            inputs["machine_date"], inputs["machine_source"],
            per_month=inputs["per_month"] if is_rent else None,
            purchase=None if is_rent else inputs["purchase"],
            lifetime_months=None if is_rent else inputs["lifetime_months"],
            **{name: inputs[name] or 0.0 for name in ("power_watts", "idle_watts", "price_per_kwh", "other_per_month")},
        )  # fmt: skip
        traffic = Traffic(inputs["input_share"], inputs["cached_share"])
        interval = self._interval if self._interval and inputs["tok_per_s"] == self._rate else None
        one = CostComparison(
            prices, machine, traffic, inputs["tok_per_s"], prefill_tok_per_s=inputs["prefill_tok_per_s"],
            tok_per_s_interval=interval,
        )  # fmt: skip
        self.comparison = one
        even, share = one.break_even_tokens_per_month, one.break_even_utilisation
        if even is None or share is None:
            headline = "never breaks even: each token costs more here than there"
        else:
            can = "reachable" if share <= 1 else "out of reach for one machine"
            headline = f"break-even at {even / 1e6:,.1f} million tokens a month, {share:.0%} of what it makes: {can}"
        said = ", ".join(_say(part) for part in (prices, machine, traffic))
        rates = {"prefill_tok_per_s": inputs["prefill_tok_per_s"], "tok_per_s_interval": interval}
        more = "".join(f", {name}={value!r}" for name, value in rates.items() if value is not None)
        call = f"CostComparison({said}, {inputs['tok_per_s']!r}{more})"
        rows = {name.replace("_", " "): _text(value) for name, value in one.to_dict(inputs["tokens_per_month"]).items()}
        return headline, call, rows, chart_of(plots.break_even(one))


def _say(part: Any) -> str:
    """A dataclass as the call that makes it, fields with their default left out."""
    given = [f"{f.name}={getattr(part, f.name)!r}" for f in fields(part) if getattr(part, f.name) != f.default]
    return f"{type(part).__name__}({', '.join(given)})"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, list):
        return " to ".join(_text(each) for each in value)
    return "none" if value is None else str(value)


def _controls() -> list[Control]:
    def money(name: str, label: str, unit: str, **more: Any) -> Control:
        return {
            "name": name,
            "label": label,
            "kind": "number",
            "low": 0,
            "high": 1e9,
            "step": 0.01,
            "unit": unit,
        } | more

    optional = {"optional": True}
    return [
        money("input_per_million", "input", "a million", group="prices of the API"),
        money("cached_per_million", "cached input", "a million", hint="as input", **optional),
        money("output_per_million", "output", "a million"),
        {"name": "currency", "label": "currency", "kind": "text", "value": "USD"},
        {"name": "date", "label": "read on", "kind": "text"},
        {"name": "source", "label": "source", "kind": "text"},
        {"name": "ownership", "label": "machine", "kind": "select", "options": [RENT, PURCHASE], "value": RENT,
         "group": "cost of the machine"},
        money("per_month", "rent", "a month", only={"ownership": RENT}, **optional),
        money("purchase", "purchase", "", only={"ownership": PURCHASE}, **optional),
        money("lifetime_months", "lifetime", "months", step=1, value=48, only={"ownership": PURCHASE}, **optional),
        money("power_watts", "busy", "W", step=10, **optional),
        money("idle_watts", "idle", "W", step=10, **optional),
        money("price_per_kwh", "power", "a kWh", **optional),
        money("other_per_month", "rack, network", "a month", **optional),
        {"name": "machine_date", "label": "read on", "kind": "text"},
        {"name": "machine_source", "label": "source", "kind": "text"},
        money("tok_per_s", "output", "tok/s", step=0.1, group="traffic"),
        money("prefill_tok_per_s", "input", "tok/s", step=1, hint="free", **optional),
        {"name": "input_share", "label": "input share", "kind": "range", "low": 0, "high": 1, "step": 0.01,
         "value": 0.75},
        {"name": "cached_share", "label": "cached share", "kind": "range", "low": 0, "high": 1, "step": 0.01,
         "value": 0.0},
        money("tokens_per_month", "at a volume of", "tokens a month", step=1e6, high=1e15, **optional),
    ]  # fmt: skip
