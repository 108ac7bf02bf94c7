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
