"""Tables for people are narrow: one line a row, chosen columns; JSON has everything."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module

import pytest

from moelab.bench.kernels import COLUMNS, KernelRow
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


def test_the_widest_rows_of_bench_kernels_fit_a_screen():
    """A kernel, a peer with the longest name, a call that computes nothing, and what is absent, all in one table."""
    nothing = {field.name: None for field in fields(KernelRow)}
    figures = {
        "weights": "int4_g32", "activation": "bf16", "carried": "int16", "batch": 128, "threads": 64,
        "ms_median": 123.456, "gb_per_s": 123.456, "read_limit_gb_per_s": 123.456, "percent_of_read_limit": 93.21,
        "percent_quartiles": (90.12, 95.43), "percent_of_peak": 66.21, "gflops": 432.1, "relative_error": 0.0119,
    }  # fmt: skip
    rows = [
        nothing | figures | {"isa": "avx512"},
        nothing | figures | {"isa": "kt-kernel AMXInt4_KGroup (kt-kernel 0.7.2 avx512_bf16)", "weights": "its own",
                             "times_ours": 3.46, "times_ours_quartiles": (3.28, 3.76)},
        nothing | {"isa": "avx512: empty call in library (gate 15 us)", "ms_median": 0.00372},
        nothing | {"isa": "amx: not supported by this CPU: AMX-TILE, AMX-INT8 and AMX-BF16 are needed"},
    ]  # fmt: skip
    for chosen, width in ((rows, 200), ([rows[0], *rows[2:]], 165)):
        lines = repr(BenchResult("", chosen, columns=COLUMNS)).splitlines()
        assert len(lines) == len(chosen) + 2
        assert max(map(len, lines)) <= width
        assert lines[-1] == rows[-1]["isa"]
    assert repr(BenchResult("Nothing", [])) == "Nothing"
