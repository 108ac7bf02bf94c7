"""Lossy modes: exact at nothing, equal to a naive reference in torch, fewer reads with the bias, and always said."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from moelab import Lossy, load, record, shipped
from moelab.domain.trace import Phase
from moelab.engine.sampling import Sampling
from moelab.kernels import isa_table
from tests.engine.fast_tier.nano_runs import PROMPTS, assert_live_equals_simulated, plan_of, run_live
from tests.engine.lossy_reference import NaiveLossy, logits_of_tokens
from tests.engine.tiny_models import save_hf, tiny_hf

NATIVE = any(row.supported and row.isa != "numba" for row in isa_table())
PATHS = ["torch"] + ["float32"] * NATIVE  # dense_weights: prefill and decode by torch, or the native list
NOTHING = Lossy(prefill=True)
TOLERANCE = 2e-5


def decode(engine, token_ids, phase=Phase.DECODE):
    """[T, vocab]: a sequence fed one token at a time."""
    cache, sequence = engine.new_cache(1), engine.new_sequence(token_ids, 1, Sampling(), ())
    rows = [engine.step(torch.tensor([[t]]), cache, 0, [sequence], phase, "last") for t in token_ids]
    engine.end_request()
    return torch.cat(rows).flatten(0, 1)


def tokens(count, seed, vocab=97):
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module", params=PATHS)
def nano(request):
    with load(shipped("nano/model"), num_workers=1, dense_weights=request.param) as engine:
        yield engine


@pytest.mark.parametrize("with_tier", [False, True])
def test_nothing_lossy_is_exact_to_the_bit(nano, with_tier):
    """Through the same code as with a bias: choice and gate weights of every token are made anew."""
    nano.use_lossy(None)
    plan = plan_of(nano, "static", resident=[(layer, e) for layer in range(6) for e in range(7)]) if with_tier else None
    nano.use_plan(plan, late="wait")
    ids = tokens(25, 1, 3000)
    exact = torch.cat((nano.forward(ids), decode(nano, ids)))
    nano.use_lossy(NOTHING)
    assert torch.equal(torch.cat((nano.forward(ids), decode(nano, ids))), exact)
    # Where only decode is lossy, prefill is exact, also a prefill of one token, which runs the list of decode.
    nano.use_lossy(Lossy(num_deferred=2))
    assert torch.equal(nano.forward(ids), exact[:25])
    assert torch.equal(decode(nano, ids, Phase.PREFILL), exact[25:])
    assert not torch.equal(decode(nano, ids), exact[25:])
    nano.use_lossy(None)
    assert torch.equal(decode(nano, ids), exact[25:])
    nano.use_plan(None)


CASES = {
    "defer one": ({}, {"deferred": 1}),
    "defer all, gate weights not normalised": ({"norm_topk_prob": False}, {"deferred": 3}),
    "defer, dense layers first": ({"first_k_dense_replace": 2, "num_hidden_layers": 5}, {"deferred": 2}),
    "bias": ({}, {"bias": 0.4}),
    "bias beside groups": ({"n_group": 4, "topk_group": 2}, {"bias": 0.3, "protected": 0}),
    "bias, gate weights not normalised": ({"norm_topk_prob": False, "num_experts_per_tok": 4}, {"bias": 0.5}),
    "large bias, two protected": ({}, {"bias": 5.0, "protected": 2}),
    "bias and deferral": ({"num_experts_per_tok": 4}, {"bias": 0.5, "protected": 2, "deferred": 2}),
}


@pytest.mark.parametrize("dense_weights", PATHS)
@pytest.mark.parametrize("name", CASES)
def test_equal_to_a_naive_reference(name, dense_weights, tmp_path):
    """LRU of five slots a layer, one token after the other; same experts, same misses, logits within rounding."""
    changes, mode = CASES[name]
    model, ids = tiny_hf(5, **({"num_hidden_layers": 4} | changes)), tokens(30, 7)
    folder = save_hf(model, tmp_path)
    exact = logits_of_tokens(model, ids)
    naive = NaiveLossy(model, slots=5, **mode)
    expected = logits_of_tokens(model, ids)
    assert (expected - exact).abs().max() > 100 * TOLERANCE, "the case changes nothing"
    lossy = Lossy(mode.get("bias", 0.0), mode.get("protected", 1), mode.get("deferred", 0))
    with load(folder, num_workers=1, activation="f32", dense_dtype="float32", dense_weights=dense_weights) as engine:
        tier = engine.use_plan(plan_of(engine, "lru", slots_per_layer=5), late="wait")
        engine.use_lossy(lossy)
        with record(engine) as trace:
            got = decode(engine, ids)
        assert tier.report().misses == naive.read
        whole = None
        if not lossy.cache_bias:  # then no token depends on how many came before
            engine.use_lossy(replace(lossy, prefill=True))
            whole = engine.forward(ids)
    routed = np.array(naive.routed).reshape(len(ids), len(naive.layers), -1)
    np.testing.assert_array_equal(trace.experts, routed)
    bound = TOLERANCE * max(1.0, float(expected.abs().max()) / 2)
    assert (got - expected).abs().max() <= bound
    assert whole is None or (whole - expected).abs().max() <= bound


def test_reads_drop_with_the_bias_and_end_without_a_bound(nano):
    """With nothing protected and no less than K residents, a bias above all ranges leaves no miss of a single token."""
    ids, misses = tokens(60, 3, 3000), {}
    for bias in (0.0, 0.2, 100.0):
        nano.use_lossy(None)
        nano.use_plan(plan_of(nano, "lru", slots_per_layer=8), keep_log=True)
        nano.use_lossy(Lossy(bias, num_protected=0))
        decode(nano, ids)
        misses[bias] = nano.fast_tier.report().misses
    top_k = nano.spec.num_experts_per_tok
    assert misses[0.0] > misses[0.2] > misses[100.0]
    assert misses[100.0] == top_k * 6, "the first token alone"
    nano.use_lossy(None)
    nano.use_plan(None)


@pytest.mark.parametrize("policy", ["lru", "mrs"])
def test_a_recorded_lossy_run_replays(nano, policy):
    """The trace holds what was chosen in the end, so that the policy decides the same."""
    plan = plan_of(nano, policy)
    nano.use_plan(plan)
    nano.use_lossy(Lossy(0.3, num_deferred=1, prefill=True))
    before = nano.fast_tier
    tier, trace = run_live(nano, plan)
    assert tier is not before
    assert_live_equals_simulated(tier, trace)
    assert "lossy in prefill and decode: cache-aware routing with bias 0.3" in trace.header.engine
    nano.use_lossy(None)
    nano.use_plan(None)


def test_what_is_wrong_is_refused_and_what_is_lossy_is_said(nano):
    nano.use_plan(None)
    for wrong, message in (
        ({"cache_bias": -0.1}, "cache_bias is -0.1, expected 0"),
        ({"cache_bias": float("inf")}, "cache_bias is inf"),
        ({"num_deferred": -1}, "num_deferred is -1, expected 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            Lossy(**wrong)
    with pytest.raises(ValueError, match="num_deferred is 9, expected at most"):
        nano.use_lossy(Lossy(num_deferred=9))
    with pytest.raises(ValueError, match=r"cache_bias is 0\.5 without a fast tier"):
        nano.use_lossy(Lossy(0.5))
    assert nano.lossy is None
    assert "results: exact" in repr(nano)
    nano.use_plan(plan_of(nano, "lru"))
    nano.use_lossy(Lossy(0.5, num_deferred=1))
    with pytest.raises(ValueError, match="without a fast tier"):
        nano.use_plan(None)
    said = "lossy in decode: cache-aware routing with bias 0.5, 1 protected, 1 deferred experts of a token"
    assert said in repr(nano)
    told = nano.generate(PROMPTS[0], 2).lossy
    assert told.startswith(f"{said}; cost in NLL not known: measured are")
    nano.use_lossy(None)
    nano.use_plan(None)
    assert nano.generate(PROMPTS[0], 2).lossy is None


def test_a_lossy_engine_from_the_start():
    with load(shipped("nano/model"), num_workers=1, lossy=Lossy(num_deferred=2)) as engine:
        assert engine.lossy == Lossy(num_deferred=2)
    with pytest.raises(ValueError, match="without a fast tier"):
        load(shipped("nano/model"), num_workers=1, lossy=Lossy(0.5))
