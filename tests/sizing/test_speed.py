"""The fit against an independent one, its gate, and that predictions behave: units, monotone, bounded."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from moelab.domain.model import ModelSpec
from moelab.sizing.losses import loss_table
from moelab.sizing.outside_points import OTHER_FAMILIES, OTHER_FAMILY_POINTS
from moelab.sizing.recipes import recipe
from moelab.sizing.speed import LOSSES, MODES, ablation, fit, fit_points, speed_fit, with_bandwidth
from moelab.sizing.validation_points import VALIDATION_POINTS, ValidationPoint

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models" / "validation_points.json"


@pytest.mark.skipif(not SHARED.is_file(), reason="shared folder absent")
def test_points_equal_the_shared_ones():
    shared = {row["id"]: row for row in json.loads(SHARED.read_text())}
    assert set(shared) == {point.id for point in VALIDATION_POINTS}
    for point in VALIDATION_POINTS:
        row = shared[point.id]
        assert point.bandwidth_gb_per_s == row["bw_gbs"]
        assert (point.mode, point.cpu_gb_per_token) == (row["mode"], row["cpu_bytes_per_tok_gb"])
        assert point.tok_per_s == row["published_tok_s"]
        if row["upper_bound_tok_s"] is not None:
            assert point.ceiling_tok_per_s == pytest.approx(row["upper_bound_tok_s"], rel=0.005)


def test_every_point_has_a_source_and_its_bytes_follow_from_the_architecture():
    for point in VALIDATION_POINTS:
        assert point.source
        assert point.bandwidth_kind
        spec = ModelSpec.preset(point.model)
        name = {"Q4_K_M": "Q4_K_M", "native int4": "native"}.get(point.weights)
        if name and point.mode == "hybrid":
            each = recipe(name).expert_bytes(spec)
            top_k = spec.num_experts_per_tok
            # 4.85 bits nominal there, the rule's own mixture here
            assert point.cpu_gb_per_token * 1e9 == pytest.approx(spec.num_moe_layers * top_k * each, rel=0.01)


def test_leave_one_out_errors_keep_the_gate():
    """The issue's gate: median at most 8% on the hybrid points that carry a bandwidth."""
    hybrid = speed_fit("hybrid")
    assert len(hybrid.points) == 11
    assert hybrid.median_error <= 0.08
    assert hybrid.mean_error <= 0.16
    assert 0 < hybrid.eta <= 1
    cpu = speed_fit("cpu")
    assert len(cpu.points) == 6
    assert cpu.median_error > hybrid.median_error  # it is worse, and must be shown so


@pytest.mark.parametrize("mode", MODES)
def test_fit_against_a_search(mode):
    points = with_bandwidth(mode)

    def loss(parameters, chosen):
        eta, t0_ms = parameters
        if not 0 < eta <= 1 or t0_ms < 0:
            return 1e9
        fixed = t0_ms / 1e3 / 61
        errors = [
            (p.cpu_gb_per_token / (eta * p.bandwidth_gb_per_s) + fixed * p.num_layers) * p.tok_per_s - 1 for p in chosen
        ]
        return float(np.dot(errors, errors))

    for chosen in [points, *(points[:i] + points[i + 1 :] for i in range(3))]:
        eta, t0_s = fit_points(chosen)
        starts = [(0.99, 30.0), (0.6, 60.0), (0.3, 10.0)]
        best = min(minimize(loss, start, (chosen,), method="Nelder-Mead", tol=1e-12).fun for start in starts)
        assert loss((min(eta, 1.0), 1e3 * t0_s), chosen) <= best * (1 + 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_left_out_predictions_have_not_seen_their_point(mode):
    points = list(with_bandwidth(mode))
    base = speed_fit(mode)
    changed = points.copy()
    p = points[2]
    changed[2] = ValidationPoint(
        p.id, p.model, p.weights, p.hardware, p.bandwidth_gb_per_s, p.bandwidth_kind, p.mode, p.cpu_gb_per_token,
        3 * p.tok_per_s, p.source, "", p.num_layers,
    )  # fmt: skip
    again = fit(changed, mode)
    assert again.left_out[2] == pytest.approx(base.left_out[2], rel=1e-9)
    assert again.left_out[0] != pytest.approx(base.left_out[0], rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 1.0), st.floats(0.001, 0.2), st.integers(0, 2**32 - 1), st.sampled_from(LOSSES))
def test_exact_points_give_their_parameters_back(eta, t0_s, seed, loss):
    rng = np.random.default_rng(seed)
    points = []
    for i in range(6):
        bandwidth, size = float(rng.uniform(50, 2000)), float(rng.uniform(2, 40))
        layers = int(rng.integers(16, 100))
        rate = 1 / (size / (eta * bandwidth) + t0_s * layers / 61)
        points.append(ValidationPoint(i, "m", "w", "h", bandwidth, "made up", "hybrid", size, rate, "test", "", layers))
    one = fit(points, "hybrid", loss)
    assert one.eta == pytest.approx(eta, rel=1e-3)
    assert one.t0_s == pytest.approx(t0_s, rel=1e-3)
    assert one.median_error < 1e-3


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(MODES), st.floats(1e8, 1e11), st.floats(20, 5000), st.floats(1.0, 10.0), st.integers(1, 64),
)  # fmt: skip
def test_predictions_are_monotone_and_ordered(mode, num_bytes, bandwidth, factor, batch):
    one = speed_fit(mode)
    here = one.predict(num_bytes, bandwidth, batch=batch)
    low, high = here.interval_tok_per_s
    assert 0 < low <= here.tok_per_s <= high
    assert one.predict(num_bytes, bandwidth * factor, batch=batch).tok_per_s >= here.tok_per_s
    assert one.predict(num_bytes * factor, bandwidth, batch=batch).tok_per_s <= here.tok_per_s
    assert here.tok_per_s <= batch / one.t0_s
    assert here.tok_per_s == pytest.approx(batch * one.predict(num_bytes, bandwidth).tok_per_s)
    assert here.tok_per_s == pytest.approx(batch / one.token_s(num_bytes, bandwidth))
    capped = one.predict(num_bytes, bandwidth, ceiling_tok_per_s=low / batch)
    assert capped.tok_per_s == capped.interval_tok_per_s[1] == pytest.approx(low / batch)


def test_the_interval_holds_as_many_points_as_it_says():
    """By construction every left-out point lies within the range of the others' ratios, but for the two extremes."""
    for mode in MODES:
        one = speed_fit(mode)
        ratios = np.sort(one.ratios)
        others = [np.delete(ratios, i) for i in range(len(ratios))]
        inside = [rest.min() <= r <= rest.max() for r, rest in zip(ratios, others, strict=True)]
        assert sum(inside) == len(ratios) - 2
        assert one.coverage == pytest.approx((len(ratios) - 1) / (len(ratios) + 1))


def test_nothing_is_hidden():
    frame = loss_table()
    assert set(frame["mode"]) == set(MODES)
    assert len(frame) == len(MODES) * (len(LOSSES) + 1)
    alone = frame[(frame["mode"] == "hybrid") & (frame["loss"] == "bandwidth alone")].iloc[0]
    affine = frame[(frame["mode"] == "hybrid") & (frame["loss"] == "relative time")].iloc[0]
    assert alone["median_error"] > 2 * affine["median_error"]
    residuals = speed_fit("hybrid").to_frame()
    assert len(residuals) == 11
    assert (residuals["source"] != "").all()
    assert np.median(np.abs(residuals["error"])) == speed_fit("hybrid").median_error


def test_refusals():
    with pytest.raises(ValueError, match="mode is 'gpu', expected one of hybrid, cpu"):
        with_bandwidth("gpu")
    with pytest.raises(ValueError, match="three or more"):
        fit(with_bandwidth("cpu")[:2], "cpu")
    with pytest.raises(ValueError, match="loss is 'best'"):
        fit_points(with_bandwidth("cpu"), "best")
    with pytest.raises(ValueError, match=r"bandwidth is 0 GB/s"):
        speed_fit("cpu").predict(1e9, 0)


def test_ablation_separates_the_terms():
    """Facts section 4: 177 GB/s (0.576) and 44.6 ms on one socket, 349 (0.568) and 46.4 on two."""
    one, two = ablation()[1], ablation()[2]
    assert one == (pytest.approx(0.576, abs=0.002), pytest.approx(0.0446, abs=0.0003))
    assert two == (pytest.approx(0.568, abs=0.002), pytest.approx(0.0464, abs=0.0003))


def test_other_families_have_their_own_points_and_do_not_touch_the_first_fit():
    assert {point.mode for point in VALIDATION_POINTS} == {"hybrid", "cpu"}
    assert {point.mode for point in OTHER_FAMILY_POINTS} == {OTHER_FAMILIES}
    assert fit([p for p in VALIDATION_POINTS if p.mode == "hybrid" and p.bandwidth_gb_per_s], "hybrid").eta == (
        speed_fit("hybrid").eta
    )
    other = speed_fit(OTHER_FAMILIES)
    assert other.median_error < 0.25
    # What was done before: the first fit's 59 ms for all. Its errors on these points are several times as large.
    first = speed_fit("hybrid")
    before = [
        first.predict(1e9 * p.cpu_gb_per_token, p.bandwidth_gb_per_s).tok_per_s / p.tok_per_s - 1 for p in other.points
    ]
    assert np.median(np.abs(before)) > 2 * other.median_error


def test_rates_found_after_the_fit_are_shown_with_their_errors():
    from moelab.sizing.outside_points import CHECK_POINTS
    from moelab.sizing.published import check_table

    assert not {point.id for point in CHECK_POINTS} & {point.id for point in speed_fit("hybrid").points}
    frame = check_table().set_index("id")
    for point in CHECK_POINTS:  # by hand, from the two fitted numbers of docs/sizing.md
        by_hand = 1 / (point.cpu_gb_per_token / (0.9397 * point.bandwidth_gb_per_s) + 0.05916)
        assert frame.loc[point.id, "predicted_tok_per_s"] == pytest.approx(by_hand, rel=1e-3)
    assert (frame["inside"] == "yes").sum() == 3  # of four, where 83% are claimed
    assert (frame["error"] < 0).all()  # engines got faster: docs/sizing.md says so


def test_bytes_of_other_families_follow_from_the_architecture():
    names = {"FP8": "fp8", "bf16": "bf16", "mxfp4": "native"}
    shares = {105: 1 - 28 / 128}
    for point in OTHER_FAMILY_POINTS:
        if point.model == "GLM-4.5-Air":  # no preset: 45 MoE layers, top-8 of experts 3 x 4096 x 1408
            assert point.cpu_gb_per_token == pytest.approx(45 * 8 * 3 * 4096 * 1408 * 2 / 1e9, rel=0.01)
            continue
        spec = ModelSpec.preset(point.model)
        assert point.num_layers == spec.num_hidden_layers
        routed = spec.num_moe_layers * spec.num_experts_per_tok * recipe(names[point.weights]).expert_bytes(spec)
        assert point.cpu_gb_per_token * 1e9 == pytest.approx(routed * shares.get(point.id, 1), rel=0.01)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MODES), st.floats(1e8, 1e11), st.floats(20, 5000), st.integers(1, 120), st.integers(1, 60))
def test_layers_bring_their_share_of_what_is_fixed(mode, num_bytes, bandwidth, layers, more):
    one = speed_fit(mode)
    here, deeper = (one.token_s(num_bytes, bandwidth, n) for n in (layers, layers + more))
    assert deeper - here == pytest.approx(more * one.t0_s / 61)
    assert one.predict(num_bytes, bandwidth, num_layers=layers).tok_per_s == pytest.approx(1 / here)
