"""The table of AMX on paper: counts by hand, the tokens of an expert, and the command."""

import json

import numpy as np
import pytest

from moelab.cli import main
from moelab.cost_model.amx_on_paper import binomial, layer_step, tile_cycles

SHAPE = {"hidden_size": 64, "intermediate_size": 32, "num_experts": 4, "top_k": 2, "expert_bytes": 3456}
MACHINE = {"num_cores": 2, "clock_ghz": 1.0, "read_gb_per_s": 10.0}


def test_tokens_of_an_expert_are_binomial():
    from scipy.stats import binom

    for num_tokens, probability in ((1, 0.5), (7, 0.02), (400, 8 / 384)):
        expected = binom.pmf(np.arange(num_tokens + 1), num_tokens, probability)
        np.testing.assert_allclose(binomial(num_tokens, probability), expected, rtol=1e-9, atol=1e-300)


def test_cycles_of_a_group_by_hand():
    unit, ports, vector = tile_cycles(np.array([0, 1, 16, 17, 33]), "int8")
    assert unit.tolist() == [0, 16, 16, 32, 48]
    assert ports[1] == 8 + 4 + 16 + 8  # weights, half of the activations, sums stored, eight expanded lines
    assert ports[3] == 8 + 8 + 32 + 8
    assert vector.tolist() == [0, (12 + 5) / 2, (12 + 80) / 2, (12 + 85) / 2, (24 + 165) / 2]
    unit, ports, vector = tile_cycles(np.array([1, 16]), "bf16")
    assert ports[0] == ports[1] == 8 + 4 + 16
    assert vector[0] == vector[1] == 160


def test_one_token_by_hand():
    """Two experts of four, each 12 rows of tiles by groups of gate, up and down: 2 x 2 x 2 and 4 x 1."""
    step = layer_step(1, **SHAPE, **MACHINE, mode="int8")
    assert step.tokens_per_expert == 1
    assert step.read_ms == pytest.approx(2 * 3456 / 10e9 * 1e3)
    of_one = 12 / (2 * 1e9) * 1e3
    assert step.amx_best_ms == pytest.approx(2 * of_one * (8 + 4 + 16 + 8))
    assert step.amx_worst_ms == pytest.approx(2 * of_one * (16 + 36 + 8.5))
    assert step.avx512_ms == pytest.approx(2 * of_one * (12 + 12) / 2)
    assert layer_step(1, **SHAPE, **MACHINE, mode="bf16").avx512_ms is None
    with pytest.raises(ValueError, match="0 < K < E"):
        layer_step(1, **{**SHAPE, "top_k": 4}, **MACHINE, mode="int8")


def test_many_tokens_cost_in_proportion():
    steps = [layer_step(batch, **SHAPE, **MACHINE, mode="int8") for batch in (4000, 8000)]
    assert steps[1].amx_best_ms / steps[0].amx_best_ms == pytest.approx(2, rel=0.01)
    assert steps[1].read_ms == pytest.approx(steps[0].read_ms)


def test_command_prints_a_table_that_says_calculated(capsys):
    assert main(["bench", "amx_on_paper", "--json"]) in (None, 0)
    document = json.loads(capsys.readouterr().out)
    assert document["title"].startswith("CALCULATED")
    assert {row["source"] for row in document["rows"]} == {"calculated"}
    assert {row["machine"] for row in document["rows"]} == {"2x-xeon-gen4-ddr5-4800", "2x-xeon-gen6-mrdimm-8800"}
    for row in document["rows"]:
        assert row["amx_best_ms"] <= row["amx_worst_ms"]
        assert row["amx_expected_ms"] == max(row["read_ms"], row["amx_best_ms"])
