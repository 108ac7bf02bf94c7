"""Pictures hold the numbers of their results, and every title of a synthetic one says so."""

import numpy as np
import pytest

import moelab
from moelab import plots
from moelab.analysis import miss_ratio_curve
from moelab.domain.counts import CountsTable
from tests.seeded_traces import plan_for, seeded_trace


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


@pytest.fixture(scope="module")
def swept():
    trace = seeded_trace(3, num_requests=6, decode_tokens=30)
    policies = ["lru", "admit_lfru", "prefetch_previous", "static"]
    return moelab.sweep(trace, policies, [1, 4, 8], phase="decode", oracles=True, progress=False)


def test_policy_curves_hold_the_rows_and_the_bands_lie_below(swept):
    frame = swept.to_frame().set_index(["policy", "slots"])
    misses, reads = plots.policy_curves(swept, of="misses"), plots.policy_curves(swept, of="reads")
    for figure in (misses, reads):
        assert "SYNTHETIC" in figure.layout.title.text
        assert figure.layout.shapes[-1].x0 == 3, "top-k"
    assert list(trace_named(misses, "lru").y) == (1 - frame.loc["lru"].hit_rate_per_request).tolist()
    assert list(trace_named(reads, "lru").y) == frame.loc["lru"].reads_per_layer_step.tolist()
    assert trace_named(misses, "static (in sample)")
    bypass, demand = (next(t for t in misses.data if t.fill == fill) for fill in ("tozeroy", "tonexty"))
    assert list(bypass.y) == (1 - frame.loc["min_bypass"].hit_rate_per_request).tolist()
    assert (np.array(bypass.y) <= np.array(demand.y)).all()
    assert (np.array(demand.y) <= np.array(trace_named(misses, "lru").y)).all()


def test_cliff_of_one_pool_is_marked_where_lru_begins_to_hit():
    trace = seeded_trace(3, num_layers=4, num_experts=16, num_requests=3, prefill_tokens=0, decode_tokens=60)
    result = moelab.sweep(trace, ["lru"], [6, 9, 12, 24], scope="global", progress=False)
    figure = plots.policy_curves(result)
    assert figure.layout.shapes[-1].x0 == 4 * 3
    assert "L x K = 12" in figure.layout.annotations[-1].text
    missed = dict(zip(figure.data[0].x, figure.data[0].y, strict=True))
    assert missed[6] == missed[9] == 1, "sequential flooding: the other layers' (L - 1) x K experts come in between"
    assert missed[12] < 1


def test_regret_bars_are_misses_above_the_oracle_of_the_class(swept):
    figure = plots.regret_bars(swept)
    frame = swept.to_frame().set_index(["policy", "slots"]).misses_per_layer_step
    seen = {}
    for bar, slots in zip(figure.data, np.repeat([1, 4, 8], 2), strict=True):
        seen |= {(name, slots): regret for name, regret in zip(bar.y, bar.x, strict=True)}
    assert {name for name, _ in seen} == {"lru", "admit_lfru"}, "nothing bounds what prefetches or starts filled"
    for (name, slots), regret in seen.items():
        oracle = "min_demand" if name == "lru" else "min_bypass"
        assert regret == pytest.approx(frame[name, slots] - frame[oracle, slots])
        assert regret >= 0
    alone = moelab.sweep(seeded_trace(3), ["lru"], [4], progress=False)
    with pytest.raises(ValueError, match="regret needs min_demand in the sweep"):
        plots.regret_bars(alone)


def test_simulated_reads_add_up():
    trace = seeded_trace(3)
    result = moelab.simulate(trace, plan_for(trace, "lru", slots_per_layer=4), phase="decode", progress=False)
    figure = plots.simulated_reads(result)
    height = sum(np.array(bar.y) for bar in figure.data if bar.type == "bar")
    assert height.mean() == pytest.approx(result.reads_per_layer_step)
    used = figure.data[-1].y
    assert np.mean(used) == pytest.approx((result.hits + result.misses) / result.num_layer_steps)
    arrays = result.to_xarray()
    assert arrays["uploads"].sum() == result.uploads
    assert arrays.sizes == {"phase": 1, "layer": 3}


def test_speed_curve_passes_through_the_prediction():
    one = moelab.size("kimi-k2.6", "forge-moe-gen4", context=0)
    figure = plots.speed_curve(one)
    curve = next(t for t in figure.data if (t.name or "").startswith("predicted"))
    at = np.interp(one.bandwidth_gb_per_s, curve.x, curve.y)
    assert at == pytest.approx(one.prediction.tok_per_s, rel=0.002)
    points = next(t for t in figure.data if (t.name or "").startswith("published"))
    assert len(points.y) == one.prediction.num_points
    ceiling = next(t for t in figure.data if (t.name or "").startswith("ceiling"))
    assert (np.array(curve.y) <= np.array(ceiling.y)).all()
    assert "leave-one-out" in figure.layout.title.text
    by_cpu = moelab.size("kimi-k2.6", "2x-xeon-gen6-mrdimm-8800", context=0)
    curve = next(t for t in plots.speed_curve(by_cpu).data if (t.name or "").startswith("predicted"))
    assert np.interp(by_cpu.bandwidth_gb_per_s, curve.x, curve.y) == pytest.approx(
        by_cpu.prediction.tok_per_s, rel=0.002
    )
    with pytest.raises(ValueError, match="no prediction to draw"):
        plots.speed_curve(moelab.size("kimi-k2.6", "desktop-ddr5-6000"))
    with pytest.raises(ValueError, match="expected 1: the curve"):
        plots.speed_curve(moelab.size("kimi-k2.6", "forge-moe-gen6", batch=4, context=1024))
    unlike = plots.speed_curve(moelab.size("glm-5", "forge-moe-gen6+2x-h200"))
    assert "interval, of points of another kind" in [trace.name for trace in unlike.data]


def test_break_even_marks_where_both_meet():
    from moelab.sizing import CostComparison, MachineCost, TokenPrices, Traffic

    prices, rent = TokenPrices(1.0, 4.0, "2026", "test"), MachineCost("2026", "test", per_month=100)
    one = CostComparison(prices, rent, Traffic(0.5), 15.0)
    figure = plots.break_even(one)
    assert one.break_even_tokens_per_month in [shape.x0 for shape in figure.layout.shapes]
    labels = {note.text: note.x for note in figure.layout.annotations}
    assert labels["one machine, never idle"] == pytest.approx(np.log10(one.capacity_per_month))  # a logarithmic axis
    api, machine = figure.data
    assert api.y[0] < machine.y[0]


@pytest.mark.parametrize("seed", range(4))
def test_placement_map_has_every_expert_at_its_place(seed):
    """Cell by cell beside a loop over the plan's rows."""
    trace = seeded_trace(seed)
    header = trace.header
    kinds = {
        "anneal": {"nodes": 2, "extra_memory": 0.3}, "row_split": {"nodes": 2}, "round_robin": {"nodes": 2},
        "joint": {"nodes": 2, "extra_memory": 0.2, "fast_slots": [5]},
    }  # fmt: skip
    for name, budget in kinds.items():
        plan = moelab.PLANNERS[name](trace, **budget)
        heat, *keys = plots.placement_map(trace, plan).data
        loads = trace.loads()
        rows = list(zip(*(plan.placements.arrays()[c].tolist() for c in ("layer", "expert", "start", "stop", "tier"))))  # noqa: B905
        seen = {}
        for layer in range(header.num_layers):
            for rank in range(header.num_experts):
                expert, words = heat.customdata[layer][rank]
                held = [row[2:] for row in rows if row[:2] == (layer, expert)]
                tiers = {plan.tiers[tier] for _, _, tier in held}
                nodes = {tier for tier in tiers if tier.startswith("node")}
                expected = next(iter(nodes), None)
                if len(nodes) > 1:
                    whole = all((start, stop) == (0, plan.num_units) for start, stop, _ in held)
                    expected = "copies on several nodes" if whole else "in pieces over nodes"
                expected = next((tier for tier in tiers if tier.startswith("fast")), expected)
                assert words == expected
                seen[words] = seen.get(words, 0) + 1
                if rank:
                    assert loads[layer, expert] <= loads[layer, heat.customdata[layer][rank - 1][0]]
        assert {key.name for key in keys} == {f"{words} ({count:,})" for words, count in seen.items()}
    with pytest.raises(ValueError, match=r"plan is for .* the trace is of"):
        plots.placement_map(moelab.open_trace(moelab.shipped("nano/capture")).load(slice(0, 50)), plan)
