"""Arrays become a trace: what is filled in equals a naive loop, what contradicts itself is refused."""

import numpy as np
import pytest

from moelab import NO_EXPERT, PLANNERS, Phase, Trace, simulate


def routing(seed, num_tokens=40, num_layers=3, num_experts=10, top_k=2):
    draw = np.random.default_rng(seed)
    ids = draw.random((num_tokens, num_layers, num_experts)).argsort(-1)[:, :, :top_k]
    return ids, draw.random(ids.shape)


def test_least_that_can_be_said():
    ids, _ = routing(0)
    trace = Trace.from_arrays(ids)
    assert trace.shape == (40, 3, 2)
    assert (trace.experts == ids).all()
    assert trace.header.num_experts == ids.max() + 1
    assert "largest id + 1" in trace.header.provenance
    assert (trace.header.gate_weight_kind, trace.header.slot_order) == ("unknown", "unknown")
    assert trace.tokens.step.tolist() == trace.tokens.position.tolist() == list(range(40))
    assert (trace.tokens.phase == Phase.DECODE).all()
    assert Trace.from_arrays(ids[:, 0]).shape == (40, 1, 2)


@pytest.mark.parametrize("seed", range(8))
def test_requests_steps_and_phases_equal_a_loop(seed):
    draw = np.random.default_rng(seed)
    lengths, prompts = draw.integers(1, 9, 5), draw.integers(0, 6, 5)
    numbers = np.sort(draw.choice(50, 5, replace=False))
    expected, step = [], -1
    for number, length, prompt in zip(numbers, lengths, prompts, strict=True):
        for place in range(length):
            step += place == 0 or place >= prompt
            expected.append((number, place, step, Phase.PREFILL if place < prompt else Phase.DECODE))
    ids, weights = routing(seed, len(expected))
    request = np.repeat(numbers, lengths)
    domain = [None if number % 3 == 0 else f"d{number % 3}" for number in request]
    trace = Trace.from_arrays(ids, weights, num_experts=10, request=request, num_prompt_tokens=prompts, domain=domain)
    table = trace.tokens
    assert list(zip(table.request, table.position, table.step, table.phase, strict=True)) == expected
    assert [None if d < 0 else trace.header.domains[d] for d in table.domain] == domain
    assert (trace.gate_weights == weights.astype(np.float16)).all()


def test_batches_need_their_steps():
    ids, _ = routing(1, 6)
    request, step = [0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="requests ran together: give step"):
        Trace.from_arrays(ids, request=request)
    trace = Trace.from_arrays(ids, request=request, step=step)
    assert trace.tokens.position.tolist() == [0, 0, 1, 1, 2, 2]
    assert trace.tokens.step.tolist() == step


@pytest.mark.parametrize("absent", [-1, NO_EXPERT])
def test_slots_that_were_not_routed(absent):
    ids, weights = routing(2)
    ids[3, 1], ids[5, 0, 1] = absent, absent
    trace = Trace.from_arrays(ids, weights, num_experts=10)
    assert (trace.experts[3, 1] == NO_EXPERT).all()
    assert trace.loads().sum() == ids.size - 3
    assert (trace.gate_weights[trace.experts == NO_EXPERT] == 0).all()


def test_goes_on_to_a_plan_and_a_simulation():
    ids, _ = routing(3, 60)
    trace = Trace.from_arrays(ids, num_experts=10, expert_bytes=1000, model="mine")
    plan = PLANNERS["frequency"](trace, slots_per_layer=4)
    result = simulate(trace, plan, progress=False)
    held = plan.resident("fast0")
    hits = sum(held[layer, expert] for row in ids for layer in range(3) for expert in row[layer])
    assert result.hits == hits


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experts": np.zeros((4, 3, 2))}, "expected integers"),
        ({"experts": np.zeros((4,), int)}, r"\[T, L, K\]"),
        ({"num_experts": 5}, "expected -1 to 4"),
        ({"experts": np.zeros((4, 3, 2), int)}, "names an expert twice"),
        ({"gate_weights": np.zeros((4, 3))}, "expected .* like experts"),
        ({"gate_weights": np.zeros((3, 40, 2))}, r"\(3, 40, 2\), expected numbers \(40, 3, 2\) like experts"),
        ({"gate_weights": np.full((40, 3, 2), np.nan)}, "240 numbers that are NaN"),
        ({"gate_weights": np.full((40, 3, 2), 1e9)}, "beyond 65504"),
        ({"gate_weights": [[1.0], [1.0, 2.0]]}, "gate_weights is a list that is no array"),
        ({"experts": [[[0, 1]], [[2]]]}, "experts is a list that is no array of numbers"),
        ({"experts": None}, "experts is None that is no array"),
        ({"experts": {"a": 1}}, "experts is a dict that is no array"),
        ({"experts": routing(0)[0].astype(bool)}, "expected integers"),
        ({"num_experts": "ten"}, "num_experts is 'ten', expected a whole number"),
        ({"num_experts": 10.5}, "num_experts is 10.5, expected a whole number"),
        ({"num_experts": 70_000}, "num_experts is 70000, expected less than 65535"),
        ({"expert_bytes": [1, 2]}, "one number or one for each of the 3 layers"),
        ({"expert_bytes": -5}, "expected whole numbers, 0 where a size is unknown"),
        ({"expert_bytes": "5 MB"}, "expert_bytes is <U4"),
        ({"request": np.zeros((40, 2), int)}, "expected a number or a name for each token"),
        ({"request": np.linspace(0, 1, 40)}, "request is float64"),
        ({"request": 3}, "expected a number or a name for each token"),
        ({"position": np.arange(40) - 1}, "position goes from -1 to 38, expected 0"),
        ({"position": ["a"] * 40}, "position is <U1"),
        ({"position": np.arange(40) // 2}, "position 0 occurs twice in one request"),
        ({"position": np.ma.masked_equal(np.arange(40), 3)}, "position hides entries behind a mask"),
        ({"gate_weights": -np.ones((40, 3, 2)), "gate_weight_kind": "normalised"}, "none below 0 for the kind normal"),
        ({"moe_intermediate_size": "wide"}, "moe_intermediate_size is 'wide', expected a valid integer"),
        ({"step": np.linspace(0, 1, 40)}, "step is float64"),
        ({"step": [0, 1]}, "step has 2 entries"),
        ({"token_id": [2**40] * 40}, "token_id goes from"),
        ({"token_id": [1, 2]}, "token_id has 2 entries"),
        ({"num_prompt_tokens": "all"}, "num_prompt_tokens is <U3"),
        ({"num_prompt_tokens": -1}, "num_prompt_tokens goes from -1"),
        ({"domain": 7}, "domain is 7, expected one name"),
        ({"gate_weight_kind": "guess"}, "gate_weight_kind is 'guess', expected 'softmax_over_all'"),
        ({"slot_order": None}, "slot_order is None, expected 'rank'"),
        ({"model": None}, "model is None, expected a valid string"),
        ({"request": [0, 1]}, "request has 2 entries"),
        ({"domain": ["a"]}, "domain has 1 entries"),
        ({"num_prompt_tokens": [1, 2, 3]}, "one for each of the 1 requests"),
        ({"step": np.arange(40)[::-1]}, "step decreases"),
        ({"model_layer_of_layer": [1]}, "model_layer_of_layer has 1 entries"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_contradictions_are_refused(change, words):
    arguments = {"experts": routing(0)[0], "num_experts": 10} | change
    with pytest.raises(ValueError, match=words):
        Trace.from_arrays(arguments.pop("experts"), arguments.pop("gate_weights", None), **arguments)


def test_unknown_names_of_arguments_are_said():
    with pytest.raises(TypeError, match=r"from_arrays knows no requests; expected of .*request"):
        Trace.from_arrays(routing(0)[0], requests=[0] * 40)


def test_tensors_lists_and_columns_are_arrays():
    import pandas as pd
    import torch

    ids, weights = routing(4)
    plain = Trace.from_arrays(ids, weights, num_experts=10)
    tensors = Trace.from_arrays(
        torch.tensor(ids), torch.tensor(weights, requires_grad=True), num_experts=torch.tensor(10)
    )
    assert (tensors.experts == plain.experts).all()
    assert (tensors.gate_weights == plain.gate_weights).all()
    halves = torch.tensor(weights, dtype=torch.bfloat16)
    assert (Trace.from_arrays(ids, halves, num_experts=10).gate_weights == halves.float().numpy()).mean() > 0.99
    named = pd.Series(np.repeat(["kitchen", "attic", "cellar", "attic2"], 10))
    listed = Trace.from_arrays(ids.tolist(), num_experts=10, request=named, domain=named.where(named != "attic"))
    assert listed.tokens.request.tolist() == np.repeat(range(4), 10).tolist(), "numbered as they occur"
    assert listed.header.domains == ("kitchen", "cellar", "attic2")
    assert (listed.tokens.domain[10:20] == -1).all(), "pandas' nothing is no domain"
    huge = np.repeat([2**60, 5], 20)
    assert Trace.from_arrays(ids, request=huge).tokens.request.tolist() == [0] * 20 + [1] * 20


@pytest.mark.parametrize("name", ["request", "position", "step", "domain", "token_id"])
def test_layers_before_tokens_are_refused_where_something_says_so(name):
    ids, _ = routing(5)
    column = ["a"] * 40 if name == "domain" else np.zeros(40, int) if name == "request" else np.arange(40)
    assert Trace.from_arrays(ids, **{name: column}).shape == (40, 3, 2)
    with pytest.raises(ValueError, match=rf"{name} has 40 entries.*experts.transpose\(1, 0, 2\)"):
        Trace.from_arrays(ids.transpose(1, 0, 2), **{name: column})


def test_layers_before_tokens_are_refused_or_warned_of():
    with pytest.raises(ValueError, match=r"3 tokens, 600 MoE layers; expected at most 512: if it is \[L, T, K\]"):
        Trace.from_arrays(routing(6, 600)[0].transpose(1, 0, 2))
    with pytest.warns(UserWarning, match=r"read as \[T, L, K\]: 3 tokens, 40 MoE layers, more than tokens") as warned:
        Trace.from_arrays(routing(6)[0].transpose(1, 0, 2))
    assert warned[0].filename == __file__, "points at the caller"


def test_no_warning_where_tokens_are_known(recwarn):
    ids, _ = routing(7, 3, 12)
    Trace.from_arrays(ids, request=[0, 0, 0])
    Trace.from_arrays(routing(7)[0])
    assert not [each for each in recwarn if "MoE layers" in str(each.message)]


def test_other_orders_are_named():
    ids, _ = routing(8, num_layers=9)
    with pytest.raises(ValueError, match=r"experts.transpose\(0, 2, 1\) if it is \[T, K, L\]"):
        Trace.from_arrays(ids.transpose(0, 2, 1), num_experts=10)
    with pytest.raises(ValueError, match=r"\(40, 9\) was read as \[T, K\].*give experts\[:, :, None\]"):
        Trace.from_arrays(ids[:, :, 0], num_experts=10)


def test_requests_of_a_server_stay_apart():
    """64-bit hashes, which int32 would fold onto each other, and the provenance says what was done."""
    ids, _ = routing(9, 6)
    for request in ([2**40 + 1] * 3 + [2**41 + 1] * 3, ["b"] * 3 + ["a"] * 3, [-4] * 3 + [7] * 3):
        trace = Trace.from_arrays(ids, num_experts=10, request=request, num_prompt_tokens=[1, 2])
        assert trace.tokens.request.tolist() == [0, 0, 0, 1, 1, 1]
        assert (trace.tokens.phase == Phase.PREFILL).tolist() == [True, False, False, True, True, False]
        assert "2 requests numbered as they occur" in trace.header.provenance
    plain = Trace.from_arrays(ids, num_experts=10, request=[7] * 3 + [9] * 3)
    assert plain.tokens.request.tolist() == [7, 7, 7, 9, 9, 9]
    assert "numbered" not in plain.header.provenance


def test_masked_slots_were_not_routed():
    ids, weights = routing(10)
    hidden = np.random.default_rng(10).random(ids.shape) < 0.2
    for kind in (np.int8, np.uint8, np.int64):
        trace = Trace.from_arrays(
            np.ma.array(ids.astype(kind), mask=hidden), np.ma.array(weights, mask=hidden), num_experts=10
        )
        assert (trace.experts == np.where(hidden, NO_EXPERT, ids)).all()
        assert (trace.gate_weights == np.where(hidden, 0, weights).astype(np.float16)).all()


def test_no_tokens_are_a_trace():
    trace = Trace.from_arrays(np.zeros((0, 3, 2), int), num_experts=10)
    assert trace.shape == (0, 3, 2)
    assert len(trace.tokens) == 0


def test_with_the_model_s_sizes_experts_can_be_cut():
    ids, _ = routing(11, 80, num_experts=8)
    said = {"num_experts": 8, "expert_bytes": 3 * 64 * 128 // 2, "request": np.repeat(range(8), 10)}
    with pytest.raises(ValueError, match="give moe_intermediate_size"):
        PLANNERS["row_split"](Trace.from_arrays(ids, **said), nodes=2)
    trace = Trace.from_arrays(ids, **said, hidden_size=128, moe_intermediate_size=64)
    assert PLANNERS["row_split"](trace, nodes=2).num_units == 2
