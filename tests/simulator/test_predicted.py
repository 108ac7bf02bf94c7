"""predict with deferral: hand-worked steps; only where a device computes beside the CPU, and only in decode."""

import numpy as np
import pytest

from moelab import Lossy, Machine, simulate
from moelab.planner import PLANNERS, empty
from tests.seeded_traces import seeded_trace

OVERHEAD_S = 2e-3


@pytest.fixture
def machine():
    """Reads of 1 GB/s at home; a device that reads and copies for next to nothing beside that."""
    plain = Machine.preset("desktop-ddr5-6000+rtx-4090")
    node = plain.nodes[0].model_copy(update={"read_gb_per_s": {8: 1.0}})
    fast = plain.fast_tiers[0].model_copy(update={"read_gb_per_s": 1e9, "link_gb_per_s": 1e9})
    return plain.model_copy(update={"nodes": (node,), "fast_tiers": (fast,), "layer_overhead_s": OVERHEAD_S})


def test_half_of_the_experts_run_beside_the_next_layer(machine):
    """Every use misses a slot that static keeps empty: each layer-step reads two experts of 1 MB, 2 ms like the rest.

    Exact, a token takes 4 layers x (2 + 2) ms. With one of two deferred, the CPU is 1 ms behind the first router, then
    always busy: 2 + 1 of the first layer, 1 beside the next dense path of 2, and so on; the last defers nothing.
    """
    trace = seeded_trace(1, num_layers=4, num_experts=8, top_k=2, num_requests=1, decode_tokens=5,
                         expert_bytes=(1_000_000,) * 4)  # fmt: skip
    plan = empty(trace.header, slots_per_layer=1, policy="static")
    exact = simulate(trace, plan, machine, phase="decode", progress=False)
    assert exact.prediction["predicted_ms_per_token"] == pytest.approx(16)
    result = simulate(trace, plan, machine, phase="decode", lossy=Lossy(num_deferred=1), progress=False)
    assert result.prediction["exact_ms_per_token"] == pytest.approx(16)
    assert result.prediction["predicted_ms_per_token"] == pytest.approx(3 * (2 + 1) + 2 + 2)
    assert result.prediction["predicted_tok_per_s"] == pytest.approx(1000 / 13)
    assert "1 deferred experts of a token" in result.summary()["lossy"]
    assert "open loop" not in result.summary()["lossy"]
    np.testing.assert_array_equal(result.counts, exact.counts)


def test_prefill_is_exact_unless_it_is_lossy_too(machine):
    trace = seeded_trace(2, num_layers=3, num_experts=8, top_k=2, expert_bytes=(1_000_000,) * 3)
    plan = empty(trace.header, slots_per_layer=1, policy="static")
    spare = simulate(trace, plan, machine, phase="prefill", lossy=Lossy(num_deferred=1), progress=False).prediction
    assert spare["predicted_ms_per_token"] == pytest.approx(spare["exact_ms_per_token"])
    both = Lossy(num_deferred=1, prefill=True)
    saved = simulate(trace, plan, machine, phase="prefill", lossy=both, progress=False).prediction
    assert saved["predicted_ms_per_token"] < saved["exact_ms_per_token"] == pytest.approx(spare["exact_ms_per_token"])


def test_nothing_to_compute_meanwhile_is_refused(machine):
    trace = seeded_trace(4, top_k=2, expert_bytes=(1_000_000,) * 3)
    tier, none = empty(trace.header, slots_per_layer=1), PLANNERS["mirror"](trace, nodes=1, score=False)
    for plan, where in ((tier, machine.model_copy(update={"fast_tiers": ()})), (none, machine)):
        with pytest.raises(ValueError, match=r"deferred experts was asked for; machine .* has no fast tier"):
            simulate(trace, plan, where, lossy=Lossy(num_deferred=1), progress=False)
    assert simulate(trace, tier, lossy=Lossy(num_deferred=1), progress=False).prediction is None


def test_more_than_a_token_has_is_refused(machine):
    trace = seeded_trace(3, top_k=2)
    with pytest.raises(ValueError, match="num_deferred is 3, expected at most 2"):
        simulate(trace, empty(trace.header, slots_per_layer=1), lossy=Lossy(num_deferred=3), progress=False)
