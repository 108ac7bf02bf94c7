"""Trace: shapes, sentinels and selections; wrong arrays are refused with expected and got."""

import dataclasses

import numpy as np
import pytest

from moelab.domain.trace import NO_EXPERT, Phase, TokenTable, Trace, TraceHeader


def make_header(num_layers=3, num_experts=8, top_k=2, **changes):
    values = {
        "model": "toy", "model_type": "deepseek_v3", "num_layers": num_layers, "num_experts": num_experts,
        "top_k": top_k, "model_layer_of_layer": tuple(range(1, num_layers + 1)), "expert_bytes": (100,) * num_layers,
        "engine": "test", "quantization": "none", "licence": "CC0-1.0", "provenance": "test", "synthetic": True,
    }  # fmt: skip
    return TraceHeader(**(values | changes))


def make_trace(seed=0, num_tokens=20, **changes):
    header = make_header(**changes)
    rng = np.random.default_rng(seed)
    shape = (num_tokens, header.num_layers, header.num_experts)
    experts = rng.permuted(np.broadcast_to(np.arange(header.num_experts), shape), axis=2)[:, :, : header.top_k]
    experts = experts.astype(np.uint16)
    experts[0, 0, -1] = NO_EXPERT
    tokens = TokenTable.build(
        step=np.arange(num_tokens) // 2, request=np.arange(num_tokens) % 2, position=np.arange(num_tokens) // 2,
        phase=np.where(np.arange(num_tokens) < 6, Phase.PREFILL, Phase.DECODE), domain=0,
    )  # fmt: skip
    return Trace(header, experts, rng.random(experts.shape).astype(np.float16), tokens)


def test_loads_count_every_routed_slot_once():
    trace = make_trace()
    naive = np.zeros((3, 8), int)
    for token in range(trace.num_tokens):
        for layer in range(3):
            for expert in trace.experts[token, layer]:
                if expert != NO_EXPERT:
                    naive[layer, expert] += 1
    np.testing.assert_array_equal(trace.loads(), naive)
    assert trace.loads().sum() == trace.experts.size - 1


def test_selections_keep_rows_together():
    trace = make_trace()
    decode = trace.phase(Phase.DECODE)
    assert decode.num_tokens == 14
    assert (decode.tokens.phase == Phase.DECODE).all()
    one = trace.requests([1])
    np.testing.assert_array_equal(one.experts, trace.experts[1::2])
    assert set(one.tokens.request) == {1}


def test_frame_has_one_row_for_each_routing():
    trace = make_trace()
    frame = trace.to_frame()
    assert len(frame) == trace.experts.size - 1
    counts = frame.groupby(["layer", "expert"]).size()
    assert all(counts[layer, expert] == n for (layer, expert), n in np.ndenumerate(trace.loads()) if n)


def test_fingerprint_changes_with_the_routing_only():
    trace = make_trace()
    changed = make_trace()
    changed.experts[3, 1] = changed.experts[3, 1, ::-1]
    assert trace.fingerprint() == make_trace().fingerprint()
    assert trace.fingerprint() != changed.fingerprint()


def test_fingerprint_covers_what_policies_see_and_nothing_else():
    trace, seen = make_trace(), make_trace()
    seen.gate_weights[0, 0, 0] += 1
    scored = dataclasses.replace(trace, extras={"candidate_scores": np.zeros((20, 3, 5), np.float16)})
    not_seen = dataclasses.replace(trace, tokens=dataclasses.replace(trace.tokens, token_id=trace.tokens.token_id + 1))
    assert len({each.digest() for each in (trace, seen, scored)}) == 3
    assert not_seen.digest() == trace.digest()
    assert trace.fingerprint() == f"2-{trace.digest()[:16]}"
    assert [each.has_fingerprint(trace.fingerprint()) for each in (trace, seen, scored)] == [True, False, False]
    assert not trace.has_fingerprint(None)


def test_fingerprint_of_version_1_is_known_again():
    """Written down by the code of version 1; it left out gate weights and extra arrays, but no routing."""
    trace, gates, routing = make_trace(), make_trace(), make_trace()
    gates.gate_weights[0, 0, 0] += 1
    routing.experts[3, 1] = routing.experts[3, 1, ::-1]
    first = "4b1cb613219615a1"
    assert [each.has_fingerprint(first) for each in (trace, gates, routing)] == [True, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"experts": t.experts[:, :, :1]}, r"experts is uint16 \(20, 3, 1\), expected uint16 \[T, L, K\]"),
        (lambda t: {"experts": t.experts.astype(np.int32)}, "experts is int32"),
        (lambda t: {"gate_weights": t.gate_weights.astype(np.float32)}, "gate_weights is float32"),
        (lambda t: {"experts": np.full_like(t.experts, 8)}, "id 8, expected ids below num_experts = 8"),
        (lambda t: {"tokens": t.tokens.take(slice(None, None, -1))}, "step decreases"),
        (lambda t: {"extras": {"residency": np.zeros((3, 3, 2))}}, "residency has 3 rows, expected 20"),
    ],
)
def test_wrong_arrays_are_refused(change, message):
    trace = make_trace()
    parts = {name: getattr(trace, name) for name in ("header", "experts", "gate_weights", "tokens")}
    with pytest.raises(ValueError, match=message):
        Trace(**(parts | change(trace)))


def test_header_lengths_must_agree():
    with pytest.raises(ValueError, match="expert_bytes has 2 entries, expected num_layers = 3"):
        make_header(expert_bytes=(1, 2))


def test_html_escapes_what_users_wrote():
    trace = make_trace(model="<script>alert(1)</script>")
    assert "<script>" not in trace._repr_html_()
    assert "synthetic" in trace._repr_html_()
