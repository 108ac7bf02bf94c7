"""Prefill and computing: an independent count of flops and bytes, the published rates, monotone, units."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.sizing import size
from moelab.sizing.computing import TILE_TOKENS, UNITS, compute_fit, core_gflop_per_s, separate_terms
from moelab.sizing.places import need_of, place
from moelab.sizing.prefill import prefill
from moelab.sizing.prefill_points import OVER_LINK, PREFILL_POINTS
from moelab.sizing.recipes import recipe
from moelab.sizing.speed import ablation


def prefill_of(name: str, machine: str, prompt: int, weights: str = "native", **options):
    spec, document, chosen = ModelSpec.preset(name), Machine.preset(machine), recipe(weights)
    places = place(need_of(spec, chosen, prompt), document)
    return prefill(spec, chosen, document, places, prompt, **options)


def test_ceilings_count_bytes_alone():
    one = prefill_of("kimi-k2.6", "forge-moe-gen4+rtx-5090", 32768)
    assert one.read_bytes == pytest.approx(8 * 571e9, rel=0.001)  # every expert, eight times
    assert one.ceiling_tok_per_s == pytest.approx(32768 / (one.read_bytes / 614.4e9))
    assert one.link_ceiling_tok_per_s == pytest.approx(one.ceiling_tok_per_s * 63 / 614.4)
    assert prefill_of("kimi-k2.6", "forge-moe-gen4", 1).read_bytes == pytest.approx(11.89e9, rel=0.001)
    with pytest.raises(ValueError, match="expected both at least 1"):
        prefill_of("kimi-k2.6", "forge-moe-gen4", 1, chunk=0)


def test_the_sum_by_hand():
    """K2.6 on Gen 4, one chunk of 4,096, counted here from the config alone."""
    one = prefill_of("kimi-k2.6", "forge-moe-gen4", 4096)
    flops = 2 * 60 * 8 * 3 * 7168 * 2048
    eta, fixed_s = separate_terms("hybrid")
    seconds = 570.76e9 / (eta * 614.4e9) + fixed_s + 4096 * flops / (64 * compute_fit("amx").gflop_per_core * 1e9)
    assert one.tok_per_s == pytest.approx(4096 / seconds, rel=1e-3)
    assert one.unit == "amx"
    assert prefill_of("kimi-k2.6", "1x-epyc-9005-ddr5-6400+rtx-5090", 4096).unit == "vector"


@pytest.mark.parametrize("unit", UNITS)
def test_rates_of_computing_against_a_plain_count(unit):
    """What each page implies when everything but multiplying is free: a lower bound of the fitted rate, within two."""
    fit = compute_fit(unit)
    plain = []
    for point in fit.points:
        spec = ModelSpec.preset(point.model)
        params = spec.num_moe_layers * point.top_k * 3 * spec.expert_hidden_size * spec.moe_intermediate_size
        params = params * point.cpu_share + (spec.always_active_params if point.mode == "cpu" else 0)
        plain.append(2e-9 * params * point.tok_per_s / point.num_cores)
    assert max(plain) > fit.gflop_per_core * 0.5
    assert np.median(plain) < fit.gflop_per_core < 2 * np.median(plain)
    assert fit.median_error < 0.15
    assert fit.mean_error < 0.2


def test_each_point_is_left_out_of_its_prediction():
    fit = compute_fit("vector")
    assert len(fit.points) >= 5
    everything = [1 / ratio for ratio in fit.ratios]
    assert not np.allclose(everything, 1)
    assert fit.ratios.min() < 1 < fit.ratios.max()
    assert {point.unit for point in PREFILL_POINTS} == set(UNITS)
    assert all(point.source for point in (*PREFILL_POINTS, *OVER_LINK))


def test_tiles_take_sixteen_tokens():
    full = compute_fit("amx").gflop_per_core
    assert core_gflop_per_s("amx", TILE_TOKENS) == full == core_gflop_per_s("amx", 100)
    assert core_gflop_per_s("amx", 1.4) == core_gflop_per_s("vector", 1.4) == compute_fit("vector").gflop_per_core
    with pytest.raises(ValueError, match="unit is 'gpu', expected one of vector, amx"):
        compute_fit("gpu")


def test_terms_are_those_of_the_ablation():
    (one, t_one), (two, t_two) = ablation().values()
    assert separate_terms("hybrid") == (pytest.approx((one + two) / 2), pytest.approx((t_one + t_two) / 2))
    assert separate_terms("hybrid", 122)[1] == pytest.approx(2 * separate_terms("hybrid")[1])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["kimi-k2.6", "qwen3-235b-a22b", "gpt-oss-120b", "glm-4.6"]),
    st.sampled_from(["forge-moe-gen6", "2x-epyc-9005-ddr5-6400", "2x-xeon-gen6-mrdimm-8800+h200"]),
    st.integers(1, 40000), st.floats(1.1, 4.0),
)  # fmt: skip
def test_prefill_is_bounded_and_grows_with_the_machine(name, machine, prompt, factor):
    spec, document, chosen = ModelSpec.preset(name), Machine.preset(machine), recipe("native")
    places = place(need_of(spec, chosen, min(prompt, 4096)), document)
    if places.mode == "fast":
        return
    one = prefill(spec, chosen, document, places, prompt)
    low, high = one.interval_tok_per_s
    assert 0 < low <= one.tok_per_s <= high <= one.ceiling_tok_per_s * (1 + 1e-9)
    nodes = tuple(
        node.model_copy(update={"read_gb_per_s": {t: r * factor for t, r in node.read_gb_per_s.items()}})
        for node in document.nodes
    )
    faster = prefill(spec, chosen, document.model_copy(update={"nodes": nodes}), places, prompt)
    assert faster.tok_per_s >= one.tok_per_s
    slower = prefill(spec, chosen, document.model_copy(update={"matrix_unit": None}), places, prompt)
    assert slower.tok_per_s <= one.tok_per_s * (1 + 1e-9)


def test_prefill_stands_in_the_sizing():
    fields = size("kimi-k2.6", "forge-moe-gen4").to_dict()
    low, high = fields["predicted_prefill_tok_per_s_interval"]
    assert low < fields["predicted_prefill_tok_per_s"] < high < fields["prefill_ceiling_tok_per_s"]
    assert fields["prefill_leave_one_out_median_error"] == compute_fit("amx").median_error
    assert size("kimi-k2.6", "desktop-ddr5-6000").to_dict()["predicted_prefill_tok_per_s"] is None
    assert "published" in size("kimi-k2.6", "forge-moe-gen4").summary()["predicted prefill"]
