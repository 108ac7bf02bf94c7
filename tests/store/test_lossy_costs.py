"""lossy_costs: the shipped table is that of `bench nll`; other settings and other models have no figure."""

import json

import pytest

from moelab import Lossy, shipped
from moelab.bench.nll import LOSSY_MODES
from moelab.store.lossy_costs import with_cost


def _rows():
    with open(shipped("nano/lossy_nll.json"), encoding="utf-8") as file:
        return {row["lossy"]: row for row in json.load(file)["rows"]}


@pytest.mark.parametrize("lossy", LOSSY_MODES[1:], ids=str)
def test_every_measured_mode_carries_its_row(lossy):
    row = _rows()[str(lossy)]
    said = with_cost(lossy, "nano")
    assert said.startswith(f"{lossy}; cost {row['cost']:+.4f} nats a token ({row['cost_interval'][0]:+.4f} to ")
    assert f"on {row['num_tokens']:,} held-out tokens" in said
    assert "LRU, 25% of the experts" in said
    assert row["cost_interval"][0] <= row["cost"] <= row["cost_interval"][1]
    assert row["num_tokens"] > 5000


def test_what_was_not_measured_has_no_figure():
    said = with_cost(Lossy(cache_bias=0.15), "nano")
    assert "cost in NLL not known: measured are lossy in decode: " in said
    assert "bias 0.1, " in said
    assert "nats" not in said
    other = with_cost(Lossy(cache_bias=0.1), "kimi-k2.6")
    assert "cost in NLL not known: nothing was measured on kimi-k2.6" in other
    assert "nats" not in other


def test_an_exact_engine_has_no_cost():
    assert with_cost(Lossy(), "nano") == "exact"
