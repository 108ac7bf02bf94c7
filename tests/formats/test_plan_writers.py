"""Plans written for other engines and read back: the same experts in the same places, or refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moelab import PLANNERS
from moelab.domain.plan import PolicyChoice
from moelab.formats import eplb_table, ktransformers_statistics
from tests.seeded_traces import seeded_trace


@pytest.fixture(scope="module")
def trace():
    return seeded_trace(3, num_layers=4, num_experts=12, num_requests=6)


@pytest.mark.parametrize("planner", ["frequency", "random", "uniform", "front_loading"])
def test_ktransformers_takes_the_plans_experts(trace, tmp_path, planner):
    plan = PLANNERS[planner](trace, slots_per_layer=3, score=False)
    layers = [3, 4, 5, 6]  # three dense layers before
    number = ktransformers_statistics.write(
        plan, tmp_path / "stats.pt", model_layer_of_layer=layers, num_hidden_layers=8
    )
    assert number == 3
    got = ktransformers_statistics.read_resident(tmp_path / "stats.pt", per_layer=number, model_layer_of_layer=layers)
    np.testing.assert_array_equal(got, plan.resident("fast0"))
    import torch

    saved = torch.load(tmp_path / "stats.pt", weights_only=True)["logical_count"]
    assert tuple(saved.shape) == (1, 8, 12)
    assert saved[0, :3].sum() == saved[0, 7].sum() == 0


def test_what_ktransformers_cannot_say(trace, tmp_path):
    layers = {"model_layer_of_layer": [0, 1, 2, 3], "num_hidden_layers": 4}
    plan = PLANNERS["frequency"](trace, slots_per_layer=3, score=False)
    with pytest.raises(ValueError, match=r"expected a name that ends in .pt"):
        ktransformers_statistics.write(plan, tmp_path / "stats.json", **layers)
    with pytest.raises(ValueError, match="one GPU tier beside one memory"):
        ktransformers_statistics.write(
            PLANNERS["round_robin"](trace, nodes=2, score=False), tmp_path / "a.pt", **layers
        )
    moving = plan.model_copy(update={"policy": PolicyChoice(name="lru")})
    with pytest.raises(ValueError, match="plan moves experts by lru"):
        ktransformers_statistics.write(moving, tmp_path / "a.pt", **layers)
    with pytest.raises(ValueError, match="places 7 experts, which is no multiple of its 4 layers"):
        ktransformers_statistics.write(PLANNERS["frequency"](trace, slots=7, score=False), tmp_path / "a.pt", **layers)
    with pytest.raises(ValueError, match="expected 4 numbers below it"):
        ktransformers_statistics.write(plan, tmp_path / "a.pt", model_layer_of_layer=[1, 2, 3, 4], num_hidden_layers=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("planner", "extra"), [("round_robin", 0.0), ("eplb", 0.25), ("replicate", 0.3), ("mirror", 1.0)]
)
@pytest.mark.parametrize("nodes", [2, 3])
def test_eplb_table_round_trip(trace, tmp_path, planner, extra, nodes):
    plan = PLANNERS[planner](trace, nodes=nodes, extra_memory=extra if planner != "mirror" else nodes - 1, score=False)
    eplb_table.write(plan, tmp_path / "table.json")
    masks = eplb_table.read(tmp_path / "table.json", num_nodes=nodes, num_experts=12)
    columns = plan.placements.arrays()
    expected = np.zeros((4, 12), np.int64)
    np.bitwise_or.at(expected, (columns["layer"], columns["expert"]), 1 << columns["tier"])
    np.testing.assert_array_equal(masks, expected)
    table = json.loads((tmp_path / "table.json").read_text())["physical_to_logical_map"]
    assert len({len(row) for row in table}) == 1
    assert len(table[0]) % nodes == 0


@pytest.mark.parametrize("seed", range(4))
def test_eplb_table_with_rows_of_dense_layers(tmp_path, seed):
    """The plan's rows stand where the model's layers are; a dense layer's row still has every expert."""
    rng = np.random.default_rng(seed)
    num_layers, num_experts, nodes = int(rng.integers(1, 6)), 2 * int(rng.integers(3, 9)), 2
    trace = seeded_trace(seed, num_layers=num_layers, num_experts=num_experts, num_requests=5)
    hidden = num_layers + int(rng.integers(1, 4))
    layers = sorted(rng.permutation(hidden)[:num_layers].tolist())
    plan = PLANNERS["replicate"](trace, nodes=nodes, extra_memory=0.3, score=False)
    written = eplb_table.write(plan, tmp_path / "t.json", model_layer_of_layer=layers, num_hidden_layers=hidden)
    columns = plan.placements.arrays()
    expected = np.zeros((num_layers, num_experts), np.int64)
    np.bitwise_or.at(expected, (columns["layer"], columns["expert"]), 1 << columns["tier"])
    got = eplb_table.read(tmp_path / "t.json", num_nodes=nodes, num_experts=num_experts, model_layer_of_layer=layers)
    np.testing.assert_array_equal(got, expected)
    assert len(written) == hidden
    for layer in set(range(hidden)) - set(layers):
        assert set(written[layer].tolist()) == set(range(num_experts))
    with pytest.raises(ValueError, match="expected a row of layer 99"):
        eplb_table.read(tmp_path / "t.json", num_nodes=2, num_experts=num_experts, model_layer_of_layer=[99])
    with pytest.raises(ValueError, match=f"expected {num_layers} different ones below it"):
        eplb_table.write(
            plan, tmp_path / "u.json", model_layer_of_layer=[hidden] * num_layers, num_hidden_layers=hidden
        )
    with pytest.raises(ValueError, match="expected both or neither"):
        eplb_table.write(plan, tmp_path / "u.json", num_hidden_layers=hidden)


def test_what_a_table_cannot_say(trace, tmp_path):
    with pytest.raises(ValueError, match="cuts experts into pieces"):
        eplb_table.write(PLANNERS["row_split"](trace, nodes=2, moe_intermediate_size=64, score=False), tmp_path / "t")
    with pytest.raises(ValueError, match="equal devices only"):
        eplb_table.write(PLANNERS["frequency"](trace, slots_per_layer=2, score=False), tmp_path / "t")
    (tmp_path / "bad.json").write_text('{"physical_to_logical_map": [[0, 1, 2]]}')
    with pytest.raises(ValueError, match="R a multiple of 2"):
        eplb_table.read(tmp_path / "bad.json", num_nodes=2, num_experts=3)
    (tmp_path / "bad.json").write_text('{"physical_to_logical_map": [[0, 1, 1, 0]]}')
    with pytest.raises(ValueError, match="layer 0 has no copy of expert 2"):
        eplb_table.read(tmp_path / "bad.json", num_nodes=2, num_experts=3)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match="expected JSON with physical_to_logical_map"):
        eplb_table.read(tmp_path / "bad.json", num_nodes=2, num_experts=3)
