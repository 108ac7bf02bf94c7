"""Shadows see what a trace would say: counts and states are those of simulate, and nothing of the engine changes."""

import numpy as np
import pytest

import moelab
from moelab import POLICIES, record, shadow, shipped, simulate
from tests.engine.fast_tier.nano_runs import PROMPTS, plan_of, run_live

ONLINE = [name for name, policy in POLICIES.items() if not policy.needs_next_use and name != "static"]


@pytest.fixture(scope="module")
def engine():
    with moelab.load(shipped("nano/model"), num_workers=1) as engine:
        yield engine


def test_every_policy_and_capacity_equals_simulate(engine):
    placed = plan_of(engine, "lru", slots=40, resident=[(0, 3), (5, 5)])
    candidates = shadow(engine, {"placed": placed}, policies=ONLINE, slots_per_layer=(4, 12), keep_log=True)
    with record(engine, scores=True, stale_gate=True) as trace, candidates as result:
        texts = engine.generate(PROMPTS, 5, batch_size=3, stop=())
        engine.generate(PROMPTS[1], 4, stop=())
    assert len(result.candidates) == 1 + 2 * len(ONLINE)
    assert result.num_requests == 5
    for candidate, row in zip(result.candidates, result.rows(), strict=True):
        # With a log in order of time: layer by layer the counters of some states run differently (decisions do not).
        simulated = simulate(trace, candidate.plan, log=True, progress=False)
        np.testing.assert_array_equal(np.array(candidate.steps), simulated.counts)
        assert candidate.session.state == simulated.state
        for name in ("reads_per_layer_step", "hit_rate_per_request", "hit_rate_per_routing"):
            assert row[name] == pytest.approx(getattr(simulated, name), rel=1e-12)
        assert row["home_bytes"] == pytest.approx(simulated.bytes_of_node["node0"])
        assert row["link_bytes"] == pytest.approx(simulated.bytes_of_link["fast0"])
        assert row["uploads"] == simulated.uploads
    for phase in ("prefill", "decode"):
        row, one = result.rows(phase)[0], simulate(trace, placed, phase=phase, progress=False)
        assert row["reads_per_layer_step"] == pytest.approx(one.reads_per_layer_step)
    assert engine.observers == []
    again = engine.generate(PROMPTS, 5, batch_size=3, stop=())
    assert [text.token_ids for text in texts] == [text.token_ids for text in again]


def test_intervals_are_over_requests(engine):
    prompts = [[7 * n + 5, 300 + 11 * n, 90 + n] for n in range(12)]
    with shadow(engine, policies=["lru"], slots_per_layer=8) as result:
        for prompt in prompts[:9]:
            engine.generate(prompt, 4, stop=())
        (few,) = result.rows()
        assert np.isnan(few["reads_per_layer_step_low"])
        assert "9 clusters: no interval" in repr(result)
        for prompt in prompts[9:]:
            engine.generate(prompt, 4, stop=())
    (row,) = result.rows()
    assert (row["requests"], row["clusters"]) == (12, 12)
    low, value, high = (row[f"reads_per_layer_step{end}"] for end in ("_low", "", "_high"))
    # By hand: requests drawn with replacement, reads over layer-steps, reflected.
    counts = np.array([each.sum((0, 1)) for each in result.candidates[0].of_request.values()])
    reads, steps = counts[:, [1, 2, 3]].sum(1), counts[:, 8]
    draws = np.random.default_rng(1).integers(12, size=(20_000, 12))
    quantiles = np.quantile(reads[draws].sum(1) / steps[draws].sum(1), (0.025, 0.975))
    assert value == pytest.approx(reads.sum() / steps.sum())
    assert low == pytest.approx(2 * value - quantiles[1], abs=0.15)
    assert high == pytest.approx(2 * value - quantiles[0], abs=0.15)
    assert low < high
    frame = result.to_frame()
    assert list(frame.candidate) == ["lru, 8 slots"]
    assert "reads per layer-step" in repr(result)
    assert "lru, 8 slots" in result._repr_html_()


def test_requests_that_share_steps_are_drawn_together(engine):
    """Twelve requests, three at a time: whichever joined another's batch belongs to its cluster."""
    prompts = [[7 * n + 5, 300 + 11 * n, 90 + n] for n in range(12)]
    with shadow(engine, policies=["lru"], slots_per_layer=8) as result:
        for first in range(0, 12, 3):
            engine.generate(prompts[first : first + 3], 4, batch_size=3, stop=())
    (row,) = result.rows()
    assert (row["requests"], row["clusters"]) == (12, 4)
    assert np.isnan(row["reads_per_layer_step_low"])
    seen = sorted(result.candidates[0].of_request)
    result.join([seen[0], seen[-1]])  # two batches become one
    assert result.rows()[0]["clusters"] == 3
    assert result.rows()[0]["reads_per_layer_step"] == row["reads_per_layer_step"]


def test_beside_a_live_tier_of_the_same_plan(engine):
    """The shadow of the plan that acts counts what the tier counts."""
    plan = plan_of(engine, "lru")
    with shadow(engine, {"same": plan}, keep_log=True) as result:
        tier, _ = run_live(engine, plan)
    live = tier.requests
    live[:, 7] = 0
    np.testing.assert_array_equal(np.concatenate(result.candidates[0].steps), live)
    engine.use_plan(None)


def test_what_it_refuses(engine):
    with pytest.raises(ValueError, match="no candidate"), shadow(engine):
        pass
    with pytest.raises(ValueError, match="is an oracle"), shadow(engine, policies=["min_bypass"], slots_per_layer=4):
        pass
    plan = plan_of(engine, "lru")
    with (
        pytest.raises(ValueError, match="got policies without slots_per_layer"),
        shadow(engine, {"p": plan}, policies=["lru"]),
    ):
        pass
    with (
        pytest.raises(ValueError, match="got slots_per_layer without policies"),
        shadow(engine, {"p": plan}, slots_per_layer=4),
    ):
        pass
    with shadow(engine, policies=["lru"], slots_per_layer=4) as result, pytest.raises(ValueError, match="phase is"):
        result.rows("warm")
