"""The engine beside a fast tier: its results, what it holds in the end, late copies, failures and refusals."""

import threading

import numpy as np
import pytest
import torch

from moelab import load, record, shipped, simulate
from moelab.domain.plan import Plan
from moelab.domain.trace import Phase
from moelab.engine.fast_tier.copy_thread import CopyError
from moelab.engine.fast_tier.payload import home_block
from moelab.engine.sampling import Sampling
from moelab.kernels.reference import unpack_expert
from moelab.policies.counts import HITS, LATE
from tests.engine.fast_tier.nano_runs import PROMPTS, assert_live_equals_simulated, plan_of, run_live


@pytest.fixture(scope="module")
def engine():
    """float32 throughout: the device has the same arithmetic, and nothing rounds the last bit into a step of bf16."""
    float32 = {"activation": "f32", "dense_weights": "float32", "dense_dtype": "float32"}
    with load(shipped("nano/model"), num_workers=1, **float32) as engine:
        yield engine


def logits_of(engine):
    """Prefill, then four decode steps of two sequences."""
    logits = [engine.forward(PROMPTS[0])]
    cache = engine.new_cache(2)
    sequences = [engine.new_sequence(prompt, 9, Sampling(), ()) for prompt in PROMPTS[:2]]
    for row, sequence in enumerate(sequences):
        engine.prefill(sequence, cache, row)
    for step in range(4):
        tokens = torch.tensor([[100 + step], [200 + step]])
        logits.append(engine.step(tokens, cache, 0, sequences, Phase.DECODE, "last").flatten(0, 1))
    return torch.cat(logits)


@pytest.mark.parametrize("weight_format", ["float32", "int4_g32"])
@pytest.mark.parametrize("policy", ["lru", "static"])
def test_logits_are_those_without_a_tier(engine, policy, weight_format):
    """Both formats hold nano's int4 weights exactly, so only the order of float32 sums differs (seen: 2e-5)."""
    engine.use_plan(None)
    alone = logits_of(engine)
    everything = [(layer, expert) for layer in range(6) for expert in range(48)] if policy == "static" else []
    tier = engine.use_plan(
        plan_of(engine, policy, slots_per_layer=48, resident=everything, weight_format=weight_format), late="wait"
    )
    beside = logits_of(engine)
    report = tier.report()
    assert report.hits > 0
    assert (report.misses == 0) == (policy == "static")
    torch.testing.assert_close(beside, alone, atol=1e-4, rtol=0)
    engine.use_plan(None)
    assert torch.equal(logits_of(engine), alone)


def test_slots_hold_their_experts_in_the_end(engine):
    tier, trace = run_live(engine, plan_of(engine, "lru", resident=[(0, 3)], weight_format="bf16"))
    assert_live_equals_simulated(tier, trace)
    held = np.argwhere(tier.resident)
    assert len(held) == 6 * 7
    for layer, expert in held[::5].tolist():
        routed = engine.routed[layer]
        gate, up, down = unpack_expert(home_block(routed, expert), routed.layout)
        gate_up, got_down = tier.slot_weights(layer, expert)
        expected = torch.from_numpy(np.concatenate([gate, up])).bfloat16().float()
        torch.testing.assert_close(gate_up, expected, atol=0, rtol=0)
        torch.testing.assert_close(got_down, torch.from_numpy(down).bfloat16().float(), atol=0, rtol=0)


def test_late_copies_run_from_home_and_are_counted(engine, monkeypatch):
    """No copy ever begins: every hit is late, the decisions are the same, and so are the results, bit for bit."""
    engine.use_plan(None)
    alone = logits_of(engine)
    may = threading.Event()
    tier = engine.use_plan(plan_of(engine, "lru"), keep_log=True)
    copy = tier._copies._copy
    monkeypatch.setattr(tier._copies, "_copy", lambda job: may.wait(60) and copy(job))
    with record(engine) as trace:
        beside = logits_of(engine)
    may.set()
    assert torch.equal(beside, alone)
    requests = tier.requests
    assert (requests[:, LATE] == requests[:, HITS]).all()
    assert requests[:, LATE].sum() > 0
    _, report = assert_live_equals_simulated(tier, trace)
    assert report.num_superseded > 0


def test_a_tier_on_paper_decides_and_changes_no_bit(engine):
    """Every decision, no copy: results without a tier, counts and log of the simulator."""
    engine.use_plan(None)
    alone = logits_of(engine)
    tier = engine.use_plan(plan_of(engine, "prefetch_previous", resident=[(0, 3)]), late="never", keep_log=True)
    with record(engine) as trace:
        assert torch.equal(logits_of(engine), alone)
    simulated, report = simulate(trace, tier.plan, log=True, progress=False), tier.report()
    np.testing.assert_array_equal(tier.requests, simulated.counts.reshape(-1, 8))
    np.testing.assert_array_equal(tier.log, simulated.log)
    np.testing.assert_array_equal(tier.resident, simulated.state.resident > 0)
    assert (report.late, report.num_copied, report.num_initial_copies, report.link_bytes) == (0, 0, 0, 0)
    assert report.reads_per_layer_step == simulated.reads_per_layer_step
    assert "on paper" in str(tier)
    with pytest.raises(ValueError, match="a tier on paper"):
        tier.slot_weights(0, 3)


def test_a_failed_copy_stops_the_engine_until_it_gets_a_plan(engine, monkeypatch):
    tier = engine.use_plan(plan_of(engine, "lru"))

    def fail(job):
        raise OSError("the link is down")

    monkeypatch.setattr(tier._copies, "_copy", fail)
    with pytest.raises(CopyError, match="OSError: the link is down"):
        engine.generate(PROMPTS, 20, stop=())
    with pytest.raises(CopyError, match="give the engine its plan again"):
        engine.forward([1, 2])
    engine.use_plan(plan_of(engine, "lru"))
    engine.forward([1, 2])


def test_a_failed_step_is_counted_and_the_next_one_goes_on(engine):
    tier = engine.use_plan(plan_of(engine, "lru"))
    second, forward = engine.routed[1], engine.routed[1].forward
    second.forward = None
    try:
        with pytest.raises(TypeError):
            engine.forward([1, 2, 3])
    finally:
        second.forward = forward
    engine.forward([1, 2, 3])
    report = tier.report()
    assert (report.num_steps, report.num_failed_steps) == (2, 1)
    assert tier._session.clock == 12


def test_the_report_and_the_names(engine):
    tier, trace = run_live(engine, plan_of(engine, "lru"))
    report = tier.report()
    assert report.emulated
    assert report.summary()["emulated"] is True
    frame = report.to_frame()
    assert set(frame.phase) == {"prefill", "decode"}
    assert frame.distinct_hits.sum() == report.hits
    assert frame.emulated.all()
    assert report.link_bytes == report.num_copied * 4 * 3 * 128 * 256
    assert "emulated: yes" in repr(report)
    assert "<table>" in report._repr_html_()
    assert "emulated on the CPU, policy lru" in repr(engine)
    assert "fast tier" in trace.header.engine
    assert "emulated" in trace.header.engine
    assert "emulated" in engine.generate(PROMPTS[0], 2).fast_tier
    engine.use_plan(None)
    assert engine.generate(PROMPTS[0], 2).fast_tier is None


def changed(plan, **fields):
    return Plan.model_validate(plan.model_dump() | fields)


def test_what_cannot_be_carried_out_is_refused_and_the_tier_before_stays(engine):
    plan = plan_of(engine, "lru")
    before = engine.use_plan(plan)
    wrong_bytes = plan.model_dump()["format_of_tier"] | {"fast0": {"weight_format": "bf16", "expert_bytes": (17,) * 6}}
    wrong_format = plan.model_dump()["format_of_tier"] | {"fast0": {"weight_format": "Q4_0", "expert_bytes": (0,) * 6}}
    for other, message in (
        (changed(plan, policy={"name": "lru", "parameters": {"overflow": 1}}), "allocated once"),
        (changed(plan, policy={"name": "nobody"}), "plan asks for policy nobody"),
        (changed(plan, policy={"name": "static"}, keep_home=False), "keep_home false"),
        (changed(plan, model=plan.model.model_dump() | {"top_k": 5}), "top-5"),
        (changed(plan, format_of_tier=wrong_bytes), r"plan says \[17\] bytes"),
        (changed(plan, format_of_tier=wrong_format), "expected one of int4_g32, bf16, float32, got 'Q4_0'"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.use_plan(other)
    with pytest.raises(ValueError, match="late: expected one of home, wait, never"):
        engine.use_plan(plan, late="sometimes")
    assert engine.fast_tier is before
    engine.forward([1, 2, 3])


def test_a_plan_file_when_loading(tmp_path, engine):
    plan = plan_of(engine, "lru", resident=[(2, 2)])
    plan.save(tmp_path / "plan.json")
    with load(shipped("nano/model"), num_workers=1, activation="f32", plan=tmp_path / "plan.json") as other:
        assert np.argwhere(other.fast_tier.resident).tolist() == [[2, 2]]
        threads = threading.active_count()
    assert threading.active_count() < threads


def test_a_plan_of_another_home_format_is_refused(engine):
    plan = plan_of(engine, "lru")
    with load(shipped("nano/model"), num_workers=1, activation="int8") as other:
        with pytest.raises(ValueError, match="plan has float32 homes on node0; this engine's are int4_g32: re-plan"):
            other.use_plan(plan)
        home = plan.format_of_tier["node0"].model_copy(update={"weight_format": "unknown"})
        unnamed = plan.model_copy(update={"format_of_tier": plan.format_of_tier | {"node0": home}})
        with pytest.raises(ValueError, match=r"plan says \[393216\] bytes for an expert on node0; .* take 55296"):
            other.use_plan(unnamed)
