"""Cost: the facts' figures, an independent month minute by minute, and that it is monotone and dated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.sizing.cost import CostComparison
from moelab.sizing.prices import HOURS_PER_MONTH, MachineCost, TokenPrices, Traffic

PRICES = TokenPrices(0.95, 4.0, "2026-08", "Cloudflare's price list, by facts section 3", cached_per_million=0.16)
RENT = MachineCost("2026-11", "assumed for the test", per_month=1000.0)
MONEY = st.floats(0.01, 1e4)
SHARE = st.floats(0, 1)


def test_figures_of_the_facts():
    """15 tok/s day and night: 39.5 M tokens, 158 USD; 1,000 USD a month need 95 tok/s, or 56 at three in, one out."""
    one = CostComparison(PRICES, RENT, Traffic(), 15.0)
    assert one.capacity_per_month / 1e6 == pytest.approx(39.5, abs=0.1)
    assert one.api_per_month(one.capacity_per_month) == pytest.approx(158, abs=0.5)
    assert one.break_even_tok_per_s == pytest.approx(95, abs=0.5)
    assert one.break_even_utilisation == pytest.approx(95 / 15, rel=0.01)
    mixed = CostComparison(PRICES, RENT, Traffic(input_share=0.75), 15.0)
    assert mixed.break_even_tok_per_s == pytest.approx(56, abs=0.6)


def test_fifty_million_tokens_of_the_article():
    """47.5 USD all input, 200 all output; 15,000 USD come back in 26 to 6 years."""
    box = MachineCost("2026-11", "assumed for the test", purchase=15000.0, lifetime_months=48)
    for share, price, years in ((1.0, 47.5, 26.3), (0.0, 200.0, 6.25)):
        one = CostComparison(PRICES, box, Traffic(input_share=share), 15.0, prefill_tok_per_s=300)
        assert one.api_per_month(50e6) == pytest.approx(price)
        assert one.payback_months(50e6) / 12 == pytest.approx(years, abs=0.05)
    assert CostComparison(PRICES, RENT, Traffic(), 15.0).payback_months(50e6) is None


@settings(max_examples=60, deadline=None)
@given(MONEY, MONEY, MONEY, SHARE, SHARE, st.floats(0.5, 200), st.floats(10, 2000), st.integers(0, 2**32 - 1))
def test_a_month_counted_token_by_token(price_in, price_out, cached, input_share, cached_share, rate, prefill, seed):
    """Draw tokens one by one: sort each into input, cached or output, add its price, its seconds and its energy."""
    rng = np.random.default_rng(seed)
    num = 2000
    machine = MachineCost("d", "s", purchase=1200, lifetime_months=12, power_watts=900, idle_watts=300,
                          price_per_kwh=0.3, other_per_month=7)  # fmt: skip
    prices = TokenPrices(price_in, price_out, "d", "s", cached_per_million=cached)
    kinds = np.where(
        rng.random(num) < input_share, np.where(rng.random(num) < cached_share, "cached", "input"), "output"
    )
    shares = {kind: float((kinds == kind).mean()) for kind in ("cached", "input", "output")}
    drawn_in = shares["cached"] + shares["input"]
    traffic = Traffic(drawn_in, shares["cached"] / drawn_in if drawn_in else 0.0)
    one = CostComparison(prices, machine, traffic, rate, prefill_tok_per_s=prefill)
    paid = sum({"input": price_in, "cached": cached, "output": price_out}[kind] for kind in kinds) / 1e6
    assert one.api_per_month(num) == pytest.approx(paid)
    seconds = sum({"input": 1 / prefill, "cached": 0.0, "output": 1 / rate}[kind] for kind in kinds)
    assert num * one.token_s == pytest.approx(seconds, abs=1e-9)
    kwh = 0.3 * HOURS_PER_MONTH + 0.6 * seconds / 3600  # idle all month, 600 W more while busy
    assert one.machine_per_month(num) == pytest.approx(100 + 7 + 0.3 * kwh)


@settings(max_examples=100, deadline=None)
@given(MONEY, MONEY, SHARE, SHARE, st.floats(0.5, 200), MONEY, st.floats(1.01, 5))
def test_break_even_is_where_both_cost_the_same(price_in, price_out, input_share, cached_share, rate, rent, factor):
    prices = TokenPrices(price_in, price_out, "d", "s")
    one = CostComparison(prices, MachineCost("d", "s", per_month=rent), Traffic(input_share, cached_share), rate)
    even = one.break_even_tokens_per_month
    assert one.api_per_month(even) == pytest.approx(rent)
    if even <= one.capacity_per_month * (1 - 1e-9):
        assert one.machine_per_month(even) == pytest.approx(one.api_per_month(even))
    dearer = CostComparison(
        TokenPrices(factor * price_in, factor * price_out, "d", "s"), one.machine, one.traffic, rate
    )
    assert dearer.break_even_tokens_per_month == pytest.approx(even / factor)
    faster = CostComparison(prices, one.machine, one.traffic, factor * rate)
    assert faster.break_even_utilisation <= one.break_even_utilisation * (1 + 1e-12)
    at_even = one.break_even_tok_per_s
    if at_even and input_share < 1:
        exact = CostComparison(prices, one.machine, one.traffic, at_even)
        assert exact.break_even_utilisation == pytest.approx(1)


def test_more_tokens_than_a_machine_makes_take_more_machines():
    one = CostComparison(PRICES, RENT, Traffic(), 15.0)
    assert one.machine_per_month(one.capacity_per_month * 2.5) == 3000
    assert one.machine_per_month(0) == 1000


def test_a_token_that_costs_more_power_than_it_saves_never_breaks_even():
    hungry = MachineCost("d", "s", per_month=1.0, power_watts=5000, price_per_kwh=0.4)
    one = CostComparison(TokenPrices(0.1, 0.1, "d", "s"), hungry, Traffic(), 1.0)
    assert one.break_even_tokens_per_month is None
    assert one.to_dict()["machine_can_break_even"] is False


def test_sensitivity_and_curve_name_what_they_changed():
    one = CostComparison(PRICES, RENT, Traffic(0.5), 15.0, tok_per_s_interval=(9.6, 19.0))
    frame = one.sensitivity()
    base = frame[frame["input"] == "as given"].iloc[0]
    doubled = frame[(frame["input"] == "machine") & (frame["times"] == 2)].iloc[0]
    assert doubled["break_even_tokens_per_month"] == pytest.approx(2 * base["break_even_tokens_per_month"])
    ends = frame[frame["input"] == "tok/s, end of its interval"]["tok_per_s"].tolist()
    assert ends == [9.6, 19.0]
    curve = one.curve()
    sign = np.sign(curve["machine_per_month"] - curve["api_per_month"])
    assert sign.iloc[0] > 0
    assert (curve["api_per_month"].diff().dropna() > 0).all()
    assert one.curve([1e6])["utilisation"].iloc[0] == pytest.approx(1e6 / one.capacity_per_month)
    assert "price_date" in one._repr_html_()


def test_prices_without_date_or_source_are_refused():
    with pytest.raises(ValueError, match="date is empty"):
        TokenPrices(1, 1, "", "somewhere")
    with pytest.raises(ValueError, match="source is empty"):
        MachineCost("2026", " ", per_month=1)
    with pytest.raises(ValueError, match="either per_month or purchase"):
        MachineCost("2026", "s")
    with pytest.raises(ValueError, match="lifetime_months: expected with a purchase"):
        MachineCost("2026", "s", purchase=5)
    with pytest.raises(ValueError, match="lifetime_months is 0, expected more than 0"):
        MachineCost("2026", "s", purchase=5, lifetime_months=0)
    with pytest.raises(ValueError, match="idle_watts is 5"):
        MachineCost("2026", "s", per_month=1, idle_watts=5)
    with pytest.raises(ValueError, match=r"input_share is 1\.5, expected 0 or more and at most 1"):
        Traffic(1.5)
    with pytest.raises(ValueError, match="output_per_million is -1"):
        TokenPrices(1, -1, "d", "s")
    with pytest.raises(ValueError, match="tok_per_s is 0, expected more than 0"):
        CostComparison(PRICES, RENT, Traffic(), 0)
