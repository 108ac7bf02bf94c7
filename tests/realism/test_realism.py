"""Figures against naive twins, a generator beside itself, a fit that comes nearer, and the calibrated parameters."""

import json

import numpy as np
import pytest

import moelab
from moelab.cli import main
from moelab.domain.trace import Phase
from moelab.planner.frequency import split
from moelab.realism import compare, fit, moments, placement_figures
from moelab.realism.compare import HELD_OUT, SPLIT_SEED, is_placement, like
from moelab.realism.fit import errors
from moelab.realism.placement_figures import balanced_packing, node_maximum
from moelab.sources import open_source
from moelab.synthetic import CALIBRATED, parameters_for
from moelab.synthetic.calibrated import START
from tests.seeded_traces import seeded_trace
from tests.shared_traces import SHARED_TRACES, needs_shared_traces

GENTLE = START.model_copy(update={"content": 1.0})


def test_balanced_packing_by_hand():
    """Loads 9 5 4 1 on two nodes of two: 9 | 5, then 4 to the lighter one, then 1 where there is room."""
    assert balanced_packing(np.array([[9, 5, 4, 1]]), 2).tolist() == [[0, 1, 1, 0]]
    rng = np.random.default_rng(0)
    node = balanced_packing(rng.integers(0, 100, (5, 30)), 4)
    for layer in node:
        assert sorted(np.bincount(layer).tolist()) == [6, 8, 8, 8] or np.bincount(layer).max() <= 8


def test_node_maximum_equals_counting():
    trace = seeded_trace(3, unrouted=0.3)
    node = balanced_packing(trace.loads(), 3)
    naive = []
    for token in trace.experts.tolist():
        for layer, row in enumerate(token):
            on_node = [node[layer, e] for e in row if e != 65535]
            if on_node:
                naive.append(max(on_node.count(n) for n in range(3)))
    assert node_maximum(trace, node, 3) == pytest.approx(np.mean(naive))


def test_figures_of_uniform_routing():
    """K of E at random: overlap K / E, node maximum of the hypergeometric distribution, 5.08 for 8 of 384."""
    rng = np.random.default_rng(0)
    base = seeded_trace(0, num_layers=1, num_experts=384, top_k=8, num_requests=2, prefill_tokens=0, decode_tokens=3000)
    ids = np.argsort(rng.random((6000, 384)), axis=1)[:, None, :8].astype(np.uint16)
    trace = type(base)(base.header, ids, np.ones(ids.shape, np.float16), base.tokens)
    figures = placement_figures(trace.requests([0]), trace.requests([1]))
    assert figures["node_maximum_2"] == pytest.approx(5.08, abs=0.06)
    assert figures["node_maximum_4"] == pytest.approx(3.52, abs=0.05)
    assert figures["lru_miss_50%"] == pytest.approx(0.5, abs=0.03)
    assert figures["min_bypass_miss_20%"] < figures["lru_miss_20%"]
    assert moments(trace)["overlap_lag_4"] == pytest.approx(8 / 384, abs=0.003)


def test_like_repeats_requests_phases_and_steps():
    trace = moelab.open_trace(moelab.shipped("nano/capture_batch8")).load(slice(0, 3000))
    made = like(trace, GENTLE, 0)
    assert made.header.synthetic
    for name in ("step", "request", "position", "phase", "domain"):
        assert np.array_equal(getattr(made.tokens, name), getattr(trace.tokens, name))
    # Rows of one request are one sequence of the generator: neighbours overlap more than rows of two requests.
    request = int(np.bincount(trace.tokens.request[trace.tokens.phase == Phase.DECODE]).argmax())
    rows = made.experts[(made.tokens.request == request) & (made.tokens.phase == Phase.DECODE)]
    strong = like(trace, GENTLE.model_copy(update={"persistence": 8.0}), 0)
    kept = strong.experts[(strong.tokens.request == request) & (strong.tokens.phase == Phase.DECODE)]
    same = np.mean([len(set(a) & set(b)) for a, b in zip(kept[1:, 0].tolist(), kept[:-1, 0].tolist(), strict=True)])
    assert same > 0.95 * rows.shape[2]


def test_generator_beside_itself_is_accepted():
    """Requests enough that halves are alike: all figures agree, and another generator is refused."""
    base = seeded_trace(1, num_layers=12, num_requests=120, num_experts=24, prefill_tokens=0, decode_tokens=40)
    trace = like(base, GENTLE, 77)
    itself = compare(trace, GENTLE, num_seeds=3, progress=False)
    other = compare(trace, GENTLE.model_copy(update={"topic": 0.0, "drift": 0.0}), num_seeds=2, progress=False)
    placement = np.array([is_placement(name) for name in itself.names])
    assert np.abs(itself.error[placement]).max() < 3
    assert np.abs(other.error[placement]).max() > 6
    assert not other.accepted
    assert "NOT within" in other.title
    frame = itself.to_frame()
    assert frame[frame.limit.notna()].figure.map(is_placement).all()
    assert "<table" in itself._repr_html_()


def test_fit_comes_nearer():
    base = seeded_trace(1, num_layers=8, num_requests=40, num_experts=24, prefill_tokens=0, decode_tokens=40)
    truth = GENTLE.model_copy(update={"popularity": 1.4, "topic": 1.0, "persistence": 1.0})
    trace = like(base, truth, 77)
    start = GENTLE.model_copy(update={"popularity": 0.6, "topic": 2.0, "persistence": 0.3})
    found = fit(trace, start, max_evaluations=45, progress=False)
    train, _, _ = split(trace, held_out=HELD_OUT, seed=SPLIT_SEED)

    def distance(parameters):
        return (errors(moments(like(train, parameters, 0)), moments(train)) ** 2).sum()

    assert distance(found) < 0.25 * distance(start)
    assert "fitted to half of the requests" in found.source


def test_command_on_the_shipped_capture(capsys):
    assert main(["synth", "--compare", str(moelab.shipped("nano/capture")), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parameters"] == parameters_for("nano").source
    assert document["requests"] == 72
    rows = {row["figure"]: row for row in document["rows"]}
    for name, row in rows.items():
        if is_placement(name):
            assert abs(row["error"]) < (10 if "lru" in name else 6), row
    # A finding, not a wish: nano's routing returns later than the generator's at equal overlap (docs/log.md).
    assert not document["accepted"]
    assert rows["lru_miss_30%"]["error"] < -5


@needs_shared_traces
@pytest.mark.parametrize(
    ("folder", "model"),
    [("gpt_oss_20b_fingerprint", "gpt-oss-20b"), ("deepseek_v2_lite_esft", "deepseek-v2-lite")],
)
def test_calibrated_parameters_on_the_requests_they_were_not_fitted_to(folder, model):
    result = compare(open_source(SHARED_TRACES / folder).load(), CALIBRATED[model], progress=False)
    errors = {name: error for name, error in zip(result.names, result.error, strict=True) if is_placement(name)}
    assert max(map(abs, errors.values())) < 2.5, errors
    assert result.accepted, result
