"""Requests against a naive grouping, and their flags and next uses by hand."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.domain.trace import Phase, TokenTable, Trace
from moelab.policies.requests import Requests
from moelab.policies.signature import FLAG_DECODE, FLAG_PREFILL, FLAG_REQUEST_ENDED, FLAG_REQUEST_STARTS, NEVER
from tests.policies.naive import naive_requests
from tests.seeded_traces import seeded_trace, trace_of_sets


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    top_k=st.integers(1, 4),
    prefill=st.integers(0, 5),
    unrouted=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_equals_naive_grouping(seed, batch, top_k, prefill, unrouted):
    trace = seeded_trace(seed, batch=batch, top_k=top_k, prefill_tokens=prefill, unrouted=unrouted)
    requests = Requests.of_trace(trace)
    expected = naive_requests(trace)
    assert requests.num_requests == len(expected)
    for clock, _, layer, used in expected:
        entries = slice(requests.offsets[clock], requests.offsets[clock + 1])
        assert clock % requests.num_layers == layer
        assert requests.experts[entries].tolist() == list(used)
        assert requests.token_counts[entries].tolist() == [count for count, _ in used.values()]
        assert requests.gate_sums[entries].tolist() == [float(total) for _, total in used.values()]


def test_by_layer_holds_the_same_requests():
    requests = Requests.of_trace(seeded_trace(3, batch=2, unrouted=0.3))
    by_layer, (num_steps, num_layers) = requests.by_layer(), requests.set_sizes.shape
    assert requests.by_layer() is by_layer
    for clock in range(requests.num_requests):
        step, layer = divmod(clock, num_layers)
        here = slice(*requests.offsets[clock : clock + 2])
        there = slice(*by_layer.offsets[layer * num_steps + step :][:2])
        for name in ("experts", "token_counts", "gate_sums", "next_use"):
            assert np.array_equal(getattr(requests, name)[here], getattr(by_layer, name)[there]), name


def test_next_use_by_hand():
    """E = 4. Experts 0 and 1 return together in request 2; 1 is used again in 3, so 1 has place 0 there."""
    requests = Requests.of_trace(trace_of_sets([[0, 1], [2], [0, 1], [1]], num_experts=4))
    assert requests.next_use.tolist() == [2 * 4 + 1, 2 * 4 + 0, NEVER, NEVER, 3 * 4, NEVER]
    assert requests.first_use.tolist() == [[0 * 4 + 1, 0 * 4 + 0, 1 * 4, NEVER]]


def test_flags_by_hand():
    """Request 7 prefills in step 10 and decodes in 20; request 8 joins in 20 (mixed) and goes on alone in 30."""
    base = seeded_trace(0, num_requests=1, prefill_tokens=0, decode_tokens=5)
    phases = [Phase.PREFILL, Phase.PREFILL, Phase.DECODE, Phase.PREFILL, Phase.DECODE]
    table = TokenTable.build(step=[10, 10, 20, 20, 30], request=[7, 7, 7, 8, 8], position=[0, 1, 2, 0, 1], phase=phases)
    requests = Requests.of_trace(Trace(base.header, base.experts, base.gate_weights, table))
    assert requests.step.tolist() == [10, 20, 30]
    assert requests.first_token.tolist() == [0, 2, 4, 5]
    mixed = FLAG_PREFILL | FLAG_DECODE
    assert requests.flags.tolist() == [
        FLAG_PREFILL | FLAG_REQUEST_STARTS,
        mixed | FLAG_REQUEST_STARTS,
        FLAG_DECODE | FLAG_REQUEST_ENDED,
    ]
    assert requests.steps_of_phase("mixed").tolist() == [False, True, False]
    assert requests.steps_of_phase("decode").tolist() == [False, False, True]


def test_empty_trace():
    trace = seeded_trace(0).take(slice(0, 0))
    requests = Requests.of_trace(trace)
    assert (requests.num_steps, requests.num_requests, len(requests.experts)) == (0, 0, 0)
    assert len(requests.next_use) == 0
    assert np.array_equal(requests.set_sizes, np.zeros((0, 3)))


def test_frame_has_one_row_per_distinct_expert():
    requests = Requests.of_trace(seeded_trace(0, batch=2))
    frame = requests.to_frame()
    assert len(frame) == len(requests.experts)
    assert not frame.duplicated(["clock", "expert"]).any()
