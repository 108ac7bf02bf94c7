"""bench placement: held-out steps, real runs at a tiny shape whose bytes are as predicted, the page."""

import json
import os
from importlib import import_module

import numpy as np
import pytest

from moelab.bench.placement import core_bound as core
from moelab.bench.placement import two_nodes, with_uploads
from moelab.bench.placement.cells import WAYS, Cell, MemoryBound
from moelab.bench.placement.lockstep import ids_of_steps, lockstep, single_tokens
from moelab.bench.placement.moment import Moment, NodeCalls, now_of
from moelab.bench.placement.placed import PlacedLayers
from moelab.bench.placement.result import BEGIN, END, PlacementResult
from moelab.bench.placement.run import PARTS, _planned, run
from moelab.cli.bench import BENCHES
from moelab.cost_model import node_time
from moelab.domain.trace import NO_EXPERT, Phase, TokenTable, Trace
from moelab.kernels import ExpertLayout, Pool
from moelab.kernels.native import library
from moelab.planner import empty
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import node_problem
from moelab.simulator.simulate import simulate
from tests.placement_times import times
from tests.seeded_traces import seeded_trace

cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
needs_native = pytest.mark.skipif(library()[0] is None, reason="native kernels are not built")
needs_two_cores = pytest.mark.skipif(cores < 2, reason="one core only")


@pytest.fixture(scope="module")
def trace():
    made = seeded_trace(3, num_requests=12, num_experts=8, decode_tokens=20)
    header = made.header.model_copy(update={"hidden_size": 64, "moe_intermediate_size": 64})
    return type(made)(header, made.experts, made.gate_weights, made.tokens)


@pytest.fixture(scope="module")
def planned(trace):
    chosen = (("round_robin", 0.0), ("eplb", 0.25), ("row_split", 0.0), ("mirror", 1.0))
    return core.make_plans(trace, plans=chosen)


def prefilled_together(seed):
    """Six requests, prefilled two and two in one step, that then decode alone."""
    made = seeded_trace(seed, num_requests=6, num_experts=8)
    tokens = made.tokens
    is_prefill = tokens.phase == int(Phase.PREFILL)
    step = np.where(is_prefill, tokens.request // 2, 100 + np.arange(made.num_tokens))
    order = np.argsort(step, kind="stable")
    build = TokenTable.build(step=np.unique(step[order], return_inverse=True)[1], request=tokens.request[order],
                             position=tokens.position[order], phase=tokens.phase[order])  # fmt: skip
    return Trace(made.header, made.experts[order], made.gate_weights[order], build)


SPLIT_TRACES = {
    "prefill in common": prefilled_together,
    "prefill alone": lambda seed: seeded_trace(seed, num_requests=6, num_experts=8),
    "batches": lambda seed: seeded_trace(seed, num_requests=12, num_experts=8, batch=2),
    "one batch, in time": lambda seed: seeded_trace(seed, num_requests=4, num_experts=8, batch=4),
    "one request": lambda seed: seeded_trace(seed, num_requests=1, num_experts=8, prefill_tokens=4),
    "prefill only": lambda seed: prefilled_together(seed).take(prefilled_together(seed).tokens.phase == 0),
}


@pytest.mark.parametrize("name", SPLIT_TRACES)
@pytest.mark.parametrize("seed", [0, 5])
def test_steps_that_run_were_not_planned_on(name, seed, tmp_path):
    """Both halves are the planners' own, new and from kept plans, and no token is in both."""
    trace = SPLIT_TRACES[name](seed)
    chosen = (("round_robin", 0.0),)
    made = [core.make_plans(trace, plans=chosen), *(_planned("t", trace, str(tmp_path), chosen) for _ in range(2))]
    for each in made:
        tokens = [{tuple(pair) for pair in np.stack([half.tokens.request, half.tokens.position], 1).tolist()}
                  for half in (each.planning, each.held_out)]  # fmt: skip
        assert all(tokens)
        assert not tokens[0] & tokens[1]
        how = each.plans["round_robin", 0.0].planner
        kind = how["steps"]
        problem = node_problem(trace, nodes=2, **{key: how[key] for key in ("held_out", "seed", "steps", "phase")})
        for half, steps in ((each.planning, problem.train), (each.held_out, problem.test)):
            assert np.array_equal(LayerSteps.of_trace(half, kind).keys, steps.keys)
            assert set(np.unique(half.tokens.phase)) == {int(Phase.PREFILL) if name == "prefill only" else 1}
        if how["split"] == "request":
            assert set(np.unique(each.held_out.tokens.request)) == set(how["held_out_requests"])


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_lockstep_steps_are_recorded_tokens(trace, batch):
    steps = lockstep(trace, batch, 9, seed=1)
    recorded = {row.tobytes() for row in trace.experts}
    assert all(row.tobytes() in recorded for row in steps.experts)
    ids = ids_of_steps(steps, 2)
    assert [each.shape for each in ids] == [(batch, 2, trace.header.top_k)] * 9
    assert np.array_equal(np.concatenate(ids), steps.experts[:, :2])
    # A lane goes on within its request: neighbours in time are neighbours in the recording, most of the time.
    place = {row.tobytes(): number for number, row in enumerate(trace.experts)}
    lane = [place[steps.experts[step * batch].tobytes()] for step in range(9)]
    assert np.median(np.diff(lane)) == 1
    with pytest.raises(ValueError, match="expected 1 or more"):
        lockstep(trace, 0, 3)


def _names(trace):
    return list(zip(trace.tokens.request.tolist(), trace.tokens.position.tolist(), strict=True))


@pytest.mark.parametrize("num_steps", [1, 60, 10**6])
def test_single_tokens_are_of_all_requests(trace, num_steps):
    steps = single_tokens(trace, num_steps, seed=2)
    assert steps.num_tokens == len(ids_of_steps(steps, 2)) == min(num_steps, trace.num_tokens)
    recorded = {key: row.tolist() for key, row in zip(_names(trace), trace.experts, strict=True)}
    assert len(set(_names(steps))) == steps.num_tokens, "each once"
    assert [recorded[key] for key in _names(steps)] == steps.experts.tolist()
    if num_steps == 60:
        assert len(np.unique(steps.tokens.request)) == 12
    with pytest.raises(ValueError, match="expected 1 or more"):
        single_tokens(trace, 0)


def test_missed_are_those_that_are_not_hottest():
    loads = np.array([[5, 9, 1, 7], [1, 2, 3, 4]])
    ids = np.array([[[0, 1], [0, 3]]], np.uint16)
    assert two_nodes.missed(ids, loads, 0.5).tolist() == [[[0, NO_EXPERT], [0, NO_EXPERT]]]
    assert np.array_equal(two_nodes.missed(ids, loads, 0.0), ids)


@needs_native
@needs_two_cores
def test_core_bound_runs_what_it_predicted(planned):
    """Bytes that the kernels count equal the entries' (it raises otherwise); predictions by hand."""
    found = core.core_bound("seeded", planned, times(), seconds=0.2, num_steps=6)
    assert {(row.planner, row.extra_memory) for row in found.rows} == set(planned.plans)
    assert found.ranking.num_pairs == 6
    assert found.times.seconds.shape[1:] == (4, 6)
    assert found.times.num_rounds >= 5
    for one in (found.scaling, found.scaling_of_one):
        assert 0 < one.interval[0] <= one.interval[1]
        assert one.value > 0
    of_name = {row.planner: row for row in found.rows}
    # Three experts of two nodes: cut in two halves each (10% dearer), or two whole ones; then the overheads.
    assert of_name["mirror"].predicted_ms == pytest.approx(1e3 * 2 * (1e-5 + 1e-6 + 2e-5), rel=0.05)
    assert of_name["row_split"].predicted_ms == pytest.approx(1e3 * 2 * (1e-5 + 1e-6 + 1.65e-5), rel=0.05)
    assert of_name["round_robin"].predicted_ms > of_name["mirror"].predicted_ms
    # As many experts in every step: cut evenly they take as long in either half, whole ones do not.
    for name in ("mirror", "row_split"):
        assert of_name[name].beforehand_ms == pytest.approx(of_name[name].predicted_ms)
    assert of_name["round_robin"].beforehand_ms != pytest.approx(of_name["round_robin"].predicted_ms, rel=1e-6)
    assert found.beforehand.num_pairs == found.ranking.num_pairs
    assert {share: one.num_pairs for share, one in found.within.items()} == {0.0: 1}, "the others have nobody beside"
    assert 1 < found.num_requests <= 6
    for row, mean_s in zip(found.rows, found.times.at_one_speed().mean_s, strict=True):
        assert row.measured_ms == pytest.approx(1e3 * mean_s)
        assert 0 < row.measured_ms_interval[0] <= row.measured_ms_interval[1]


@needs_native
@needs_two_cores
def test_other_bytes_than_predicted_are_an_error(planned, monkeypatch):
    real = core.counted_bytes
    monkeypatch.setattr(core, "counted_bytes", lambda layers: real(layers) * 2)
    with pytest.raises(RuntimeError, match="expected"):
        core.core_bound("seeded", planned, times(), seconds=0.1, num_steps=3)


@needs_native
@needs_two_cores
def test_cells_of_two_nodes(planned, trace, monkeypatch):
    """The clock is real, the moments are made up: each prediction is by hand what it says it is."""
    made = iter(range(10**9))
    t = times()

    def moment(self):
        slow = 1 + next(made) % 2  # every second one is of half the speed
        return Moment(t.read_gb_per_s / slow, 4.0 / slow, {1: 3.1e-5 * slow, 4: 9e-5}, {n: 5e-5 for n in (1, 2, 4)})

    monkeypatch.setattr(NodeCalls, "make", moment)
    with Pool(2, virtual_nodes=2) as pool:
        placed = PlacedLayers(ExpertLayout(64, 64, "int4_g32"), 2, 8, pool, isa="generic", activation="int8")
        cells, rates = two_nodes.two_node_cells(planned, placed, t, trace.loads(), loop=0, seconds=0.2)
    assert len(cells) == len(planned.plans) * len(two_nodes.CAPACITIES) * len(two_nodes.STEPS_OF_BATCH)
    slowest = 2 / (1 / 4.0 + 1 / 2.0)
    assert rates == pytest.approx(2 * slowest)
    of_kernels = 2 * 2 * t.expert_bytes / 5e-5 / 1e9
    now = now_of(t, (moment(None), moment(None)), 2)
    for cell in cells:
        assert set(cell.predicted) == set(WAYS)
        assert {len(each) for each in cell.predicted.values()} == {len(cell.measured_s)}
        assert len(cell.measured_s) >= 5
        assert cell.ms_per_step > 0
        in_bytes = cell.predicted["bytes"] * 2 * slowest
        assert cell.predicted["kernel_bytes"] * of_kernels == pytest.approx(in_bytes)
        assert cell.kernel_share == pytest.approx(now.times.busy[2].kernel_share)
        assert len({*cell.predicted["beforehand"].tolist()}) == 1
        assert not np.allclose(cell.predicted["model"], cell.predicted["reads"])
    by_key = {(c.plan, c.batch, c.capacity): {way: np.median(s) for way, s in c.predicted.items()} for c in cells}
    assert all(by_key[p, b, 0.25][way] < by_key[p, b, 0.0][way] for p, b, _ in by_key for way in WAYS)
    # Three whole experts of one token on either node of a mirror: two and one, and each way in its own times.
    in_calibration = 24 * 2 * (1e-5 + 1e-6) + 24 * 2 * node_time.layer_steps_s(
        t.model_copy(update={"layer_s": 0.0, "token_s": 0.0}), step=np.zeros(3, int), node=np.array([0, 0, 1]),
        part=np.ones(3), num_tokens=np.ones(3), tokens_of_step=np.ones(1), num_nodes=2,
    )[0]  # fmt: skip
    assert by_key["mirror 100%", 1, 0.0]["beforehand"] == pytest.approx(in_calibration)


@needs_native
@needs_two_cores
def test_every_part_runs_held_out_steps(planned, monkeypatch):
    """Whatever is run is drawn from the half that was not planned on; predictions beforehand are of the other one."""
    drawn_from, beforehand = [], []
    for part in (core, two_nodes, with_uploads):
        draws = "single_tokens" if part is core else "lockstep"
        real_draws = getattr(part, draws)

        def drawn(trace, *given, real=real_draws, of=part.__name__, **named):
            if given[0] == core.PLANNING_STEPS:
                beforehand.append((of, trace))
            else:
                drawn_from.append((of, trace))
            return real(trace, *given, **named)

        monkeypatch.setattr(part, draws, drawn)
    core.core_bound("seeded", planned, times(), seconds=0.1, num_steps=3)
    with Pool(2, virtual_nodes=2) as pool:
        placed = PlacedLayers(ExpertLayout(64, 64, "int4_g32"), 2, 8, pool, isa="generic", activation="int8")
        two_nodes.two_node_cells(planned, placed, times(), planned.planning.loads(), loop=0, seconds=0.1)
    with_uploads.upload_cells(planned, times(), num_layers=2, loop=0, seconds=0.1)
    assert {of for of, _ in drawn_from} == {core.__name__, two_nodes.__name__, with_uploads.__name__}
    assert beforehand == [(core.__name__, planned.planning)]
    planned_on = set(planned.planning.tokens.request.tolist())
    assert planned_on
    for _, trace in drawn_from:
        assert not planned_on & set(trace.tokens.request.tolist())


@pytest.mark.parametrize("name", ["prefill in common", "one batch, in time"])
def test_the_hottest_are_of_the_planning_half(name, monkeypatch):
    """Experts that memory-bound cells leave out are chosen by loads of the planners' own half."""
    bench_run = import_module("moelab.bench.placement.run")  # the package exports its function by the same name
    trace, seen = SPLIT_TRACES[name](0), []

    def stop(name, planned, times, loads, **named):
        seen.append((planned, loads))
        raise StopIteration

    monkeypatch.setattr(bench_run, "_calibrated", lambda *given: times())
    monkeypatch.setattr(bench_run.memory, "memory_bound", stop)
    monkeypatch.setattr(bench_run.memory, "PLANS", (("round_robin", 0.0),))
    with pytest.raises(StopIteration):
        bench_run._memory("t", trace, None, 0.1, 0)
    problem = node_problem(trace, nodes=2, held_out=0.5, phase="decode")
    ((planned, loads),) = seen
    assert np.array_equal(loads, planned.planning.loads())
    assert loads.sum() >= problem.train.uses.sum()
    assert np.array_equal(loads > 0, problem.train.uses > 0)


@pytest.mark.parametrize("policy", with_uploads.POLICIES)
@pytest.mark.parametrize("batch", [1, 3])
def test_decided_work_is_the_simulators(trace, policy, batch):
    steps = lockstep(trace, batch, with_uploads.NUM_STEPS + 5, seed=2)
    work = with_uploads.decide(steps, 3, policy, 3)
    counted = simulate(steps, empty(steps, slots_per_layer=3, policy=policy), progress=False)
    misses = np.array([[len(set(ids[ids != NO_EXPERT].tolist())) for ids in of_step] for of_step in work.misses])
    uploads = np.array([[len(new) for new in of_step] for of_step in work.admitted])
    assert misses.shape == (with_uploads.NUM_STEPS, 3)
    last = counted.counts[-with_uploads.NUM_STEPS :]
    from moelab.policies.counts import MISSES, UPLOADS

    assert np.array_equal(misses, last[:, :, MISSES])
    assert np.array_equal(uploads, last[:, :, UPLOADS])


@needs_native
@needs_two_cores
def test_cells_with_uploads_run(planned):
    cells = with_uploads.upload_cells(planned, times(), num_layers=2, loop=0, seconds=0.2)
    assert {(c.policy, c.capacity, c.batch) for c in cells} == {
        (p, c, b) for p in with_uploads.POLICIES for c in with_uploads.CAPACITIES for b in with_uploads.BATCHES
    }
    assert all(cell.link and (cell.measured_s > 0).all() for cell in cells)
    assert with_uploads.upload_cells(planned, times(uploads=None), num_layers=2, loop=0, seconds=0.2) == []


@needs_native
@needs_two_cores
def test_memory_document_and_results_after_each_part(planned, trace, tmp_path, monkeypatch):
    """What a real run of the cells becomes; a failure of the next part leaves it in the file."""
    bench_run = import_module("moelab.bench.placement.run")
    t = times(kernel="generic/int4_g32/int8")
    monkeypatch.setattr(bench_run, "_planned", lambda *a: planned)
    monkeypatch.setattr(bench_run, "_calibrated", lambda *a: t)
    monkeypatch.setattr(bench_run, "pieces", lambda **k: 1 / 0)
    monkeypatch.setattr(bench_run, "open_source", lambda path: type("Source", (), {"load": lambda self: trace})())
    kept = tmp_path / "kept.json"
    with pytest.raises(ZeroDivisionError):
        run(0.3, traces=["seeded"], parts=["core", "memory", "pieces"], keep=str(kept))
    found = PlacementResult.load(kept)
    assert set(found.core) == set(found.memory) == {"seeded"}
    core_part, memory_part = found.core["seeded"], found.memory["seeded"]
    assert core_part["seed"] == memory_part["seed"] == 0
    assert memory_part["num_cells"] == len(memory_part["cells"])
    assert memory_part["span"] > 1
    assert "Memory-bound" in found.markdown()


def test_command_and_page(tmp_path):
    assert "placement" in BENCHES
    with pytest.raises(ValueError, match="expected some of core, memory, pieces"):
        run(parts=["cores"])
    row = {"planner": "anneal", "extra_memory": 0.1, "heldout_ratio_to_ideal": 1.08, "gap": 0.08,
           "predicted_ms_per_token": 8.0, "measured_ms_per_token": 7.5,
           "measured_ms_per_token_interval": (7.4, 7.6)}  # fmt: skip
    one = {"trace": "t", "model": "m", "synthetic": False, "steps": "decode", "kernel": "k", "layers_run": 2,
           "layers_of_model": 26, "num_steps": 40, "num_requests": 12, "num_rounds": 8, "virtual_nodes": 2,
           "scaling": 1.95, "scaling_interval": (1.9, 1.97), "scaling_of_one_expert": 1.93,
           "kendall_tau": 0.95, "untied_pairs": 60, "pairs": 171, "regret": 0.01,
           "regret_interval": (0.0, 0.034), "chosen_is_best": 0.25,
           "chosen": "anneal 10%", "best": "mirror 100%", "kendall_tau_beforehand": 0.85, "regret_beforehand": 0.015,
           "regret_beforehand_interval": (0.0, 0.02), "chosen_beforehand": "coact 10%", "kendall_tau_raw": 0.9,
           "regret_raw": 0.02, "regret_raw_interval": (0.004, 0.05), "calibration_residual": 0.01, "rows": [row],
           "within_extra_memory": [{"extra_memory": 0.1, "kendall_tau": 0.8, "untied_pairs": 11, "pairs": 15,
                                    "regret": 0.012}],
           "step_us": [[[1]]]}  # fmt: skip
    result = PlacementResult({}, {}, []).with_core(one)
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\nprose\n{BEGIN}\nold\n{END}\nafter\n")
    result.write_page(page)
    text = page.read_text()
    assert "prose" in text
    assert "after" in text
    assert "\nold\n" not in text
    assert "| 1.95 (1.90 to 1.97); 1.93 | 0.950 | 60 of 171 | 1.0% (anneal 10%; best mirror 100%) |" in text
    assert "| 0.0% to 3.4%, best in 25% | met | 10%: 0.800 over 11 of 15, 1.2% | 0.900, 2.0% (0.4% to 5.0%) |" in text
    assert "(0.4% to 5.0%) | 0.850, 1.5% (0.0% to 2.0%) |" in text
    assert "| anneal | 10% | 1.080 | 8.0% | 8.0 | 7.5 (7.4 to 7.6) | 1.067 |" in text
    missed = PlacementResult({}, {}, []).with_core({**one, "regret": 0.03})
    assert "| missed |" in missed.markdown()
    result.save(tmp_path / "kept.json")
    again = PlacementResult.load(tmp_path / "kept.json")
    assert json.dumps(again.to_dict()) == json.dumps(result.to_dict())
    assert len(again.to_frame()) == 1
    old = {"core": {"s": {"regret": 0.01}}, "memory": {"t": {"median_error": 0.04}}, "pieces": [{"nodes": 2}]}
    (tmp_path / "old.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"earlier version \(core of s, memory of t, pieces\), expected times by"):
        PlacementResult.load(tmp_path / "old.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="no result of this bench"):
        PlacementResult.load(tmp_path / "other.json")
    assert set(PARTS) == {"core", "memory", "pieces"}


def test_memory_bound_on_the_page():
    """Medians over cells of medians over rounds, by way; judged by the model's own."""
    measured = np.array([1.0, 2.0, 4.0])

    def cell(error, link=False):
        of_way = {way: measured * (1 + error * (1 + number)) for number, way in enumerate(WAYS)}
        return Cell("anneal 0%", "none", 0.0, 1, 10, measured, of_way, measured, measured, link)

    found = MemoryBound("t", "k", 1, 3, [cell(0.01), cell(-0.02), cell(0.5, link=True)], (1.0, 2.0, 3.0))
    bench_run = import_module("moelab.bench.placement.run")
    assert [found.median_error(way) for way in WAYS] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert found.cells[0].ms_per_step == 200.0
    documents = [bench_run._cell_document(each) for each in found.cells]
    one = {"trace": "t", "model": "m", "synthetic": False, "kernel": "k", "layers_run": 1, "num_rounds": 3,
           "num_cells": 48, "median_error": found.median_error(), "span": 3.5, "read_gb_per_s_range": (1.0, 2.0, 3.0),
           "median_error_by_way": {way: found.median_error(way) for way in WAYS}, "cells": documents}  # fmt: skip
    text = PlacementResult({}, {}, []).with_memory(json.loads(json.dumps(one))).markdown()
    assert "| t | k | 48 | 3.5 times | 2 (1 to 3) | 2.0% | 4.0% | 6.0% | 8.0% | 10.0% | met |" in text
    assert "| anneal 0% | none | 0.0% | 1 | 196.00 | 200.00 | -2.0% | -4.0% | -6.0% | -8.0% | -10.0% |" in text
    assert "two nodes 1.5% (2 cells), with uploads 50.0% (1)" in text
