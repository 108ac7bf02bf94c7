"""one_node by hand: K2.6 at 200 GB/s, rescaling, refusals."""

import numpy as np
import pytest

from moelab.cost_model import one_node


def test_k2_token_by_hand():
    """60 layers x 8 experts x 24.77 MB at 200 GB/s, kernels at 0.8 of it, 20 us per layer."""
    prediction = one_node.predict(
        read_bytes=480 * 24.77e6 * 10,
        num_layer_steps=600,
        num_tokens=10,
        read_gb_per_s=200,
        efficiency=0.8,
        layer_overhead_s=20e-6,
    )
    expected_ms = 480 * 24.77e6 / (200e9 * 0.8) * 1e3 + 60 * 0.02
    assert prediction["predicted_ms_per_token"] == pytest.approx(expected_ms)
    assert prediction["predicted_tok_per_s"] == pytest.approx(1e3 / expected_ms)
    per_layer = one_node.layer_step_s(
        np.full(60, 8 * 24.77e6), read_gb_per_s=200, efficiency=0.8, layer_overhead_s=20e-6
    )
    assert per_layer.shape == (60,)
    assert per_layer.sum() * 1e3 == pytest.approx(expected_ms)


def test_twice_the_rate_halves_all_but_the_overhead():
    work = {"read_bytes": 1e9, "num_layer_steps": 100, "num_tokens": 4, "efficiency": 0.9, "layer_overhead_s": 1e-5}
    slow = one_node.predict(read_gb_per_s=30, **work)["predicted_ms_per_token"]
    fast = one_node.predict(read_gb_per_s=60, **work)["predicted_ms_per_token"]
    overhead_ms = 25 * 1e-5 * 1e3
    assert fast - overhead_ms == pytest.approx((slow - overhead_ms) / 2)


def test_refusals():
    with pytest.raises(ValueError, match="read rate is 0 GB/s"):
        one_node.layer_step_s(1, read_gb_per_s=0)
    with pytest.raises(ValueError, match="efficiency is -1"):
        one_node.layer_step_s(1, read_gb_per_s=1, efficiency=-1)
    with pytest.raises(ValueError, match="num_tokens is 0"):
        one_node.predict(read_bytes=1, num_layer_steps=1, num_tokens=0, read_gb_per_s=1)
