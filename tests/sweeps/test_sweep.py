"""A sweep: same numbers as single simulations, in threads and on a cluster; resumable; whole rows; refusals."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import moelab
from moelab.cli.sweep import capacity_of, policy_of
from moelab.domain.plan import PolicyChoice
from moelab.policies import POLICIES
from moelab.policies.counts import NUM_COLUMNS
from moelab.policies.policy import PolicyState
from moelab.policies.requests import PHASES, Requests
from moelab.simulator.simulate import run_requests, simulate
from moelab.sweeps import cell as cell_module
from moelab.sweeps import on_dask
from moelab.sweeps.cell import Cell
from tests.seeded_traces import plan_for, seeded_trace

ADMITTING = PolicyChoice(name="ema_lfu", parameters={"decay": 0.5, "hysteresis": 0.25})
CHOICES = ["lru", "least_stale", ADMITTING, "min_bypass", PolicyChoice(name="random", seed=7)]


def trace_with_batches(seed=5):
    return seeded_trace(seed, num_layers=4, num_experts=16, top_k=3, num_requests=6, batch=2)


def expected(trace, choice, phase=None, **capacity):
    """Figures of one simulation under a plan that the tests build themselves."""
    choice = PolicyChoice(name=choice) if isinstance(choice, str) else choice
    plan = plan_for(trace, choice.name, **capacity).model_copy(update={"policy": choice})
    result = simulate(trace, plan, phase=phase, progress=False)
    return (
        result.hits, result.misses, result.uploads, result.evictions, result.hit_rate_per_routing,
        result.reads_per_layer_step, result.bytes_of_node["node0"], result.bytes_of_link["fast0"],
    )  # fmt: skip


def figures_of(row):
    names = (
        "distinct_hits", "distinct_misses", "uploads", "evictions", "hit_rate_per_routing", "reads_per_layer_step",
        "node_read_bytes", "link_copy_bytes",
    )  # fmt: skip
    return tuple(row[name] for name in names)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_rows_equal_single_simulations(scope, num_threads):
    trace = trace_with_batches()
    capacities = [3, 0.5, 16] if scope == "layer" else [3, 0.25, 0.5]
    result = moelab.sweep(trace, CHOICES, capacities, scope=scope, num_threads=num_threads, progress=False)
    room, slots = ("slots_per_layer", [3, 8, 16]) if scope == "layer" else ("slots", [3, 16, 32])
    rows = iter(result.table())
    for choice in CHOICES:
        for each in slots:
            row = next(rows)
            assert row["slots"] == each
            assert figures_of(row) == expected(trace, choice, **{room: each})
    assert next(rows, None) is None
    decode = result.of_phase("decode").table()[0]
    assert figures_of(decode) == expected(trace, CHOICES[0], "decode", **{room: slots[0]})


def test_static_and_kt_dynamic_start_from_a_plan_and_say_so():
    trace = trace_with_batches()
    table = moelab.sweep(trace, ["static", "kt_dynamic", "lru"], [4], progress=False).table()
    hottest = np.argsort(-trace.loads(), axis=1, kind="stable")[:, :4]
    resident = [(layer, int(e)) for layer in range(4) for e in hottest[layer]]
    assert figures_of(table[0]) == expected(trace, "static", slots_per_layer=4, resident=resident)
    first = [(layer, e) for layer in range(4) for e in range(4)]
    assert figures_of(table[1]) == expected(trace, "kt_dynamic", slots=16, resident=first)
    assert ["in sample" in row["scored_on"] for row in table] == [True, False, False]


def test_repeated_computes_nothing_and_larger_computes_what_is_new(tmp_path, monkeypatch):
    trace = trace_with_batches()
    first = moelab.sweep(trace, ["lru", "fifo"], [2, 4], out=tmp_path, progress=False)
    assert (first.num_computed, first.num_known) == (4, 0)
    with monkeypatch.context() as patch:
        patch.setattr(Cell, "row", lambda *_: pytest.fail("computed a row that is there"))
        again = moelab.sweep(trace, ["lru", "fifo"], [2, 4], out=tmp_path, progress=False)
    assert (again.num_computed, again.num_known) == (0, 4)
    assert again.rows == first.rows
    larger = moelab.sweep(trace, ["fifo", "lru", "arc"], [2, 3, 4], out=tmp_path, progress=False)
    assert (larger.num_computed, larger.num_known) == (5, 4)
    fresh = moelab.sweep(trace, ["fifo", "lru", "arc"], [2, 3, 4], progress=False)
    assert larger.rows == fresh.rows


def test_key_follows_what_decides_the_numbers(monkeypatch):
    trace = trace_with_batches()
    cell = Cell(PolicyChoice(name="mrs"), 4, "layer")
    digest = trace.digest()
    key = cell.key(digest)
    assert key == Cell(PolicyChoice(name="mrs", parameters={"alpha": 0.5}), 4, "layer").key(digest)  # the default
    others = [
        Cell(PolicyChoice(name="mrs", parameters={"alpha": 0.25}), 4, "layer"),
        Cell(PolicyChoice(name="mrs"), 5, "layer"), Cell(PolicyChoice(name="mrs"), 4, "global"),
        Cell(PolicyChoice(name="lfu"), 4, "layer"),
    ]  # fmt: skip
    assert len({key, *(other.key(digest) for other in others)}) == 5
    trace.gate_weights[0, 0, 0] += 1  # mrs sees it, though a static plan's fingerprint does not
    assert trace.digest() != digest
    trace.gate_weights[0, 0, 0] -= 1
    assert trace.digest() == digest
    trace.extras["candidate_scores"] = np.zeros((*trace.shape[:2], 16), np.float16)
    assert trace.digest() != digest
    monkeypatch.setattr(cell_module, "stamp_of_room", lambda room: f"edited {room}")
    cell_module.code_version.cache_clear()
    edited = cell.key(digest)
    cell_module.code_version.cache_clear()
    assert edited != key


def test_error_in_one_row_keeps_the_others(tmp_path, monkeypatch):
    """The second cell fails; what was done or under way is kept, and nothing is half-written."""
    trace, simulated = trace_with_batches(), Cell.row

    def row(self, *given):
        if self.slots == 3:
            raise ValueError("cell of 3 slots failed")
        return simulated(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Cell, "row", row)
        with pytest.raises(ValueError, match="cell of 3 slots failed"):
            moelab.sweep(trace, ["lru"], [2, 3, 4, 5], out=tmp_path, num_threads=1, progress=False)
    slots = sorted(json.loads(file.read_text())["slots"] for file in tmp_path.iterdir())
    assert 2 in slots
    assert 3 not in slots
    after = moelab.sweep(trace, ["lru"], [2, 3, 4, 5], out=tmp_path, progress=False)
    assert after.num_known == len(slots)
    assert after.rows == moelab.sweep(trace, ["lru"], [2, 3, 4, 5], progress=False).rows


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("at", [0, 3, 7])
def test_interrupt_is_an_answer(tmp_path, monkeypatch, at, num_threads):
    """SIGINT while cell `at` runs: what had begun is kept, nothing else begins, Python's handler stands again."""
    trace, row, begun = trace_with_batches(), Cell.row, []

    def interrupted(cell, *arguments):
        begun.append(cell)
        if len(begun) == at + 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # the signal reaches the main thread
        return row(cell, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Cell, "row", interrupted)
        with pytest.raises(KeyboardInterrupt):
            moelab.sweep(trace, ["lru"], range(1, 9), out=tmp_path, num_threads=num_threads, progress=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(begun) == at + 1 or (num_threads > 1 and len(begun) > at)
    assert len(list(tmp_path.iterdir())) == len(begun)


def test_interrupted_sweep_leaves_whole_rows_and_resumes(tmp_path):
    """SIGINT to the command: exit code 130, every file a row; the second run takes them and does the rest."""
    trace = moelab.open_trace(moelab.shipped("nano/capture")).load()
    policies, capacities = ["prefetch_markov", "lfru", "s3_fifo"], [*range(1, 16)]
    command = [
        sys.executable, "-m", "moelab", "sweep", moelab.shipped("nano/capture"), "--policies", *policies,
        "--capacities", *capacities, "--out", tmp_path,
    ]  # fmt: skip
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.row.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "sweep:" in errors  # the bar
    assert "Traceback" not in errors
    kept = [json.loads(file.read_text()) for file in tmp_path.iterdir()]
    assert 3 <= len(kept) < 45
    assert not list(tmp_path.glob("*.tmp"))
    some = sorted({row["slots"] for row in kept})
    result = moelab.sweep(trace, policies, some, out=tmp_path, progress=False)
    assert result.num_known == len(kept)
    assert result.num_computed == 3 * len(some) - len(kept)
    assert result.rows == moelab.sweep(trace, policies, some, progress=False).rows


def test_loop_releases_the_gil():
    """While one call of the loop runs in a thread, this thread goes on: it would not see a tick otherwise."""
    trace = seeded_trace(1, num_layers=40, num_experts=64, top_k=8, num_requests=1, decode_tokens=3000)
    requests = Requests.of_trace(trace)
    assert requests.num_requests < 2**18  # one call, no look at the progress bar
    plan = plan_for(trace, "lfru", slots_per_layer=16)
    state = PolicyState.of_plan(plan, POLICIES["lfru"])
    counts = np.zeros((requests.num_requests, NUM_COLUMNS), np.int32)
    sums, totals = np.zeros((3, 40, NUM_COLUMNS + 1), np.int64), np.zeros((2, len(PHASES), 40, 64), np.int64)
    work = threading.Thread(
        target=run_requests, args=(trace, requests, POLICIES["lfru"], state, sums, counts, totals),
        kwargs={"log": False, "progress": False},
    )  # fmt: skip
    simulate(trace.take(np.arange(len(trace.experts)) < 10), plan, progress=False)  # compiled before
    work.start()
    num_half_done = 0
    while work.is_alive():
        num_half_done += 0 < np.count_nonzero(counts[:, 6]) < len(counts)
    work.join()
    assert num_half_done > 3


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None) as cluster:
        yield cluster


def test_same_numbers_on_a_cluster_of_two_processes(cluster, tmp_path):
    trace = trace_with_batches()
    trace.extras["candidate_scores"] = np.random.default_rng(0).random((*trace.shape[:2], 16)).astype(np.float16)
    address = cluster.scheduler_address
    choices = [*CHOICES, "mrs", "static"]
    there = moelab.sweep(trace, choices, [2, 5, 9], out=tmp_path, scheduler=address, progress=False)
    assert there.num_computed == 21
    assert there.rows == moelab.sweep(trace, choices, [2, 5, 9], num_threads=1, progress=False).rows
    assert moelab.sweep(trace, choices, [2, 5, 9], out=tmp_path, progress=False).num_computed == 0
    other = trace_with_batches(6)  # the workers' requests are of the trace before
    assert (
        moelab.sweep(other, CHOICES, [4], scheduler=address, progress=False).rows
        == moelab.sweep(other, CHOICES, [4], progress=False).rows
    )


def test_workers_with_other_code_are_refused(cluster, monkeypatch):
    monkeypatch.setattr(on_dask, "code_version", _other_code)
    with pytest.raises(ValueError, match="install the same moelab on every worker"):
        moelab.sweep(trace_with_batches(), ["lru"], [4], scheduler=cluster.scheduler_address, progress=False)


class _OtherCode:
    """Says one thing here and another where it was sent to."""

    def __init__(self, version="here"):
        self.version = version

    def __call__(self):
        return self.version

    def __reduce__(self):
        return type(self), ("there",)


_other_code = _OtherCode()


def test_result_as_frame_arrays_and_html():
    trace = trace_with_batches()
    result = moelab.sweep(trace, CHOICES, [8, 2], progress=False)
    frame, arrays = result.to_frame(), result.to_xarray()
    assert list(frame["slots"][:2]) == [2, 8]
    assert arrays["reads_per_layer_step"].dims == ("policy", "slots")
    label = "ema_lfu(hysteresis=0.25, decay=0.5)"
    at = frame[(frame["policy"] == label) & (frame["slots"] == 8)].iloc[0]
    assert float(arrays["uploads"].sel(policy=label, slots=8)) == at["uploads"]
    assert arrays["is_oracle"].sel(policy="min_bypass").item() is True
    assert arrays["share_of_experts"].values.tolist() == [2 / 16, 8 / 16]
    html = result._repr_html_()
    assert "SYNTHETIC" in html
    assert "min_bypass is an oracle" in html
    assert f"{at['reads_per_layer_step']:.3f}" in html


@pytest.mark.parametrize(
    ("policies", "capacities", "scope", "text"),
    [
        (["lruu"], [2], "layer", "policy is lruu, expected one of"),
        (["lru"], [17], "layer", "capacity is 17 slots, expected 1 to 16, the experts of a layer"),
        (["lru"], [65], "global", "expected 1 to 64, the experts of all layers"),
        (["lru"], [1.5], "layer", "expected a share above 0 up to 1.0"),
        (["lru"], [4, 0.25], "layer", "capacity 4 is given twice"),
        (["lru", "lru"], [4], "layer", "policy lru is given twice"),
        ([], [4], "layer", "got no policy or no capacity"),
        (["lru"], [], "layer", "got no policy or no capacity"),
        (["lru"], [4], "model", "scope is 'model', expected layer or global"),
    ],
)
def test_refusals(policies, capacities, scope, text):
    with pytest.raises(ValueError, match=text):
        moelab.sweep(trace_with_batches(), policies, capacities, scope=scope, progress=False)


def test_folder_of_something_else_and_damaged_row_are_refused(tmp_path):
    trace, folder = trace_with_batches(), tmp_path / "rows"
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds manifest.json, expected rows of a sweep only"):
        moelab.sweep(trace, ["lru"], [4], out=tmp_path, progress=False)
    moelab.sweep(trace, ["lru"], [4], out=folder, progress=False)
    file = next(folder.iterdir())
    file.write_text(file.read_text()[:50])
    with pytest.raises(ValueError, match=r"is no row .* delete it"):
        moelab.sweep(trace, ["lru"], [4], out=folder, progress=False)
    file.write_text('{"key": "another"}')
    with pytest.raises(ValueError, match="is the row of another key"):
        moelab.sweep(trace, ["lru"], [4], out=folder, progress=False)


def test_arguments_of_the_command():
    assert policy_of("lru") == PolicyChoice(name="lru")
    assert policy_of("ema_lfu:decay=0.99,max_uploads=1").parameters == {"decay": 0.99, "max_uploads": 1}
    assert [capacity_of(text) for text in ("40", "5%")] == [40, 0.05]
    with pytest.raises(ValueError, match="expected key=number"):
        policy_of("ema_lfu:decay=fast")
    with pytest.raises(ValueError, match="expected slots such as 40"):
        capacity_of("4GB")


def test_nothing_bounds_what_starts_filled_or_overflows():
    """The oracles start empty and keep to their capacity: beside these, "regret" could be below zero."""
    trace = seeded_trace(5)
    overflowing = PolicyChoice(name="lru", parameters={"overflow": 1})
    result = moelab.sweep(trace, ["static", overflowing, "lru"], [2, 4], oracles=True, progress=False)
    regret = result.regret().set_index(["policy", "slots"])
    assert regret.oracle.dropna().unique().tolist() == ["min_demand"]
    assert sorted({policy for policy, _ in regret.dropna().index}) == ["lru"]
    assert (regret.regret.dropna() >= 0).all()
