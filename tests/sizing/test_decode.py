"""Decode of one and many streams: the published batches, which fit is taken, and how batches behave."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec, presets
from moelab.sizing import size
from moelab.sizing.decode import fit_mode, is_of_the_points, measured_eta
from moelab.sizing.outside_points import BATCH_POINTS, OTHER_FAMILIES
from moelab.sizing.published import batch_table, size_of_batch
from moelab.sizing.speed import speed_fit


@pytest.mark.parametrize("point", BATCH_POINTS, ids=lambda point: point.model)
def test_published_batches_lie_in_the_interval_and_what_is_said_of_them_is_true(point):
    predicted = size_of_batch(point).prediction
    low, high = predicted.interval_tok_per_s
    assert low < point.tok_per_s < high
    assert predicted.tok_per_s == pytest.approx(point.model_tok_per_s, abs=0.06)
    assert abs(predicted.tok_per_s / point.tok_per_s - 1) < 0.3  # nothing was fitted to them
    assert predicted.coverage is None


def test_the_sum_of_a_batch_by_hand():
    """Point 201, counted here from the config alone: 184 of 384 experts at home, 36 tokens beyond the first."""
    one = size_of_batch(BATCH_POINTS[0])
    union = 384 * (1 - (1 - 8 / 384) ** 37)
    expert = 3 * 7168 * 2048
    home = union * 184 / 384 * 60 * expert * 4.5 / 8
    assert one.reads.home_bytes == pytest.approx(home, rel=0.001)
    flops = 36 * 60 * 8 * 184 / 384 * 2 * expert
    cache_s = one.reads.cache_bytes / (8 * 864e9)
    seconds = home / (0.572 * 614.4e9) + flops / (64 * 67.1e9) + 0.0455 + cache_s
    assert one.prediction.tok_per_s == pytest.approx(37 / seconds, rel=0.01)


def test_batch_table_names_its_pages():
    frame = batch_table()
    assert len(frame) == len(BATCH_POINTS)
    assert frame["source"].str.contains("ktransformers").all()
    assert (frame["error"].abs() < 0.3).all()


@pytest.mark.parametrize("name", [name for name in presets() if ModelSpec.preset(name).sizes_exact])
def test_which_fit_is_taken(name):
    spec = ModelSpec.preset(name)
    latent = name.startswith(("kimi", "deepseek", "glm-5"))
    assert fit_mode(spec, "hybrid") == ("hybrid" if latent else OTHER_FAMILIES)
    assert fit_mode(spec, "cpu") == "cpu"
    of_them = name.startswith(("kimi-k2", "deepseek-v3", "deepseek-r1")) and name != "deepseek-v3.2"
    assert is_of_the_points(spec, "cpu") is of_them


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["kimi-k2.6", "deepseek-v3", "qwen3-235b-a22b", "minimax-m2"]),
    st.sampled_from(["forge-moe-gen6+2x-h200", "2x-xeon-gen4-ddr5-4800+4x-h200", "2x-epyc-9005-ddr5-6400"]),
    st.integers(1, 60), st.integers(1, 60),
)  # fmt: skip
def test_more_streams_make_no_fewer_tokens_and_no_more_than_their_share(name, machine, batch, more):
    few, many = (size(name, machine, batch=n, context=512) for n in (batch, batch + more))
    if few.prediction is None or many.prediction is None:
        return
    one = size(name, machine, context=512).prediction
    assert many.prediction.tok_per_s >= one.tok_per_s * (1 - 1e-9)
    assert few.prediction.tok_per_s <= few.ceiling_tok_per_s * (1 + 1e-9)
    for sized in (few, many):
        low, high = sized.prediction.interval_tok_per_s
        assert low <= sized.prediction.tok_per_s <= high
    if batch > 1:  # both by the same terms: a step of more streams is no shorter
        assert (batch + more) / many.prediction.tok_per_s >= batch / few.prediction.tok_per_s * (1 - 1e-9)


def test_own_kernels_replace_eta_only_where_measured():
    preset = Machine.preset("forge-moe-gen4")
    assert measured_eta(preset, "int4_g32") is None
    probe = preset.model_copy(update={"source": "probe", "kernel_efficiency": {"amx/int4_g32/int8": 0.7}})
    assert measured_eta(probe, "int4_g32") == (0.7, "amx/int4_g32/int8")
    assert measured_eta(probe, "bf16")[0] == 0.7
    assert speed_fit("hybrid").eta != 0.7
