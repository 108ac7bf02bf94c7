"""bench nll: the lossy rows on a few prompts; the first is exact, the costs are of the same tokens."""

import json

import pytest
import torch

from moelab import Lossy, load, shipped
from moelab.bench.nll import lossy_rows


def test_lossy_rows_stand_beside_the_exact_one():
    with open(shipped("nano/prompts.jsonl"), encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for line in file][::60]
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
