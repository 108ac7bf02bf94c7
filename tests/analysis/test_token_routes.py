"""Values and routes of single tokens against loops over the arrays."""

import numpy as np
import pytest

from moelab import NO_EXPERT, Phase
from moelab.analysis.token_routes import WAYS, request_table, token_routes, token_values
from tests.seeded_traces import seeded_trace


@pytest.mark.parametrize("seed", range(4))
def test_values_equal_a_loop(seed):
    trace = seeded_trace(seed, batch=2, unrouted=0.1)
    draw = np.random.default_rng(seed)
    for request in np.unique(trace.tokens.request):
        rows = [t for t in range(trace.num_tokens) if trace.tokens.request[t] == request]
        layer, slot, expert = int(draw.integers(3)), int(draw.integers(3)), int(draw.integers(12))
        got = {by: token_values(trace, request, by, layer=layer, slot=slot, expert=expert) for by in WAYS}
        counts = {}
        for t in rows:
            counts[trace.experts[t, layer, slot]] = counts.get(trace.experts[t, layer, slot], 0) + 1
        counts.pop(NO_EXPERT, None)
        assert got["expert"].names == tuple(f"expert {e}" for e in sorted(counts, key=lambda e: (-counts[e], e))[:6])
        for place, t in enumerate(rows):
            here = [e for e in trace.experts[t, layer] if e != NO_EXPERT]
            name, mine = got["expert"].values[place], trace.experts[t, layer, slot]
            assert (
                (f"expert {mine}" not in got["expert"].names)
                if np.isnan(name)
                else (got["expert"].names[int(name)] == f"expert {mine}")
            )
            weight = got["gate weight"].values[place]
            assert np.isnan(weight) if mine == NO_EXPERT else weight == np.float32(trace.gate_weights[t, layer, slot])
            assert got["step"].values[place] == trace.tokens.step[t] - trace.tokens.step[rows[0]]
            assert np.isnan(got["one expert"].values[place]) == (expert not in here)
            if place and here:
                before = set(trace.experts[rows[place - 1], layer].tolist())
                assert got["reuse"].values[place] == pytest.approx(np.mean([e in before for e in here]))
            elif not place:
                assert np.isnan(got["reuse"].values[0])


def test_routes_and_requests():
    trace = seeded_trace(2, unrouted=0.2)
    rows = np.flatnonzero(trace.tokens.request == 1)
    frame = token_routes(trace, 1, 6)
    expected = [
        (layer, slot, trace.experts[rows[6], layer, slot]) for layer in range(3) for slot in range(3)
        if trace.experts[rows[6], layer, slot] != NO_EXPERT
    ]  # fmt: skip
    assert list(zip(frame.layer, frame.slot, frame.expert, strict=True)) == expected
    table = request_table(trace)
    assert table.tokens.sum() == trace.num_tokens
    assert table.prompt_tokens.sum() == (trace.tokens.phase == Phase.PREFILL).sum()
    assert table.request.tolist() == list(dict.fromkeys(trace.tokens.request.tolist()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"request": 99}, "request is 99"), ({"layer": 3}, "layer is 3, expected 0 to 2"), ({"slot": -1}, "slot is -1"),
        ({"expert": 12}, "expert is 12"), ({"by": "colour"}, "expected one of expert, gate weight"),
    ],
)  # fmt: skip
def test_what_is_not_there(options, words):
    with pytest.raises(ValueError, match=words):
        token_values(seeded_trace(0), **{"request": 0} | options)
    with pytest.raises(ValueError, match="token is 17"):
        token_routes(seeded_trace(0), 0, 17)
