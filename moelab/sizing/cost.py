"""Cost: a price per token against a machine of one's own: break-even, utilisation, sensitivity.  Floor 2.

    API:     tokens x price of the mix (input, cached input, output)
    machine: rent a month, or purchase / lifetime + standing power + what a busy hour adds

Break-even is the volume at which both cost the same; whether the machine can make so many tokens is its utilisation
there. Prices are inputs, each with its date and source, and never stand in this code. One stream of decode is what
`tok_per_s` means; batches come in by passing the rate of the whole batch.

It does not know taxes, staff, discounts, the value of privacy, or what a model is worth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moelab.domain.summary import summary_html, summary_text
from moelab.sizing.prices import (
    SECONDS_PER_MONTH,
    MachineCost,
    TokenPrices,
    Traffic,
    check_number,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CostComparison:
    """An API beside a machine at one mix and one rate. Money in the currency of the prices, volumes in tokens."""

    prices: TokenPrices
    machine: MachineCost
    traffic: Traffic
    tok_per_s: float
    prefill_tok_per_s: float | None = None
    tok_per_s_interval: tuple[float, float] | None = None
    rates_from: str = "given"

    def __post_init__(self) -> None:
        check_number("tok_per_s", self.tok_per_s, above=True)
        check_number("prefill_tok_per_s", self.prefill_tok_per_s, above=True)

    @property
    def token_s(self) -> float:
        """Seconds of the machine for one token of the mix; cached input is free, and so is input without a rate."""
        fresh = self.traffic.input_share * (1 - self.traffic.cached_share)
        return (1 - self.traffic.input_share) / self.tok_per_s + fresh / (self.prefill_tok_per_s or float("inf"))

    @property
    def capacity_per_month(self) -> float:
        """Tokens of the mix that the machine makes when never idle."""
        return SECONDS_PER_MONTH / self.token_s if self.token_s else float("inf")

    def api_per_month(self, tokens: float) -> float:
        check_number("tokens", tokens)
        return tokens * self.prices.per_token(self.traffic)

    def machine_per_month(self, tokens: float) -> float:
        """Cost of a month at this volume, on as many machines as it takes."""
        check_number("tokens", tokens)
        capacity = self.capacity_per_month
        num = max(1, -(-tokens // capacity)) if capacity < float("inf") else 1
        return num * self.machine.standing_per_month + tokens * self.token_s * self.machine.busy_per_s()

    @property
    def break_even_tokens_per_month(self) -> float | None:
        """Volume at which one machine costs what the API does; `None` where each token costs more here than there."""
        saved = self.prices.per_token(self.traffic) - self.token_s * self.machine.busy_per_s()
        return self.machine.standing_per_month / saved if saved > 0 else None

    @property
    def break_even_utilisation(self) -> float | None:
        """Share of the month that the machine must work to break even; above 1 it cannot."""
        tokens = self.break_even_tokens_per_month
        return None if tokens is None else tokens / self.capacity_per_month

    @property
    def break_even_tok_per_s(self) -> float | None:
        """Output rate, day and night, from which a machine that is never idle costs less than the API.

        Prefill takes its share of the time. `None` where no rate does.
        """
        traffic = self.traffic
        fresh_s = traffic.input_share * (1 - traffic.cached_share) / (self.prefill_tok_per_s or float("inf"))
        month = self.machine.standing_per_month + SECONDS_PER_MONTH * self.machine.busy_per_s()
        allowed_s = self.prices.per_token(traffic) * SECONDS_PER_MONTH / month if month else float("inf")
        output_s = allowed_s - fresh_s
        return (1 - traffic.input_share) / output_s if output_s > 0 else None

    def payback_months(self, tokens: float) -> float | None:
        """Months until a purchase has cost less than the API at this volume; `None`: never, or no purchase."""
        if self.machine.purchase is None:
            return None
        running = self.machine.running_per_month + tokens * self.token_s * self.machine.busy_per_s()
        saved = self.api_per_month(tokens) - running
        return self.machine.purchase / saved if saved > 0 else None

    def curve(self, tokens: list[float] | None = None) -> pd.DataFrame:
        """Break-even curve: one row a volume; by default 25 of them around break-even and capacity."""
        import numpy as np
        import pandas as pd

        if tokens is None:
            even = self.break_even_tokens_per_month or 1e8
            capacity = self.capacity_per_month
            ends = [even, capacity if capacity < float("inf") else even]
            tokens = np.geomspace(min(ends) / 10, max(ends) * 10, 25).tolist()
        rows = [
            {
                "tokens_per_month": volume, "api_per_month": self.api_per_month(volume),
                "machine_per_month": self.machine_per_month(volume), "utilisation": volume / self.capacity_per_month,
            }
            for volume in tokens
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def sensitivity(self) -> pd.DataFrame:
        """Break-even when one input is halved or doubled; and at the ends of the interval of the rate, where given."""
        import pandas as pd

        prices, machine = self.prices, self.machine

        def scaled(factor: float) -> dict[str, CostComparison]:
            rent = machine.per_month
            owned = machine.purchase
            cached = prices.cached_per_million
            return {
                "output price": replace(
                    self, prices=replace(prices, output_per_million=prices.output_per_million * factor)
                ),
                "input price": replace(
                    self,
                    prices=replace(
                        prices,
                        input_per_million=prices.input_per_million * factor,
                        cached_per_million=None if cached is None else cached * factor,
                    ),
                ),
                "machine": replace(
                    self,
                    machine=replace(
                        machine,
                        per_month=None if rent is None else rent * factor,
                        purchase=None if owned is None else owned * factor,
                    ),
                ),
                "price of power": replace(self, machine=replace(machine, price_per_kwh=machine.price_per_kwh * factor)),
                "tok/s": replace(self, tok_per_s=self.tok_per_s * factor),
            }

        cases = [("as given", 1.0, self)]
        cases += [(name, factor, one) for factor in (0.5, 2.0) for name, one in scaled(factor).items()]
        for share in (0.0, 0.5, 0.9):
            cases.append(
                (f"input share {share:g}", 1.0, replace(self, traffic=replace(self.traffic, input_share=share)))
            )
        for rate in self.tok_per_s_interval or ():
            cases.append(("tok/s, end of its interval", rate / self.tok_per_s, replace(self, tok_per_s=rate)))
        rows = [
            {
                "input": name, "times": factor, "tok_per_s": one.tok_per_s,
                "break_even_tokens_per_month": one.break_even_tokens_per_month,
                "break_even_utilisation": one.break_even_utilisation, "capacity_per_month": one.capacity_per_month,
            }
            for name, factor, one in cases
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def to_dict(self, tokens: float | None = None) -> dict[str, Any]:
        """What `moelab cost --json` prints."""
        even = self.break_even_utilisation
        fields: dict[str, Any] = {
            "currency": self.prices.currency,
            "price_date": self.prices.date,
            "price_source": self.prices.source,
            "machine_date": self.machine.date,
            "machine_source": self.machine.source,
            "input_share": self.traffic.input_share,
            "cached_share": self.traffic.cached_share,
            "tok_per_s": self.tok_per_s,
            "tok_per_s_interval": None if self.tok_per_s_interval is None else list(self.tok_per_s_interval),
            "rates_from": self.rates_from,
            "prefill": "free: no rate given" if self.prefill_tok_per_s is None else f"{self.prefill_tok_per_s:g} tok/s",
            "price_per_million_of_mix": 1e6 * self.prices.per_token(self.traffic),
            "machine_standing_per_month": self.machine.standing_per_month,
            "machine_busy_per_month": self.machine.standing_per_month + SECONDS_PER_MONTH * self.machine.busy_per_s(),
            "capacity_tokens_per_month": self.capacity_per_month,
            "break_even_tokens_per_month": self.break_even_tokens_per_month,
            "break_even_utilisation": even,
            "break_even_tok_per_s": self.break_even_tok_per_s,
            "machine_can_break_even": even is not None and even <= 1,
        }
        if tokens is not None:
            fields |= {
                "tokens_per_month": tokens,
                "api_per_month": self.api_per_month(tokens),
                "machine_per_month": self.machine_per_month(tokens),
                "utilisation": tokens / self.capacity_per_month,
                "payback_months": self.payback_months(tokens),
            }
        return fields

    def __repr__(self) -> str:
        return summary_text("CostComparison", self.to_dict())

    def _repr_html_(self) -> str:
        return summary_html("CostComparison", self.to_dict())
