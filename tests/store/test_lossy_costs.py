"""lossy_costs: the shipped table is that of `bench nll`; other settings are told as others, other models have none."""

import json
from dataclasses import replace

import pytest

from moelab import Lossy, open_trace, shipped
from moelab.bench.nll import LOSSY_MODES
from moelab.planner import empty
from moelab.store.lossy_costs import LossyRun, tier_of, with_cost

MEASURED = LossyRun("nano", 6, 48, "lru", 12, "int8", "bfloat16")


def _rows():
    with open(shipped("nano/lossy_nll.json"), encoding="utf-8") as file:
        return {row["lossy"]: row for row in json.load(file)["rows"]}


@pytest.mark.parametrize("lossy", LOSSY_MODES[1:], ids=str)
def test_every_measured_mode_carries_its_row(lossy):
    row = _rows()[str(lossy)]
    said = with_cost(lossy, MEASURED)
    assert said.startswith(f"{lossy}; cost {row['cost']:+.4f} nats a token ({row['cost_interval'][0]:+.4f} to ")
    assert f"on {row['num_tokens']:,} held-out tokens" in said
    assert "lru, 25% of the experts" in said
    assert row["cost_interval"][0] <= row["cost"] <= row["cost_interval"][1]
    assert row["num_tokens"] > 5000
    unsaid = replace(MEASURED, activation=None, dense_dtype=None)  # a trace
    assert with_cost(lossy, unsaid) == said


def test_another_tier_is_no_measurement_of_this_one():
    biased, deferred = Lossy(cache_bias=0.1), Lossy(num_deferred=1)
    for other, words in (
        (replace(MEASURED, policy="fifo"), "policy lru there, fifo here"),
        (replace(MEASURED, slots_per_layer=2), "slots per layer 12 there, 2 here"),
        (replace(MEASURED, policy=None, slots_per_layer=None), "policy lru there, None here; slots per layer 12"),
    ):
        said = with_cost(biased, other)
        assert f"cost in NLL not known here ({words}" in said
        assert "elsewhere -0.0001 nats" in said
        assert "not known" not in with_cost(deferred, other), "deferral does not look at the tier"
    assert "activation int8 there, bf16 here" in with_cost(deferred, replace(MEASURED, activation="bf16"))


def test_what_was_not_measured_has_no_figure():
    said = with_cost(Lossy(cache_bias=0.15), MEASURED)
    assert "cost in NLL not known: measured are lossy in decode: " in said
    assert "bias 0.1, " in said
    assert "nats" not in said
    for other in (replace(MEASURED, model="kimi-k2.6"), replace(MEASURED, num_experts=47)):
        said = with_cost(Lossy(cache_bias=0.1), other)
        assert f"cost in NLL not known: nothing was measured on {other.model}" in said
        assert "nats" not in said


def test_an_exact_engine_has_no_cost():
    assert with_cost(Lossy(), MEASURED) == "exact"


def test_the_tier_of_a_plan():
    header = open_trace(shipped("nano/capture")).load(slice(0, 9)).header
    assert tier_of(empty(header, slots_per_layer=12, policy="lru")) == {"policy": "lru", "slots_per_layer": 12}
    assert tier_of(empty(header, slots=100, policy="lru")) == {"policy": "lru", "slots_per_layer": None}
    assert tier_of(None) == {}
