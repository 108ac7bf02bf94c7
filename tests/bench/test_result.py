"""Tables for people are narrow: one line a row, chosen columns; JSON has everything."""

from __future__ import annotations

from dataclasses import asdict, fields
from importlib import import_module

import pytest

from moelab.bench.kernel_row import COLUMNS, KernelRow
from moelab.bench.result import BenchResult, Column

# Benches whose rows have more keys than a line takes, with the class of the row.
ROWS = {
    "kernels": "KernelRow", "engine": "EngineRow", "decode": "DecodeRow", "recording": "RecordingCost",
    "parity": "ParityRow", "nll": "NllRow", "loading": "LoadingRow",
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_columns_are_fields_of_the_rows(name):
    bench = import_module(f"moelab.bench.{name}")
    keys = {field.name for field in fields(getattr(bench, ROWS[name]))}
    chosen = {key for column in bench.COLUMNS for key in (column.key, column.spread) if key is not None}
    assert chosen <= keys
    assert len({column.heading for column in bench.COLUMNS}) == len(bench.COLUMNS)


def test_a_line_for_each_row_and_everything_in_json():
    rows = [
        {"name": "a", "ms": 1.23456, "low_high": (1.0, 2.0), "nobody": None, "more": 5},
        {"name": "long name", "ms": None, "low_high": None, "nobody": None, "more": 123456},
    ]  # fmt: skip
    columns = (Column("what", "name"), Column("ms (range)", "ms", "low_high"), Column("none", "nobody"))
    result = BenchResult("A title", rows, {"whole": 3}, columns)
    assert repr(result).splitlines() == ["A title", "what  ms (range)", "a     1.23 (1 to 2)", "long name"]
    assert result.to_dict() == {"title": "A title", "whole": 3, "rows": rows}
    assert result._repr_html_().count("<tr>") == 3
    assert len(result.to_frame().columns) == 5
    everything = repr(BenchResult("A title", rows))
    assert everything.splitlines()[1].split() == ["name", "ms", "low_high", "more"]
    assert "123,456" in everything
    assert repr(BenchResult("One", rows[:1])).splitlines()[1] == "name      a"


def test_a_cell_can_be_made_of_the_whole_row():
    rows = [{"a": 1, "b": 2}, {"a": None, "b": 3}]
    total = Column("sum", "a", text=lambda row: str((row["a"] or 0) + row["b"]))
    assert BenchResult("", rows, columns=(total,)).table() == [["sum"], ["3"], ["3"]]
    assert BenchResult("", rows[1:], columns=(total, Column("b", "b"))).table() == [["b"], ["3"]]


def test_the_widest_rows_of_bench_kernels_fit_a_screen():
    """A kernel, a peer with the longest name, a call that computes nothing, and what is absent, all in one table."""
    figures = {
        "weights": "int4_g32", "activation": "bf16", "carried": "int16", "batch": 128, "threads": 64,
        "ms_median": 123.456, "gb_per_s": 123.456, "read_limit_gb_per_s": 123.456, "percent_of_read_limit": 93.21,
        "percent_quartiles": (90.12, 95.43), "percent_of_peak": 66.21, "gflops": 432.1, "relative_error": 0.0119,
        "num_steps": 145, "num_left_out": 13, "gate": "per token", "gate_percent": 65.0, "within_gate": True,
        "percent_of_read_limit_per_state": (96.51, 91.32),
    }  # fmt: skip
    rows = [asdict(row) for row in (
        KernelRow("case", isa="avx512", **figures),
        KernelRow("peer", name="kt-kernel AMXInt4_KGroup", version="kt-kernel 0.7.2 avx512_bf16",
                  **figures | {"weights": "its own", "activation": "its own", "carried": "its own", "gate": "1.3x",
                               "num_agreeing": 3}, times_ours=3.46, times_ours_quartiles=(3.28, 3.76)),
        KernelRow("call", isa="generic", name="empty call", weights="int4_g32", activation="int8", batch=1,
                  threads=2, ms_median=0.00372, gate="15 us", within_gate=True),
        KernelRow("absent", isa="amx", reason="not supported by this CPU: AMX-TILE, AMX-INT8 and AMX-BF16 are needed"),
    )]  # fmt: skip
    beside = rows[0] | {"gate": "per token, 1.3x"}  # where peers ran
    for chosen, width in (([beside, *rows[1:]], 210), ([rows[0], *rows[2:]], 160)):
        lines = repr(BenchResult("", chosen, columns=COLUMNS)).splitlines()
        assert len(lines) == len(chosen) + 2
        assert max(map(len, lines)) <= width
        assert lines[-1] == "amx: not supported by this CPU: AMX-TILE, AMX-INT8 and AMX-BF16 are needed"
    _, kernel, peer, call, _ = BenchResult("", rows, columns=COLUMNS).table()
    assert kernel[:2] == ["avx512", "int4 x bf16 (int16)"]
    assert [kernel[8:10], kernel[12:14]] == [["96.5, 91.3", "13 of 145"], ["per token", "yes"]]
    assert peer[:2] == ["kt-kernel AMXInt4_KGroup (0.7.2 avx512_bf16)", "its own"]
    assert [peer[9], peer[12]] == ["0, 3 agree", "1.3x"]
    assert call[:2] == ["generic empty call", "int4 x int8"]
    assert repr(BenchResult("Nothing", [])) == "Nothing"
