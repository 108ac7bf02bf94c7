"""Misses of single experts against an LRU written out, and their sum against the curve of all."""

import numpy as np
import pytest

import moelab
from moelab import NO_EXPERT, Phase
from moelab.analysis import miss_ratio_curve
from moelab.analysis.expert_miss_ratio import expert_miss_ratio
from tests.seeded_traces import seeded_trace


def naive(trace, slots, phase):
    """(uses, misses) [L, E] of an LRU of ``slots`` in each layer, one token at a time."""
    shape = (trace.header.num_layers, trace.header.num_experts)
    uses, misses, held = np.zeros(shape, int), np.zeros(shape, int), [[] for _ in range(shape[0])]
    for token in range(trace.num_tokens):
        for layer in range(shape[0]):
            mine = [int(e) for e in trace.experts[token, layer] if e != NO_EXPERT]
            if phase is None or trace.tokens.phase[token] == phase:
                for expert in mine:
                    uses[layer, expert] += 1
                    misses[layer, expert] += expert not in held[layer]
            kept = [e for e in held[layer] if e not in mine]
            held[layer] = (kept + mine)[-slots:] if slots else []
    return uses, misses


@pytest.mark.parametrize("seed", range(4))
def test_each_expert_equals_an_lru_written_out(seed):
    trace = seeded_trace(seed, prefill_tokens=0, unrouted=0.1)
    got = expert_miss_ratio(trace)
    for slots in range(3, 13):  # a token has 3 experts: below, no stack order
        uses, misses = naive(trace, slots, None)
        assert (got.uses == uses).all()
        expected = np.where(uses > 0, misses / np.maximum(uses, 1), np.nan)
        np.testing.assert_allclose(got.at(slots), expected)
        chosen = np.random.default_rng(seed).random(uses.shape) < 0.3
        assert got.curve(chosen)[slots] == pytest.approx(misses[chosen].sum() / uses[chosen].sum())


@pytest.mark.parametrize("phase", [None, "decode", "prefill"])
def test_all_together_are_the_curve_of_all(phase):
    trace = seeded_trace(6, batch=3)
    got, curve = expert_miss_ratio(trace, phase=phase), miss_ratio_curve(trace, phase=phase)
    np.testing.assert_allclose(got.curve(), curve.miss_ratio_per_request())
    one_layer = np.zeros(got.shape, bool)
    one_layer[1] = True
    np.testing.assert_allclose(got.curve(one_layer), 1 - curve.hits_per_request[1] / curve.uses_per_request[1])
    assert (got.exact_from == curve.exact_from).all()


def test_decode_after_prompts_is_close_to_the_simulated_lru():
    """Below the largest set nothing is exact; how far off stands in the module."""
    trace = moelab.open_trace(moelab.shipped("nano/capture")).load(slice(0, 4000))
    got = expert_miss_ratio(trace, phase="decode")
    swept = moelab.sweep(trace, ["lru"], [4, 8, 20, 30], phase="decode", progress=False).to_frame()
    assert got.exact_from.max() == 48
    np.testing.assert_allclose(got.curve()[swept.slots], 1 - swept.hit_rate_per_request, atol=0.002)


def test_what_has_no_answer():
    trace = seeded_trace(0, num_experts=40).phase(Phase.DECODE)
    got = expert_miss_ratio(trace)
    assert np.isnan(got.at(4)[got.uses == 0]).all()
    assert np.isnan(got.curve(got.uses == 0)).all()
    with pytest.raises(ValueError, match="expected 0 to 40"):
        got.at(41)
    with pytest.raises(ValueError, match=r"expected layers x experts \(3, 40\)"):
        got.curve(np.ones((2, 2)))
