"""The generator: shapes, labels, seeds, latents that do what they say, folders that are whole or not there."""

import json

import numpy as np
import pytest

import moelab
from moelab.analysis import lag_overlap, popularity
from moelab.analysis.popularity import METRICS
from moelab.cli import main
from moelab.domain.model import ModelSpec
from moelab.domain.trace import Phase, TokenTable, Trace
from moelab.store import TraceStoreError, open_trace, verify
from moelab.synthetic import CALIBRATED, RoutingShape, Workload, generate, parameters_for, write
from moelab.synthetic.calibrated import CARRIED_OVER, START

SHAPE = RoutingShape("tiny", "test", num_layers=3, num_experts=24, top_k=3)
TOP20 = METRICS.index("share_of_top_20%")


def whole(batches):
    batches = list(batches)
    return Trace(
        batches[0].header, np.concatenate([b.experts for b in batches]),
        np.concatenate([b.gate_weights for b in batches]),
        TokenTable.concatenate([b.tokens for b in batches]),
    )  # fmt: skip


def made(workload=None, shape=SHAPE, seed=0, **changes):
    workload = workload or Workload.random(3000, prefill=30, decode=50, num_domains=3)
    return whole(generate(shape, START.model_copy(update=changes), workload, seed=seed))


def test_workload_has_exactly_the_tokens_asked_for():
    for tokens in (1, 7, 999, 5000):
        workload = Workload.random(tokens, prefill=20, decode=30, num_domains=4, seed=tokens)
        assert workload.num_tokens == tokens
        assert (workload.num_prefill >= 0).all()
        assert (workload.num_decode >= 0).all()
    assert np.bincount(workload.domain).min() > 0
    only_decode = Workload.random(500, prefill=0, decode=30)
    assert only_decode.num_prefill.sum() == 0
    with pytest.raises(ValueError, match="expected at least 1 of each"):
        Workload.random(10, prefill=0, decode=0)
    with pytest.raises(ValueError, match="num_tokens is 0"):
        Workload.random(0)


def test_workload_of_a_trace_repeats_its_requests():
    trace = moelab.open_trace(moelab.shipped("nano/capture_batch8")).load(slice(0, 4000))
    workload = Workload.of_trace(trace)
    assert workload.num_tokens == 4000
    ids, first = np.unique(trace.tokens.request, return_index=True)
    for number, request in enumerate(ids[np.argsort(first)].tolist()):
        part = trace.requests([request])
        assert workload.num_decode[number] == (part.tokens.phase == Phase.DECODE).sum()
        assert workload.num_prefill[number] == (part.tokens.phase == Phase.PREFILL).sum()


def test_trace_is_whole_and_says_synthetic():
    trace = made()
    assert trace.header.synthetic
    assert trace.header.model == "synthetic tiny"
    assert "seed 0" in trace.header.provenance
    assert START.source in trace.header.provenance
    assert trace.num_tokens == 3000
    assert (np.diff(np.sort(trace.experts, axis=2), axis=2) > 0).all()
    assert trace.experts.max() < 24
    np.testing.assert_allclose(trace.gate_weights.astype(float).sum(2), 1, atol=2e-3)
    assert (np.diff(trace.gate_weights.astype(float), axis=2) <= 0).all(), "rank order"
    steps, first = np.unique(trace.tokens.step, return_index=True)
    assert steps.tolist() == list(range(len(steps)))
    for step in steps[:50]:
        rows = trace.tokens.take(trace.tokens.step == step)
        assert len(set(rows.request.tolist())) == 1
        assert len(rows) == 1 or (rows.phase == Phase.PREFILL).all()
    assert len(first) == (trace.tokens.phase == Phase.DECODE).sum() + len(np.unique(trace.tokens.request))


def test_seed_decides_and_batches_do_not():
    workload = Workload.random(800, prefill=20, decode=30)
    a = whole(generate(SHAPE, START, workload, seed=5, batch_tokens=1))
    b = whole(generate(SHAPE, START, workload, seed=5, batch_tokens=10_000))
    assert np.array_equal(a.experts, b.experts)
    assert np.array_equal(a.gate_weights, b.gate_weights)
    c = whole(generate(SHAPE, START, workload, seed=6))
    assert (a.experts == c.experts).mean() < 0.3


def test_each_latent_does_what_it_says():
    still = {"popularity": 0, "topic": 0, "drift": 0, "content": 0, "persistence": 0, "first_layer": 1.0}

    def shares(**changes):
        result = popularity(made(**(still | changes)), num_samples=0)
        return result.means[0, TOP20], result.of_one_request[0, TOP20]

    flat, flat_request = shares()
    assert flat == pytest.approx(5 / 24, abs=0.02)
    pooled, _ = shares(popularity=1.0)
    assert pooled > flat + 0.15
    topic, topic_request = shares(topic=1.5, domain_share=0.0)
    assert topic_request > flat_request + 0.1
    assert topic < pooled, "requests of their own taste even out in the pool"

    def curve(**changes):
        return lag_overlap(made(**(still | changes)), lags=(1, 2, 16), num_samples=0)

    persistent = curve(persistence=2.0)
    assert persistent.mean[0] > persistent.mean[2] + 0.1
    drifting = curve(drift=1.5, drift_memory=0.9)
    assert drifting.mean[1] > drifting.mean[2] + 0.02
    assert curve().mean[0] == pytest.approx(3 / 24, abs=0.02)


def test_presets_have_the_shape_of_their_model():
    for name, (layers, experts, groups) in {"kimi-k2.6": (60, 384, 1), "deepseek-v3": (58, 256, 8)}.items():
        shape = RoutingShape.of_model(ModelSpec.preset(name))
        assert (shape.num_layers, shape.num_experts, shape.top_k, shape.num_groups) == (layers, experts, 8, groups)
        trace = whole(generate(shape, START, Workload.random(40, prefill=10, decode=10)))
        assert trace.shape == (40, layers, 8)
        if groups > 1:
            used = trace.experts.astype(int) // (experts // groups)
            assert max(len(set(row)) for row in used.reshape(-1, 8).tolist()) <= shape.groups_kept


def test_groups_that_cannot_hold_the_top_k():
    bad = RoutingShape("bad", "test", num_layers=1, num_experts=24, top_k=7, num_groups=4, groups_kept=1)
    with pytest.raises(ValueError, match="hold less than top-7"):
        next(iter(generate(bad, START, Workload.random(10))))
    with pytest.raises(ValueError, match="groups of equal size"):
        next(iter(generate(RoutingShape("bad", "test", 1, 24, 2, num_groups=5), START, Workload.random(10))))


def test_parameters_say_where_they_come_from():
    assert "carried over to kimi-k2.6 unchecked" in parameters_for("kimi-k2.6").source
    assert parameters_for(CARRIED_OVER) is CALIBRATED[CARRIED_OVER]
    with pytest.raises(ValueError, match="expected one of"):
        parameters_for("kimi-k2.6", "magic")


def test_folder_is_written_and_verifies(tmp_path):
    workload = Workload.random(9000, prefill=30, decode=50)
    path = write(tmp_path / "made", SHAPE, START, workload, seed=3, progress=False)
    assert verify(path).ok
    stored = open_trace(path).load()
    assert np.array_equal(stored.experts, whole(generate(SHAPE, START, workload, seed=3)).experts)
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    with pytest.raises(TraceStoreError, match="something there already"):
        write(tmp_path / "made", SHAPE, START, workload, progress=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupt_leaves_nothing(tmp_path, monkeypatch, error):
    def interrupted(*arguments, **options):
        yield next(iter(generate(*arguments, **options)))
        raise error

    monkeypatch.setattr("moelab.synthetic.folder.generate", interrupted)
    with pytest.raises(error):
        write(tmp_path / "made", SHAPE, START, Workload.random(9000), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path, capsys):
    out = tmp_path / "made"
    arguments = ["--tokens", "300", "--domains", "2", "--seed", "4", "--json"]
    assert main(["synth", "deepseek-v3", "--out", str(out), *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["routing"] == "synthetic"
    assert document["tokens"] == 300
    assert "carried over" in document["parameters"]
    assert main(["analyse", str(out), "--samples", "10", "--json"]) == 0
    analysed = json.loads(capsys.readouterr().out)
    assert analysed["routing"] == "synthetic"
    assert all(row["routing"] == "synthetic" for row in analysed["popularity"])
    assert main(["simulate", str(out), "--slots", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["routing"] == "synthetic"
    assert main(["synth", "deepseek-v3"]) == 2
    assert "neither --out nor --compare" in capsys.readouterr().err
