"""Prices: of an API per token, of a machine per month, and the mix of tokens; each with its date and source.  Floor 2.

Prices are inputs and never stand in this code. It does not know taxes, staff, discounts, or how prices move.
"""

from __future__ import annotations

from dataclasses import dataclass

HOURS_PER_MONTH = 365.25 * 24 / 12
SECONDS_PER_MONTH = 3600 * HOURS_PER_MONTH


def check_number(
    name: str, value: float | None, low: float = 0.0, high: float = float("inf"), above: bool = False
) -> None:
    """ValueError by name for a number out of its bounds; `None` passes."""
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
            check_number(name, getattr(self, name))
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
        check_number("input_share", self.input_share, 0, 1)
        check_number("cached_share", self.cached_share, 0, 1)


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
            check_number(name, getattr(self, name))
        check_number("lifetime_months", self.lifetime_months, above=True)
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
