"""Bandwidth of the live engine: counted by layer and phase, beside a limit of the same run; a closed engine refuses."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import moelab
import moelab.calibration
from moelab import plots
from moelab.cli import main
from moelab.domain.machine import Machine, NumaNode
from moelab.domain.trace import Phase
from moelab.engine import counters
from moelab.engine.generate import run
from moelab.engine.generation import Generation
from moelab.engine.sampling import Sampling
from moelab.engine.step_rates import KnownLimit, StepRates
from moelab.kernels import Bandwidth, Counts, isa_table, read_limit

ISAS = [row.isa for row in isa_table() if row.supported and row.isa in ("numba", "generic", "avx2", "avx512")]


@pytest.mark.parametrize("isa", ISAS)
def test_decode_and_prefill_are_counted_apart(isa):
    with moelab.load(moelab.shipped("nano/model"), isa=isa) as engine:
        with pytest.raises(RuntimeError, match="expected steps of this phase, got none"):
            engine.bandwidth()
        for prompt in ("The first", "A second, longer prompt"):
            with moelab.record(engine) as trace:
                engine.generate(prompt, 9, stop=())
        table = engine.bandwidth()
        decode = trace.phase(Phase.DECODE)
        layers, top_k = trace.header.num_layers, trace.header.top_k
        assert decode.num_tokens == 8
        assert table.num_nodes == 1
        # One sequence, top-k distinct experts: a call reads k experts, whatever the prompt.
        assert [row.num_bytes for row in table.rows] == [2 * 8 * top_k * engine.expert_bytes] * layers
        assert [row.num_calls for row in table.rows] == [16] * layers
        if isa == "numba":
            assert table.dense == ()
        else:  # every linear layer, router, shared expert and the head once a token
            assert [row.num_bytes for row in table.dense] == [16 * engine.model.linears.num_bytes]
            assert [line[0] for line in table.table()].count("dense") == 1
        prefill = engine.bandwidth(Phase.PREFILL)
        total = sum(row.num_bytes for row in (*table.rows, *prefill.rows))
        assert total == engine.counters.expert_bytes
        assert [row.num_calls for row in prefill.rows] == [2] * layers
        assert all(row.gb_per_s > 0 and row.ms_per_call > 0 for row in (*table.rows, *prefill.rows))
        assert table.totals[0].read_limit_gb_per_s > 0
        assert table.cache_resident
        assert table.totals[0].percent_of_read_limit is None, "nano fits the cache: no percentage"
        assert (table.totals[0].tail_us_per_call is None) == (isa == "numba")
        assert len(table.to_frame()) == layers
        assert "<table>" in table._repr_html_()
        assert "read limit" in repr(table)
        assert len(plots.bandwidth(table).data) == 2


@pytest.mark.skipif(ISAS == ["numba"], reason="native kernels are not built")
def test_the_limit_is_read_by_the_workers_of_the_decode_step(monkeypatch):
    """nano's expert layers alone would run on the caller; its decode step may have the pool."""
    asked = []

    def noted(addresses, num_bytes, pool=None, **options):
        asked.append(pool)
        return read_limit(addresses, num_bytes, pool, **options)

    monkeypatch.setattr(counters, "read_limit", noted)
    with moelab.load(moelab.shipped("nano/model")) as engine:
        engine.generate("The first", 3, stop=())
        program = engine.model.last_program
        for pool in (None, engine.pool):
            program.pool = pool
            engine.bandwidth()
        assert asked == [None, engine.pool]


def test_rates_and_percentages_of_two_nodes():
    counts = Counts(
        np.array([[100, 300], [100, 0]]) * 10**6, np.array([[0.01, 0.02], [0.01, 0.0]]), np.array([1e-3, 3e-3]),
        np.array([10, 10]),
    )  # fmt: skip
    table = Bandwidth.of("toy", counts, (20.0, 30.0), read_loop="loop", virtual_nodes=True)
    assert [(row.layer, row.node) for row in table.rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [row.gb_per_s for row in table.rows] == pytest.approx([10, 15, 10, 0])
    assert [row.percent_of_read_limit for row in table.rows] == [pytest.approx(50)] * 3 + [None]
    assert [row.tail_us_per_call for row in table.rows] == pytest.approx([100, 100, 300, 300])
    assert table.totals[1].gb_per_s == pytest.approx(15)
    assert table.totals[0].num_bytes == 200 * 10**6
    assert "Virtual nodes" in repr(table)
    assert len(plots.bandwidth(table).data) == 4


@pytest.mark.parametrize("isa", ISAS)
def test_a_generation_has_the_rates_of_its_own_decode_steps(isa):
    """Steps of each sequence are counted from its first to its last, whoever decodes beside it."""
    with moelab.load(moelab.shipped("nano/model"), isa=isa) as engine:
        assert engine.generate([1, 2, 3], 1, stop=()).decode_rates is None, "its only token is the prefill's"
        alone = engine.generate([1, 2, 3], 6, stop=())
        a_step = engine.spec.num_moe_layers * engine.spec.num_experts_per_tok * engine.expert_bytes
        dense = 0 if isa == "numba" else engine.model.linears.num_bytes
        rates = alone.decode_rates
        assert (rates.num_steps, rates.num_bytes) == (5, 5 * (a_step + dense))
        assert [rate.num_bytes for rate in rates.routed] == [5 * a_step]
        assert [rate.num_bytes for rate in rates.dense] == ([5 * dense] if dense else [])
        # Between two bounds that hold however slow the machine is: the steps lie within the decode, the kernels' time
        # within the steps. Either rate of the kernels alone may be below the whole (a slow expert beside fast rows).
        step_s = rates.num_bytes / rates.gb_per_s / 1e9
        kernels_s = sum(rate.num_bytes / rate.gb_per_s / 1e9 for rate in (*rates.routed, *rates.dense))
        assert 0 < kernels_s < step_s <= alone.decode_s * (1 + 1e-9)
        assert (rates.read_limit, rates.percent_of_read_limit) == (None, None)
        assert "not measured in this run" in repr(alone)

        engine.read_limit = KnownLimit((10.0,), "known before")
        both = engine.generate([[1, 2, 3], [4, 5]], 5, stop=())
        assert [each.decode_rates.num_steps for each in both] == [4, 4]
        of_both = both[0].decode_rates
        assert 4 * a_step < of_both.routed[0].num_bytes <= 8 * a_step
        assert of_both.percent_of_read_limit == pytest.approx(10 * of_both.gb_per_s)
        assert of_both.routed[0].percent_of_read_limit == pytest.approx(10 * of_both.routed[0].gb_per_s)
        assert "of 10.0" in repr(both[0])
        assert "known before" in repr(both[0])
        assert both[0].to_frame().shape[0] == 1

        engine.measure_read_limit()
        measured = engine.generate([1, 2, 3], 3, stop=()).decode_rates
        assert measured.read_limit.startswith("measured in this run")
        assert measured.routed[0].read_limit_gb_per_s > 0
        assert measured.routed[0].percent_of_read_limit is None, "nano fits the cache: no percentage"


def test_a_sequence_that_joins_late_or_is_given_up_has_its_own_steps():
    with moelab.load(moelab.shipped("nano/model")) as engine:
        sampling = Sampling()
        long, short, last = (
            engine.new_sequence([1, 2, number], length, sampling, ()) for number, length in ((3, 9), (4, 3), (5, 4))
        )
        for _ in run(engine, [long, short, last], batch_size=2):
            pass
        results = [Generation.of(sequence, engine).decode_rates for sequence in (long, short, last)]
        assert [rates.num_steps for rates in results] == [8, 2, 3]
        given_up = engine.new_sequence([1, 2], 9, sampling, ())
        steps = run(engine, [given_up])
        for _ in range(4):
            next(steps)
        steps.close()
        engine.generate([7], 4, stop=())
        assert Generation.of(given_up, engine).decode_rates.num_steps == 3


def test_rates_of_a_step_on_two_nodes():
    routed = Counts(np.array([[100, 300]]) * 10**6, np.array([[0.01, 0.02]]), np.array([0.0]), np.array([10]))
    dense = Counts(np.array([[200]]) * 10**6, np.array([[0.02]]), np.array([0.0]), np.array([10]))
    rates = StepRates.of(routed, dense, 0.05, 10, KnownLimit((20.0, 30.0), "by hand"), virtual=True)
    assert [rate.gb_per_s for rate in rates.routed] == pytest.approx([10, 15])
    assert [rate.percent_of_read_limit for rate in rates.routed] == pytest.approx([50, 50])
    assert rates.gb_per_s == pytest.approx(12)
    assert rates.percent_of_read_limit == pytest.approx(24)
    assert "routed experts, virtual node 1" in rates.summary()
    other = StepRates.of(routed, dense, 0.05, 10, KnownLimit((20.0,), "of one node"), virtual=True)
    assert other.read_limit is None
    assert other.percent_of_read_limit is None
    assert StepRates.of(routed, dense, 0.0, 0, None, virtual=False) is None


def test_limit_of_a_machine_file():
    nodes = tuple(
        NumaNode(name=f"node{n}", cores=(n,), memory_bytes=1, read_gb_per_s=rates)
        for n, rates in enumerate(({1: 10.0, 2: 18.0}, {4: 30.0}))
    )
    machine = Machine(name="m", source="calibration", date="2026-11-01", nodes=nodes)
    pool = SimpleNamespace(num_nodes=2, virtual=False, node_of_worker=[0, 0, 1])
    limit = KnownLimit.of_machine(machine, pool, cache_resident=False)
    assert limit.gb_per_s_of_node == (18.0, 30.0)  # for as many workers where that was measured, else the best
    assert limit.source == "calibration of 2026-11-01, m: not of this run"
    for other in (
        SimpleNamespace(num_nodes=1, virtual=False, node_of_worker=[0]),
        SimpleNamespace(num_nodes=2, virtual=True, node_of_worker=[0, 1]),
    ):
        assert KnownLimit.of_machine(machine, other, cache_resident=False) is None


def test_generate_prints_the_rates(capsys, monkeypatch, tmp_path):
    file = tmp_path / "machine.json"
    monkeypatch.setattr(moelab.calibration, "machine_file", lambda: file)
    arguments = ["generate", "nano", "The people", "--max-new-tokens", "4"]
    found = {}
    for name, more in (("none", ["--no-read-limit"]), ("measured", [])):
        assert not main([*arguments, *more, "--json"])
        (row,) = json.loads(capsys.readouterr().out)["generations"]
        found[name] = row["decode_rates"]
    assert found["none"]["num_steps"] == found["measured"]["num_steps"] == 3
    assert found["none"]["gb_per_s"] > 0
    assert found["none"]["read_limit"] is None
    assert found["measured"]["read_limit"].startswith("measured in this run")
    assert found["measured"]["routed"][0]["read_limit_gb_per_s"] > 0
    node = NumaNode(name="node0", cores=(0,), memory_bytes=1, read_gb_per_s={1: 20.0})
    Machine(name="m", source="calibration", date="2026-11-01", nodes=(node,)).save(file)
    assert not main([*arguments, "--no-read-limit"])
    text = capsys.readouterr().err
    assert "routed experts, node 0: " in text
    assert "read limit: calibration of 2026-11-01, m: not of this run; the experts fit the last-level cache" in text


def test_closed_engine_refuses_to_run():
    engine = moelab.load(moelab.shipped("nano/model"))
    engine.generate([1, 2, 3], 2, stop=())
    engine.close()
    for use in (lambda: engine.generate([1, 2, 3], 2), lambda: engine.forward(torch.tensor([1, 2]))):
        with pytest.raises(RuntimeError, match="is closed: expected an open one; load the model again"):
            use()
