"""Pictures hold the numbers of their results, and every title of a synthetic one says so."""

import numpy as np
import pytest

import moelab
from moelab import plots
from moelab.analysis import miss_ratio_curve
from moelab.domain.counts import CountsTable
from tests.seeded_traces import seeded_trace


@pytest.fixture(scope="module")
def analysis():
    return moelab.analyse(seeded_trace(1, num_requests=20, decode_tokens=40), num_samples=20, progress=False)


def test_titles_of_synthetic_traces_say_so(analysis):
    trace = seeded_trace(1)
    for figure in (
        plots.load_map(trace), plots.popularity_curve(analysis.popularity), plots.lag_curve(analysis.lags),
        plots.coactivation_lifts(analysis.coactivation), plots.stability_bars(analysis.stability),
        plots.miss_ratio(miss_ratio_curve(trace)),
    ):  # fmt: skip
        assert "SYNTHETIC" in figure.layout.title.text


def trace_named(figure, name):
    return next(t for t in figure.data if t.name == name)


def test_popularity_curve_ends_at_one_and_passes_through_the_shares(analysis):
    figure = plots.popularity_curve(analysis.popularity)
    curve = next(t for t in figure.data if (t.name or "").startswith("all "))
    assert curve.y[0] == 0
    assert curve.y[-1] == pytest.approx(1)
    assert curve.y[6] == pytest.approx(analysis.popularity.means[0, 3]), "hottest half of 12 experts"


def test_lag_curve_has_interval_and_baselines(analysis):
    figure = plots.lag_curve(analysis.lags)
    assert np.allclose(trace_named(figure, "overlap, all layers").y, analysis.lags.mean, equal_nan=True)
    assert trace_named(figure, "95% interval over requests")
    assert trace_named(figure, "chance, K / E").y[0] == 3 / 12
    single = moelab.analyse(seeded_trace(1, num_requests=1), progress=False)
    assert all(t.name != "95% interval over requests" for t in plots.lag_curve(single.lags).data)


def test_coactivation_shows_top_pairs_and_one_layer(analysis):
    pairs = analysis.coactivation
    figure = plots.coactivation_lifts(pairs, layer=1)
    heat, top = figure.data
    order = [int(e) for e in heat.x]
    assert sorted(order) == list(range(12))
    np.testing.assert_allclose(heat.customdata, pairs.shrunk_lift()[1][np.ix_(order, order)])
    assert top.x[-1] == pytest.approx(pairs.to_frame().lift[0]), "largest excess on top"


def test_stability_has_a_bar_for_each_group(analysis):
    figure = plots.stability_bars(analysis.stability)
    bars = [t for t in figure.data if t.type == "bar"]
    assert [len(b.y) for b in bars] == [8, 2]
    assert np.allclose(bars[1].y, analysis.stability.domains.js)


def test_counts_have_a_load_map():
    trace = seeded_trace(1)
    table = CountsTable("tiny", trace.num_tokens, 3, (0, 1, 2), trace.loads())
    assert np.array_equal(plots.load_map(table).data[0].z, plots.load_map(trace).data[0].z)
    assert "SYNTHETIC" not in plots.load_map(table).layout.title.text
