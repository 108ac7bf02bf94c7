"""The recorded residency of a real engine, row by row, both accountings, and the sweep of its budgets."""

import json
from functools import cache

import numpy as np
import pytest

from moelab.cli import main
from moelab.domain.units import MIB
from moelab.formats import bigmoeonedge_route_trace
from moelab.planner import empty
from moelab.policies.requests import Requests
from moelab.simulator import check_residency, simulate
from tests.seeded_traces import plan_for, seeded_trace
from tests.shared_traces import SHARED_TRACES, needs_shared_traces

FILE = SHARED_TRACES / "bigmoeonedge_qwen3_30b" / "qwen.route.csv"


@cache
def recorded():
    trace = bigmoeonedge_route_trace.read(FILE)
    return trace, Requests.of_trace(trace)


@needs_shared_traces
def test_every_row_of_the_recorded_residency():
    trace, requests = recorded()
    plan = empty(trace, capacity_bytes=4000 * MIB)
    result = simulate(trace, plan, requests=requests, log=True, progress=False)
    check = check_residency(trace, plan, result)
    assert (check.rows, check.agree) == (44_766, 44_766)
    assert len(check.to_frame()) == 0
    # The engine printed cache_hit_pct 74.9: one lookup for each distinct expert of a batch, prefill included.
    assert result.hits == 29_597
    assert result.hits + result.misses == 39_526
    decode = result.of_phase("decode")
    assert decode.hit_rate_per_routing == pytest.approx(0.80287, abs=5e-6)
    read = trace.extras["read_bytes"].astype(np.int64).sum()
    assert result.bytes_of_link["fast0"] == read, "every upload is a read that the engine wrote down, to the byte"


@needs_shared_traces
@pytest.mark.parametrize(
    ("budget_mib", "hit_rate"), [(500, 0.0), (1000, 0.3768), (2000, 0.5655), (3000, 0.7061), (4000, 0.8029)]
)
def test_sweep_of_budgets(budget_mib, hit_rate):
    trace, requests = recorded()
    plan = empty(trace, capacity_bytes=budget_mib * MIB)
    result = simulate(trace, plan, requests=requests, phase="decode", progress=False)
    assert result.hit_rate_per_routing == pytest.approx(hit_rate, abs=5e-5)


@needs_shared_traces
def test_the_check_can_fail():
    """500 MiB less, or room by layer, and the rows do not agree: the check is not blind."""
    trace, requests = recorded()
    agree = {}
    for name, plan in (
        ("less", empty(trace, capacity_bytes=3500 * MIB)),
        ("by layer", empty(trace, slots_per_layer=30)),
    ):
        result = simulate(trace, plan, requests=requests, log=True, progress=False)
        agree[name] = check_residency(trace, plan, result).agree
    assert max(agree.values()) < 44_000


@needs_shared_traces
def test_command(capsys):
    arguments = ["--policy", "lru", "--scope", "global", "--bytes", "4000MiB", "--check-residency", "--json"]
    assert main(["simulate", str(FILE), *arguments]) == 0
    everything = json.loads(capsys.readouterr().out)
    assert everything["residency_rows"] == everything["residency_agree"] == 44_766
    assert round(100 * everything["hit_rate_per_request"], 2) == 74.88
    assert main(["simulate", str(FILE), *arguments, "--phase", "decode"]) == 0
    decode = json.loads(capsys.readouterr().out)
    assert round(decode["hit_rate_per_routing"], 5) == 0.80287
    assert decode["residency_rows"] == 44_766, "the check covers every row, whatever the phase of the rates"


def with_residency(trace, plan):
    """The trace with the residency of a naive replay of the log's twin: state kept in a Python set."""
    result = simulate(trace, plan, log=True)
    requests = Requests.of_trace(trace)
    resident = {tuple(map(int, key)) for key in np.argwhere(plan.resident("fast0"))}
    residency = np.full(trace.shape, 255, np.uint8)
    rows = result.log.tolist()
    for clock in range(requests.num_requests):
        step, layer = divmod(clock, requests.num_layers)
        for token in range(requests.first_token[step], requests.first_token[step + 1]):
            for slot, expert in enumerate(trace.experts[token, layer].tolist()):
                if expert != 65535:
                    residency[token, layer, slot] = (layer, expert) in resident
        while rows and rows[0][0] == clock:
            _, kind, of_layer, expert, _ = rows.pop(0)
            (resident.discard if kind == 1 else resident.add)((of_layer, expert))
    trace.extras["residency"] = residency
    return result


@pytest.mark.parametrize("seed", range(4))
def test_rebuilt_from_the_log_equals_a_naive_replay(seed):
    trace = seeded_trace(seed, batch=2, unrouted=0.2)
    plan = plan_for(trace, "lru", slots=9 + seed, resident=[(0, 1), (2, 3)], parameters={"overflow": seed % 2})
    result = with_residency(trace, plan)
    check = check_residency(trace, plan, result)
    assert check.rows == check.agree == (trace.experts != 65535).sum()
    flipped = trace.extras["residency"]
    token, layer, slot = (int(i[5]) for i in np.nonzero(flipped != 255))
    flipped[token, layer, slot] ^= 1
    wrong = check_residency(trace, plan, result)
    assert wrong.agree == wrong.rows - 1
    assert wrong.to_frame()[["token", "layer", "slot"]].to_numpy().tolist() == [[token, layer, slot]]


def test_what_it_refuses():
    trace = seeded_trace(0)
    plan = plan_for(trace, "lru", slots=9)
    with pytest.raises(ValueError, match="carries no recorded residency"):
        check_residency(trace, plan, simulate(trace, plan, log=True))
    trace.extras["residency"] = np.zeros(trace.shape, np.uint8)
    with pytest.raises(ValueError, match="kept no log"):
        check_residency(trace, plan, simulate(trace, plan))
