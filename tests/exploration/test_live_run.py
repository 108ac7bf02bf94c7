"""LiveRun on nano: its tokens are generate's, its numbers those of a recorded trace and of the engine's counters."""

import threading

import numpy as np
import pytest

import moelab
from moelab.domain.trace import Phase
from moelab.exploration import LiveRun, homes_of_engine
from moelab.exploration.live_run import FADES_BY, OUT_BELOW
from moelab.planner.empty import empty
from moelab.policies.counts import HITS, MISSES, UPLOADS

PROMPT = "In the beginning there was a small machine that"


@pytest.fixture(scope="module")
def engine():
    with moelab.load(moelab.shipped("nano/model"), virtual_nodes=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def capture():
    return moelab.open_trace(moelab.shipped("nano/capture")).load()


@pytest.fixture(scope="module")
def dealt(capture):
    return moelab.PLANNERS["round_robin"](capture, nodes=2, held_out=0.5, phase="decode")


@pytest.mark.parametrize(("temperature", "seed"), [(0.0, 0), (0.9, 5)])
def test_tokens_text_and_experts_are_those_of_generate_and_of_a_trace(engine, temperature, seed):
    expected = engine.generate(PROMPT, 24, temperature=temperature, seed=seed)
    run = LiveRun(engine, PROMPT, 24, temperature=temperature, seed=seed)
    with moelab.record(engine) as trace:
        steps = list(run)
    assert [step.token_id for step in steps] == list(expected.token_ids)
    assert run.text == "".join(step.piece for step in steps) == expected.text
    assert run.result.finish_reason == expected.finish_reason
    assert engine.observers == []
    fed = np.concatenate([step.experts for step in steps], axis=1)
    np.testing.assert_array_equal(fed.transpose(1, 0, 2), trace.experts)
    for layer in range(6):
        loads = np.bincount(trace.experts[:, layer].ravel(), minlength=48)
        np.testing.assert_array_equal(run.uses[layer], loads)
    # The light, by a plain loop over the steps.
    glow = np.zeros((6, 48))
    for step in steps:
        glow *= FADES_BY
        for layer in range(6):
            glow[layer, step.experts[layer].ravel()] = 1.0
    np.testing.assert_allclose(run.glow, np.where(glow < OUT_BELOW, 0, glow), rtol=1e-5)
    with pytest.raises(ValueError, match="a new LiveRun"):
        next(iter(run))


def test_bytes_and_rates_of_nodes_are_those_of_the_engine(engine, capture, dealt):
    """A fresh engine's own table has all decode steps of the run and nothing else."""
    with moelab.load(moelab.shipped("nano/model"), virtual_nodes=2) as fresh:
        moelab.apply(fresh, dealt, progress=False)
        run = LiveRun(fresh, PROMPT, 20, stop=())
        steps = list(run)
        own = fresh.bandwidth().totals
        expert_bytes = fresh.expert_bytes
    decode = run.totals[Phase.DECODE]
    assert decode.num_steps == 19
    assert decode.bytes_of_node.tolist() == [row.num_bytes for row in own]
    np.testing.assert_allclose(decode.gb_per_s_of_node, [row.gb_per_s for row in own], rtol=1e-9)
    # Independently: experts of each step have one copy, on the node that the plan names.
    node_of = np.where(dealt.resident("node1"), 1, 0)
    assert (dealt.resident("node0") ^ dealt.resident("node1")).all()
    for step in steps:
        counted = [0, 0]
        for layer in range(6):
            for expert in set(step.experts[layer].ravel().tolist()):
                counted[node_of[layer, expert]] += expert_bytes
        assert step.bytes_of_node.tolist() == counted
    figures = run.figures()
    assert figures["bytes_per_token_of_node"] == [row.num_bytes / 19 for row in own]
    assert figures["node_imbalance"] == pytest.approx(
        max(r.num_bytes for r in own) / np.mean([r.num_bytes for r in own])
    )
    assert figures["virtual_nodes"] is True


def test_late_and_uploads_are_those_of_the_tier(engine):
    tier = engine.use_plan(empty(engine.trace_header(), slots_per_layer=8, policy="lru"))
    try:
        run = LiveRun(engine, PROMPT, 16, stop=())
        steps = list(run)
        report = tier.report()
        total = sum(step.tier_counts for step in steps)
        np.testing.assert_array_equal(total, report.counts.sum(axis=(0, 1)))
        decode = report.counts[Phase.DECODE].sum(axis=0)
        figures = run.figures()
        assert (figures["hits"], figures["misses"], figures["uploads"]) == (
            decode[HITS],
            decode[MISSES],
            decode[UPLOADS],
        )
        assert figures["uploads"] > 0
        assert figures["prefill_uploads"] == report.uploads - decode[UPLOADS] > 0
        assert figures["late"] + figures["prefill_late"] == report.late
        assert figures["fast_tier"] == str(tier)
        layer = homes_of_engine(engine)
        assert (layer.values == 0).sum() == tier.resident.sum() > 0
        assert layer.names[0] == "fast0"
    finally:
        engine.use_plan(None)


def test_a_plan_between_two_runs_moves_bytes_and_no_word(engine, dealt, capture):
    before = LiveRun(engine, PROMPT, 12, stop=())
    list(before)
    moelab.apply(engine, dealt, progress=False)
    after = LiveRun(engine, PROMPT, 12, stop=())
    list(after)
    assert after.text == before.text
    assert sum(after.totals[Phase.DECODE].bytes_of_node) == sum(before.totals[Phase.DECODE].bytes_of_node)
    assert (after.totals[Phase.DECODE].bytes_of_node > 0).all()
    layer = homes_of_engine(engine)
    assert layer.names == ("fast0", "node0", "node1", "several nodes")
    np.testing.assert_array_equal(layer.values, np.where(dealt.resident("node1"), 2, 1))


def test_stop_ends_within_a_token_and_within_a_prefill(engine):
    run = LiveRun(engine, PROMPT, 400, stop=())
    seen = 0
    for _ in run:
        seen += 1
        if seen == 5:
            run.stop()
    assert seen == run.num_steps == 5
    assert run.result.finish_reason == "cancelled"
    assert run.text == run.result.text
    long = LiveRun(engine, PROMPT, 4, prefill_chunk=2)
    steps_before = engine.num_steps
    engine.observers.append(lambda *step: long.stop())
    try:
        assert list(long) == []
    finally:
        engine.observers.clear()
    assert 1 <= engine.num_steps - steps_before <= 2
    assert long.result.token_ids == ()
    never = LiveRun(engine, PROMPT, 4)
    never.stop()
    assert list(never) == []
    assert engine.generate(PROMPT, 3).text == LiveRun(engine, PROMPT, 3).engine.generate(PROMPT, 3).text


def test_the_engine_used_from_elsewhere_meanwhile_says_who_has_it(engine, dealt):
    run = LiveRun(engine, PROMPT, 50, stop=())
    errors = []

    def elsewhere():
        for call in (
            lambda: engine.generate("x", 2), lambda: moelab.apply(engine, dealt, progress=False),
            lambda: engine.use_plan(None), engine.close, lambda: next(iter(LiveRun(engine, "x", 2))),
        ):  # fmt: skip
            try:
                call()
            except RuntimeError as error:
                errors.append(str(error))

    for step in run:
        if step.number == 3:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            run.stop()
    assert len(errors) == 5
    assert all("engine of nano is busy" in error and "LiveDecode" in error for error in errors)
    assert len(engine.generate("x", 2).token_ids) > 0


def test_what_cannot_be_generated_is_said_and_leaves_the_engine_free(engine):
    with pytest.raises(ValueError, match="at least one token"):
        LiveRun(engine, "")
    with pytest.raises(ValueError, match="max_new_tokens"):
        LiveRun(engine, "a", 0)

    def breaks(*step):
        raise OSError("broken")

    run = LiveRun(engine, PROMPT, 5)
    engine.observers.append(breaks)
    try:
        with pytest.raises(OSError, match="broken"):
            list(run)
    finally:
        engine.observers.clear()
    assert len(engine.generate("x", 2).token_ids) > 0
