"""bench nll: rows of arithmetic and lossy ones on a few prompts; the first is exact, costs are of the same tokens.

The NLL of the first is computed again from the engine's logits by torch.
"""

import json

import pytest
import torch

from moelab import Lossy, load, shipped
from moelab.bench.nll import MODES, arithmetic_rows, lossy_rows
from moelab.kernels.native import library
from tests.kernels.random_experts import carried_as


@pytest.fixture
def prompts():
    with open(shipped("nano/prompts.jsonl"), encoding="utf-8") as file:
        return [json.loads(line)["prompt"] for line in file][::60]


def test_rows_of_arithmetic_stand_beside_float32(prompts):
    """Seen on 412 tokens: linear layers in int4 cost 0.044 nats, all others less than 0.006 either way."""
    rows = arithmetic_rows(prompts)
    modes = [mode for mode in MODES if library()[0] is not None or mode[2] == "torch"]
    assert [(row.activation, row.dense_dtype, row.dense_weights) for row in rows] == modes
    with load(
        shipped("nano/model"), device="cpu", activation="f32", dense_dtype="float32", dense_weights="torch"
    ) as engine:
        isa = engine.isa
        tokens = [engine.codec.encode(prompt) for prompt in prompts]
        losses = [
            torch.nn.functional.cross_entropy(engine.forward(ids[:-1]), torch.tensor(ids[1:]), reduction="sum")
            for ids in tokens
        ]
    num_tokens = sum(len(ids) - 1 for ids in tokens)
    assert rows[0].nll == pytest.approx(float(sum(losses)) / num_tokens, abs=1e-5)
    assert (rows[0].cost, rows[0].cost_interval) == (0, (0, 0))
    assert len({row.nll for row in rows}) == len(rows)  # no mode is another one by a wrong name
    for row in rows:
        assert (row.lossy, row.num_tokens, row.policy, row.misses_per_layer_step) == ("exact", num_tokens, None, None)
        assert row.carried == carried_as(isa, "int4_g32", row.activation)  # as nano's experts are
        assert row.nll - rows[0].nll == pytest.approx(row.cost)
        assert row.cost_interval[0] <= row.cost <= row.cost_interval[1]
        assert 0.02 < row.cost < 0.1 if row.dense_weights == "int4" else abs(row.cost) < 0.015


def test_lossy_rows_stand_beside_the_exact_one(prompts):
    modes = (Lossy(), Lossy(cache_bias=2.0, num_protected=0), Lossy(num_deferred=4))
    exact, biased, deferred = lossy_rows(prompts, modes)
    with load(shipped("nano/model"), device="cpu") as engine:
        tokens = [engine.codec.encode(prompt) for prompt in prompts]
        losses = [
            torch.nn.functional.cross_entropy(engine.forward(ids[:-1]), torch.tensor(ids[1:]), reduction="sum")
            for ids in tokens
        ]
    assert exact.num_tokens == sum(len(ids) - 1 for ids in tokens) == biased.num_tokens
    assert exact.nll == pytest.approx(float(sum(losses)) / exact.num_tokens, abs=0.02)  # prefill has other kernels
    assert (exact.lossy, exact.cost, exact.cost_interval) == ("exact", 0, (0, 0))
    for row in (biased, deferred):
        assert row.lossy.startswith("lossy in decode: ")
        assert row.nll - exact.nll == pytest.approx(row.cost)
        assert row.cost_interval[0] <= row.cost <= row.cost_interval[1]
    assert deferred.cost > 0.01
    assert biased.misses_per_layer_step < 0.1 < exact.misses_per_layer_step
