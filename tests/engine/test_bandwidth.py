"""Bandwidth of the live engine: counted by layer and phase, beside a limit of the same run; a closed engine refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moelab
from moelab import plots
from moelab.domain.trace import Phase
from moelab.engine import counters
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


def test_closed_engine_refuses_to_run():
    engine = moelab.load(moelab.shipped("nano/model"))
    engine.generate([1, 2, 3], 2, stop=())
    engine.close()
    for run in (lambda: engine.generate([1, 2, 3], 2), lambda: engine.forward(torch.tensor([1, 2]))):
        with pytest.raises(RuntimeError, match="is closed: expected an open one; load the model again"):
            run()
