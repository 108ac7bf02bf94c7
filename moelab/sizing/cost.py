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

if TYPE_CHECKING:
    import pandas as pd

HOURS_PER_MONTH = 365.25 * 24 / 12
SECONDS_PER_MONTH = 3600 * HOURS_PER_MONTH


def _check(name: str, value: float | None, low: float = 0.0, high: float = float("inf"), above: bool = False) -> None:
    if value is not None and not (low < value <= high if above else low <= value <= high):
        bound = f"more than {low:g}" if above else f"{low:g} or more"
        raise ValueError(f"{name} is {value}, expected {bound}" + (f" and at most {high:g}" if high < 1e300 else ""))


def _check_text(**texts: str) -> None:
    for name, text in texts.items():
        if not text.strip():
            raise ValueError(f"{name} is empty, expected when and where the price was read: prices change")


@dataclass(frozen=True)
class TokenPrices:
    """Prices of an API per million tokens. `cached_per_million`: input that the API has cached, `None`: no discount."""

    input_per_million: float
    output_per_million: float
    date: str
    source: str
    cached_per_million: float | None = None
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("input_per_million", "output_per_million", "cached_per_million"):
            _check(name, getattr(self, name))
        _check_text(date=self.date, source=self.source)

    def per_token(self, traffic: Traffic) -> float:
        """Price of one token of the mix, in `currency`."""
        cached = self.input_per_million if self.cached_per_million is None else self.cached_per_million
        fresh_share = traffic.input_share * (1 - traffic.cached_share)
        cached_share = traffic.input_share * traffic.cached_share
        output_share = 1 - traffic.input_share
        total = fresh_share * self.input_per_million + cached_share * cached + output_share * self.output_per_million
        return total / 1e6


@dataclass(frozen=True)
class Traffic:
    """The mix: share of input among all tokens, and share of that input that is cached."""

    input_share: float = 0.0
    cached_share: float = 0.0

    def __post_init__(self) -> None:
        _check("input_share", self.input_share, 0, 1)
        _check("cached_share", self.cached_share, 0, 1)


@dataclass(frozen=True)
class MachineCost:
    """A rent per month, or a purchase over its lifetime with power. `power_watts` while busy, `idle_watts` else."""

    date: str
    source: str
    per_month: float | None = None
    purchase: float | None = None
    lifetime_months: float | None = None
    power_watts: float = 0.0
    idle_watts: float = 0.0
    price_per_kwh: float = 0.0
    other_per_month: float = 0.0

    def __post_init__(self) -> None:
        _check_text(date=self.date, source=self.source)
        if (self.per_month is None) == (self.purchase is None):
            raise ValueError("machine cost: expected either per_month or purchase, got both or neither")
        if (self.purchase is None) != (self.lifetime_months is None):
            raise ValueError("lifetime_months: expected with a purchase and only with one")
        for name in ("per_month", "purchase", "power_watts", "idle_watts", "price_per_kwh", "other_per_month"):
            _check(name, getattr(self, name))
        _check("lifetime_months", self.lifetime_months, above=True)
        if self.idle_watts > self.power_watts:
            raise ValueError(f"idle_watts is {self.idle_watts}, expected at most power_watts = {self.power_watts}")

    @property
    def running_per_month(self) -> float:
        """What an idle month costs beside the purchase."""
        return (self.per_month or 0.0) + self.other_per_month + self._energy(self.idle_watts, HOURS_PER_MONTH)

    @property
    def standing_per_month(self) -> float:
        """What an idle month costs, the purchase spread over its lifetime."""
        return self.running_per_month + (self.purchase or 0.0) / (self.lifetime_months or 1.0)

    def busy_per_s(self) -> float:
        """What a busy second adds to an idle one."""
        return self._energy(self.power_watts - self.idle_watts, 1 / 3600)

    def _energy(self, watts: float, hours: float) -> float:
        return watts / 1000 * hours * self.price_per_kwh


@dataclass(frozen=True)
class CostComparison:
    """An API beside a machine at one mix and one rate. Money in the currency of the prices, volumes in tokens."""

    prices: TokenPrices
    machine: MachineCost
    traffic: Traffic
    tok_per_s: float
    prefill_tok_per_s: float | None = None
    tok_per_s_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check("tok_per_s", self.tok_per_s, above=True)
        _check("prefill_tok_per_s", self.prefill_tok_per_s, above=True)

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
        _check("tokens", tokens)
        return tokens * self.prices.per_token(self.traffic)

    def machine_per_month(self, tokens: float) -> float:
        """Cost of a month at this volume, on as many machines as it takes."""
        _check("tokens", tokens)
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
