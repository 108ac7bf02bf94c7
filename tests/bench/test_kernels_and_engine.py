"""The benches at small sizes: every case runs, rows have the promised keys, peers that are missing say so. No times."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from moelab.bench import beside_peers, kernel_gates, kernels, layer_call, memory_states, read_reference
from moelab.bench import engine as engine_bench
from moelab.cli import main
from moelab.domain.allowed_cores import allowed_cores
from moelab.domain.model import ModelSpec
from moelab.kernels import ExpertArena, Pool, isa_table
from moelab.kernels.isa import IsaStatus
from moelab.store import shipped
from tests.kernels.random_experts import carried_as

KEYS = "isa weights activation batch threads ms_median ms_min ms_max percent_of_read_limit gflops relative_error"
ISAS = {row.isa for row in isa_table()}
AVAILABLE = [row.isa for row in isa_table() if row.supported]


@pytest.fixture
def small(monkeypatch):
    """256 x 128 instead of K2.6's shape."""
    for module in (kernels, beside_peers):
        monkeypatch.setattr(module, "HIDDEN_SIZE", 256)
        monkeypatch.setattr(module, "INTERMEDIATE_SIZE", 128)
    monkeypatch.setattr(kernels, "_ERROR_SIZE", 128)
    # Reads of microseconds differ as they like: every step counts.
    monkeypatch.setattr(memory_states, "MAX_READ_DIFFERENCE", np.inf)
    monkeypatch.setattr(read_reference, "STATE_CHANGE", np.inf)


def test_every_case_of_this_machine_is_a_row(small):
    rows = [asdict(row) for row in kernels.bench_kernels(0.01) if row.kind == "case"]
    expected = [case for case in kernels.QUICK + kernels.MORE if case[0] in AVAILABLE]
    assert len(rows) == len(expected)
    assert {(row["isa"], row["weights"], row["activation"], row["batch"]) for row in rows} == {c[:4] for c in expected}
    for row in rows:
        assert set(KEYS.split()) <= set(row)
        assert row["name"] is row["reason"] is None
        assert row["ms_min"] <= row["ms_median"] <= row["ms_max"]
        assert row["percent_of_read_limit"] > 0
        assert row["num_left_out"] == 0
        assert row["relative_error"] < 0.03
        assert row["carried"] == carried_as(row["isa"], row["weights"], row["activation"])
        assert row["virtual_nodes"] is False


def test_an_isa_that_the_machine_lacks_is_a_row(small, monkeypatch):
    """In both forms of the bench; its cases are left out, the others run."""
    table = [
        IsaStatus("numba", True, True, ""), IsaStatus("avx512", True, False, "not supported by this CPU"),
        *(IsaStatus(isa, False, False, "not built") for isa in ("generic", "avx2", "amx")),
    ]  # fmt: skip
    monkeypatch.setattr(kernels, "isa_table", lambda: table)
    rows = kernels.bench_kernels(0.01, quick=True)
    reasons = {"avx512": "not supported by this CPU", "avx2": "not built", "amx": "not built"}
    assert [(row.kind, row.isa, row.reason) for row in rows] == [("absent", *pair) for pair in reasons.items()]
    rows = kernels.bench_kernels(0.01)
    assert {row.isa: row.reason for row in rows if row.kind == "absent"} == reasons | {"generic": "not built"}
    assert {row.isa for row in rows if row.kind != "absent"} == {"numba"}


def test_the_bench_prints_its_gates_and_says_the_same_in_json(small, monkeypatch, capsys):
    """``--quick``, at small sizes: every row of the project's table has a gate and a verdict."""
    monkeypatch.setattr(kernels, "QUICK_S", 0.01)
    result = kernels.run(quick=True)
    assert main(["bench", "kernels", "--quick", "--json"]) in (0, None)
    told = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["kind"], row["isa"], row["gate"]) for row in told] == [
        (row["kind"], row["isa"], row["gate"]) for row in result.rows
    ]
    heading, *lines = result.table()
    assert {"gate", "within", "left out"} <= set(heading)
    assert len(lines) == len(told)
    for row in told:
        assert set(KEYS.split()) <= set(row)
        assert row["kind"] in ("case", "call", "crossover", "absent")
        assert row["isa"] in ISAS
        if row["kind"] == "case" and row["isa"] in ("avx512", "avx2"):
            assert isinstance(row["within_gate"], bool)
        if row["kind"] == "case" and row["isa"] != "amx" and row["batch"] != 16:
            assert row["gate_percent"] in (92.0, 90.0, 65.0)


def test_an_empty_layer_call_is_two_rows_of_each_isa():
    """In the library and from Python, by two workers, who take part however little there is."""
    rows = layer_call.rows_of_layer_calls(0.001)
    with Pool(2) as pool, ExpertArena(layer_call.LAYOUT, 4) as arena:
        isas = [isa for isa in AVAILABLE if isa != "numba"] if pool.num_workers == 2 else []
        for isa in isas:
            assert layer_call.OnPool(layer_call.LAYOUT, arena.addresses, isa, "int8", pool).workers(1) is pool
    assert [(row.kind, row.isa, row.name) for row in rows] == [
        ("call", isa, name) for isa in isas for name in ("empty call", "empty call, Python")
    ]
    for inside, outside in zip(rows[::2], rows[1::2], strict=True):
        assert 0 < inside.ms_min <= inside.ms_median <= outside.ms_median
        assert inside.threads == 2


@pytest.mark.skipif(AVAILABLE == ["numba"], reason="native kernels are not built")
@pytest.mark.skipif(len(allowed_cores()) < 2, reason="one core only")
def test_an_empty_layer_call_is_within_ten_times_its_gate():
    """150 us, seen 3.7: a sleep or a thread made in it would be more. On a busy machine one quiet moment is enough."""
    fastest: dict[str, float] = {}
    gate_us = kernel_gates.GATES["call"].us
    for _ in range(100):
        for row in layer_call.rows_of_layer_calls(0.0):
            if row.name == kernel_gates.EMPTY_CALL:
                fastest[row.isa] = min(fastest.get(row.isa, np.inf), 1e3 * row.ms_median)
        assert len(fastest) == len([isa for isa in AVAILABLE if isa != "numba"])
        if max(fastest.values()) < 10 * gate_us:
            return
    raise AssertionError(f"expected medians below {10 * gate_us} us in one round of each, got {fastest}")


def test_missing_peer_is_a_row(small, monkeypatch):
    class Missing:
        @staticmethod
        def available():
            return "not installed"

    monkeypatch.setattr(beside_peers, "PEERS", {"somebody": Missing})
    (row,) = beside_peers.rows_beside_peers(0.01)
    assert (row.kind, row.isa, row.name, row.reason) == ("absent", None, "somebody", "not installed")
    assert row.ms_median is None


def test_peer_runs_by_turns_with_ours(small, monkeypatch):
    monkeypatch.setattr(beside_peers, "PEERS", {"torch bf16 linear": beside_peers.PEERS["torch bf16 linear"]})
    monkeypatch.setattr(beside_peers, "BATCHES", (1, 3))
    monkeypatch.setattr(beside_peers, "PAUSE_S", 0)
    rows = list(beside_peers.rows_beside_peers(0.01))
    assert [row.batch for row in rows] == [1, 3]
    for row in rows:
        assert (row.kind, row.isa, row.name) == ("peer", None, "torch bf16 linear")
        assert row.version.startswith("torch ")
        assert row.times_ours > 0
        assert row.relative_error < 0.03  # to ours, which has int8 activations


@pytest.mark.skipif(AVAILABLE == ["numba"], reason="native kernels are not built")
def test_engine_slice(monkeypatch, capsys):
    tiny = ModelSpec.from_hf_config(json.loads((shipped("nano/model") / "config.json").read_text()))
    monkeypatch.setattr(ModelSpec, "preset", classmethod(lambda cls, name: tiny))
    assert main(["bench", "engine", "--layers", "2", "--experts", "8", "--seconds", "0.01", "--json"]) in (0, None)
    result = json.loads(capsys.readouterr().out)
    rows = result["rows"]
    judged = rows[0]  # int8 with the head: the gate's case
    assert set(result) == {
        "title", "rows", "ratio_to_limit", "ms_per_token", "bytes_per_token", "read_limit_gb_per_s",
    }  # fmt: skip
    assert all(result[key] == judged[key] for key in set(result) - {"title", "rows"})
    assert [(row["dense_weights"], row["head"]) for row in rows] == [
        ("int8", True), ("int8", False), ("bf16", True), ("bf16", False),
    ]  # fmt: skip
    for row in rows:
        assert len(row["routed_gb_per_s_per_node"]) == len(row["routed_percent_of_read_limit_per_node"]) == 1
        assert row["routed_gb_per_s_per_node"][0] > 0
        assert row["routed_tail_us"] >= 0
    gates = [(row["gate_ratio"], row["within_gate"]) for row in rows]
    assert gates == [(1.15, rows[0]["ratio_to_limit"] <= 1.15), *[(None, None)] * 3], "of int8 with the head"
    for with_head, without in (rows[:2], rows[2:]):
        head_bytes = with_head["bytes_per_token"] - without["bytes_per_token"]
        assert head_bytes == tiny.vocab_size * tiny.hidden_size * (
            17 / 16 if with_head["dense_weights"] == "int8" else 2
        )
        assert with_head["ratio_to_limit"] > 0
        expert_bytes = tiny.num_experts_per_tok * 2 * 3 * tiny.hidden_size * tiny.moe_intermediate_size * 4.5 / 8
        assert without["bytes_per_token"] > expert_bytes


@pytest.mark.skipif(AVAILABLE == ["numba"], reason="native kernels are not built")
@pytest.mark.skipif(len(allowed_cores()) < 2, reason="one core only")
def test_engine_slice_on_two_nodes(monkeypatch):
    """Experts and rows by node, and the limit too: rates of both nodes, marked as virtual."""
    tiny = ModelSpec.from_hf_config(json.loads((shipped("nano/model") / "config.json").read_text()))
    monkeypatch.setattr(ModelSpec, "preset", classmethod(lambda cls, name: tiny))
    asked = []
    real = read_reference.read_nodes

    def noted(addresses, nodes, *rest):
        asked.append(np.bincount(nodes, minlength=2))
        return real(addresses, nodes, *rest)

    monkeypatch.setattr(read_reference, "read_nodes", noted)
    for row in engine_bench.bench_engine(0.01, layers=2, experts=8, virtual_nodes=2):
        assert (row.num_nodes, row.virtual_nodes) == (2, True)
        assert len(row.routed_gb_per_s_per_node) == len(row.routed_percent_of_read_limit_per_node) == 2
        assert min(row.routed_percent_of_read_limit_per_node) > 0
    assert (np.array(asked) > 0).all()
    with engine_bench.slice_of("any", 2, 8, "int8", virtual_nodes=2) as part:
        engine = part.engine
        engine.generate([1, 2, 3], 3, stop=())
        assert all(min(layer.bytes_of_node) > 0 for layer in engine.routed)
        large = [made for made in part.linears if made.num_bytes > 20_000]
        assert len(large) > 4
        assert all(min(made.counters.bytes_of_node[:2]) > 0 for made in large if made.counters.num_calls)


def test_options_of_another_bench_are_refused(capsys):
    assert main(["bench", "store", "--layers", "2"]) == 2
    assert "--layers: expected bench engine; got store" in capsys.readouterr().err


@pytest.mark.skipif(AVAILABLE == ["numba"], reason="native kernels are not built")
@pytest.mark.skipif(len(allowed_cores()) < 2, reason="one core only")
def test_kernel_rows_by_node(small):
    """Experts on two virtual nodes, each read by its own worker; Numba beside it knows one."""
    isa = next(isa for isa in AVAILABLE if isa != "numba")
    with kernels.generated_experts("int4_g32", 24, virtual_nodes=2) as arena, Pool(virtual_nodes=2) as pool:
        row = kernels.bench_case(arena, pool, isa, "int8", 1, 0.01)
        numba = kernels.bench_case(arena, pool, "numba", "int8", 1, 0.01)
    for got, nodes in ((row, 2), (numba, 1)):
        assert len(got.gb_per_s_per_node) == len(got.percent_of_read_limit_per_node) == nodes
        assert min(got.gb_per_s_per_node) > 0
    assert row.virtual_nodes
    assert row.tail_us > 0
    assert numba.tail_us is None
