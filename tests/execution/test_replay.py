"""Replay end to end on nano: every field of both rows, the prediction stored first, the door's JSON."""

import importlib
import json
import re

import numpy as np
import psutil
import pytest

import moelab
from moelab.cli import main
from moelab.domain.machine import Machine, NumaNode
from moelab.domain.trace import Phase
from moelab.execution.uniform import uniform_trace
from moelab.execution.weights import generated
from moelab.kernels import ExpertLayout, Pool

SMALL = "olmoe-1b-7b"  # 3.5 MB an expert: small enough for a test, far over the cache in sum


@pytest.fixture(scope="module")
def decode():
    return moelab.open_trace(moelab.shipped("nano/capture")).load(phase=Phase.DECODE)


@pytest.fixture(scope="module")
def machine():
    """A machine that was never measured here: the prediction must come from it, not from the run."""
    cores = tuple(range(2))
    node = NumaNode(name="node0", cores=cores, memory_bytes=2**34, read_gb_per_s={2: 10.0})
    return Machine(
        name="paper", source="calibration", nodes=(node,), last_level_cache_bytes=32 << 20, layer_overhead_s=1e-4,
        kernel_efficiency={"numba/int4_g32/int8": 0.5},
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(decode, machine):
    order = []
    result = moelab.replay(
        decode, machine=machine, expert_shape=SMALL, tokens=48, isa="numba", progress=False,
        on_prediction=lambda name, prediction: order.append((name, prediction)),
    )  # fmt: skip
    return result, order


def test_two_rows_with_every_field(result):
    own, shape = result[0].rows
    assert (own.name, shape.name) == ("own", "expert_shape")
    assert own.cache_resident
    assert own.percent_of_read_limit is None
    assert not own.synthetic_weights
    assert shape.synthetic_weights
    assert not shape.cache_resident
    assert shape.percent_of_read_limit > 5
    for row in (own, shape):
        assert row.layers_run == row.layers_of_model == 6
        assert row.isa == "numba"
        assert row.activation == "int8"
        assert 0 < row.max_relative_error < row.relative_error_tolerance
        assert row.measured_ms_per_token > 0
        assert row.peak_memory_bytes > row.weights_bytes
        np.testing.assert_allclose(row.measured_tok_per_s * row.measured_ms_per_token, 1e3)
        assert row.tokens >= 16


def test_executed_bytes_follow_from_the_routing(result, decode):
    """One sequence, top-4, no repeats: every layer-step reads exactly four experts."""
    for row in result[0].rows:
        assert row.executed_reads_per_layer_step == 4
        bytes_per_token = row.layers_run * 4 * row.expert_bytes
        np.testing.assert_allclose(row.measured_ms_per_token, 1e-6 * bytes_per_token / row.gb_per_s, rtol=0.05)
        assert row.bytes_of_node == (row.tokens * bytes_per_token,)
        # The kernels' own clock leaves out what Python takes around each call.
        assert row.gb_per_s_per_node[0] >= row.gb_per_s


def test_simulated_tier_is_the_simulators(result, decode):
    from moelab.execution.planned import plan_for

    plan = plan_for(decode)
    held_out = plan.planner["held_out_requests"]
    simulated = moelab.simulate(decode.requests(held_out), plan)
    for row in result[0].rows:
        assert row.scored_on == f"{len(held_out)} held-out requests"
        assert row.hit_rate_per_request == simulated.hit_rate_per_request
        assert row.reads_per_layer_step == simulated.reads_per_layer_step


def test_prediction_is_made_before_and_only_the_limit_rescales_it(result, machine):
    replayed, order = result
    assert [name for name, _ in order] == ["own", "expert_shape"]
    row = replayed.rows[1]
    expected = row.layers_run * 4 * row.expert_bytes / (10.0e9 * 0.5) + row.layers_run * 1e-4
    np.testing.assert_allclose(row.predicted_ms_per_token_stored, 1e3 * expected, rtol=1e-9)
    rescaled = row.layers_run * 4 * row.expert_bytes / (row.read_limit_gb_per_s * 1e9 * 0.5) + row.layers_run * 1e-4
    np.testing.assert_allclose(row.predicted_ms_per_token, 1e3 * rescaled, rtol=1e-9)
    assert order[1][1].ms_per_token() == row.predicted_ms_per_token_stored
    assert [p["predicted_ms_per_token"] for p in replayed.predictions] == [
        row.predicted_ms_per_token_stored for row in replayed.rows
    ]


def test_prediction_stands_when_the_measurement_begins(decode, machine, monkeypatch):
    module = importlib.import_module("moelab.execution.replay")
    real, told, seen = module.execute, [], []

    def spy(*arguments, **options):
        seen.append(list(told))
        return real(*arguments, **options)

    monkeypatch.setattr(module, "execute", spy)
    moelab.replay(
        decode, machine=machine, expert_shape="own", tokens=8, isa="numba", progress=False,
        on_prediction=lambda name, prediction: told.append(name),
    )  # fmt: skip
    assert seen == [["own"]]


def test_paired_read_has_the_kernels_workers_and_other_bytes(monkeypatch):
    """Mixed step sizes: a small step runs and is read by the caller alone, a large one by the pool."""
    module = importlib.import_module("moelab.execution.execute")
    layout = ExpertLayout(512, 256, "int4_g32")  # 221 kB
    reads, real = [], module.read_once

    def spy(addresses, num_bytes, loop, pool):
        reads.append((set(addresses.tolist()), pool is not None))
        return real(addresses, num_bytes, loop, pool)

    monkeypatch.setattr(module, "read_once", spy)
    rng = np.random.default_rng(4)
    sizes = [1, 16, 1, 1, 16, 16]  # tokens; 16 x 4 pairs x 221 kB is over the threshold of the pool
    ids = [np.stack([[rng.choice(32, 4, replace=False) for _ in range(2)] for _ in range(t)]) for t in sizes]
    gates = [np.full(i.shape, 0.25, np.float32) for i in ids]
    distinct = [sum(len(np.unique(i[:, layer])) for layer in range(2)) for i in ids]
    inputs = rng.standard_normal((64, 512)).astype(np.float32)
    work = module.Work(ids, gates, inputs, np.array(distinct) * float(layout.expert_bytes))
    calls = []
    with Pool(2) as pool:
        weights = generated(layout, 2, 32, isa="numba", activation="int8", pool=pool)
        first = weights.layers[0]
        forward = first.forward
        monkeypatch.setattr(first, "forward", lambda *a: calls.append(len(a[0])) or forward(*a))
        measured = module.execute(weights, work, pool, samples=3)
        addresses = [arena.addresses for arena in weights.arenas]
        for read_addresses, by_pool in reads:
            step = next(
                s for s in range(6)
                if read_addresses == {int(a) for la in range(2) for a in addresses[la][np.unique(ids[s][:, la])]}
            )  # fmt: skip
            assert by_pool == (sizes[step] == 16)
        weights.close()
    assert len(reads) == 6, "every step's bytes are read once"
    np.testing.assert_array_equal(measured.step_tokens, sizes)
    np.testing.assert_array_equal(measured.read_bytes, np.roll(work.bytes_of_step, -3))
    assert calls == [sizes[3], *sizes], "one warm-up, then every step once"
    assert measured.outputs, "sampled outputs are those that were measured"


def test_wrong_outputs_stop_the_replay(decode, machine, monkeypatch):
    module = importlib.import_module("moelab.execution.check")
    monkeypatch.setattr(module, "reference_experts", lambda *a: np.full((1, 256), np.nan))
    with pytest.raises(RuntimeError, match="differ from the float64 reference by nan"):
        moelab.replay(decode, machine=machine, expert_shape="own", tokens=8, isa="numba", progress=False)


def test_report_is_one_file_with_pictures(result, decode, tmp_path):
    from moelab.execution.planned import plan_for

    path = moelab.report(result[0], decode, plan_for(decode), tmp_path / "report.html")
    page = path.read_text()
    assert page.count('class="plotly-graph-div"') == 4
    assert "against the read limit" in page
    assert "measured ms/token" in page
    markup = re.sub(r"<script[^>]*>.*?</script>", "<script>", page, flags=re.DOTALL)
    assert "http" not in markup, "the page must open without a network"
    assert not re.search(r"<script[^>]*src=", page)
    assert list(tmp_path.iterdir()) == [path]


def test_frame_and_texts(result):
    frame = result[0].to_frame()
    assert list(frame["name"]) == ["own", "expert_shape"]
    text = repr(result[0])
    assert "cache_resident: no percentage" in text
    assert "(b) olmoe-1b-7b shape" in text
    assert "<table>" in result[0]._repr_html_()


def test_too_little_memory_is_said_before_anything_is_filled(decode, machine, monkeypatch):
    class Tiny:
        available = 100 << 20

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Tiny)
    with pytest.raises(MemoryError, match="half of the free memory"):
        moelab.replay(decode, machine=machine, expert_shape="kimi-k2.6", tokens=8, progress=False)


def test_uniform_routing_is_marked_and_even():
    trace = uniform_trace(SMALL, num_tokens=400, seed=3)
    assert trace.header.synthetic
    np.testing.assert_array_equal(trace.experts, uniform_trace(SMALL, num_tokens=400, seed=3).experts)
    for token in (0, 17):
        for layer in (0, 5):
            assert len(set(trace.experts[token, layer])) == trace.header.top_k
    loads = trace.loads()
    mean = 400 * trace.header.top_k / trace.header.num_experts
    assert loads.sum() == trace.experts.size
    assert abs(loads - mean).max() < 6 * np.sqrt(mean)


def test_json_of_the_command(machine, tmp_path, capfd):
    machine.save(tmp_path / "machine.json")
    options = ["--expert-shape", "own", "--tokens", "8", "--isa", "numba", "--json"]
    assert main(["replay", *options, "--machine", str(tmp_path / "machine.json")]) == 0
    (row,) = json.loads(capfd.readouterr().out)["rows"]
    wanted = """name expert_shape predicted_ms_per_token_stored predicted_ms_per_token predicted_tok_per_s
        measured_ms_per_token measured_tok_per_s gb_per_s_per_node read_limit_gb_per_s percent_of_read_limit
        reads_per_layer_step hit_rate_per_routing hit_rate_per_request uploads_per_layer_step isa activation
        virtual_nodes cache_resident synthetic_weights layers_run layers_of_model tokens trace plan peak_memory_bytes
        max_relative_error"""
    assert set(wanted.split()) <= set(row)
    assert row["percent_of_read_limit"] is None
    assert isinstance(row["gb_per_s_per_node"], list)
    assert row["layers_of_model"] == 6
