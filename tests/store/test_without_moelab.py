"""Plain Parquet: DuckDB and Polars count experts from the files, without moelab."""

import duckdb
import numpy as np
import polars as pl
import pytest

from moelab.domain.trace import NO_EXPERT
from moelab.store import save_trace
from tests.store.recorded_rows import Rows, header

TRACE = Rows(header(num_layers=3), seed=17).take(0, 700)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = save_trace(TRACE, tmp_path_factory.mktemp("plain") / "trace", segment_tokens=256)
    assert len(list(folder.glob("*.parquet"))) == 3
    return str(folder / "*.parquet")


@pytest.mark.parametrize("layer", range(3))
def test_duckdb_counts_experts(files, layer):
    rows = duckdb.sql(
        f"SELECT unnest(experts_{layer:02d}) AS expert, count(*) AS load FROM '{files}' GROUP BY expert"
    ).fetchall()
    assert_loads(rows, TRACE, layer)


@pytest.mark.parametrize("layer", range(3))
def test_polars_counts_experts(files, layer):
    column = f"experts_{layer:02d}"
    frame = pl.scan_parquet(files).select(pl.col(column).explode()).group_by(column).len().collect()
    assert_loads(frame.rows(), TRACE, layer)


def test_filters_by_the_token_table(files):
    decode = TRACE.take(TRACE.tokens.phase == 1)
    rows = duckdb.sql(f"SELECT unnest(experts_00) e, count(*) FROM '{files}' WHERE phase = 1 GROUP BY e").fetchall()
    assert_loads(rows, decode, 0)
    frame = pl.scan_parquet(files).filter(pl.col("phase") == 1).select(pl.col("experts_00").explode())
    assert_loads(frame.group_by("experts_00").len().collect().rows(), decode, 0)


def test_duckdb_sums_gate_weights(files):
    rows = duckdb.sql(
        f"SELECT e, sum(g) FROM (SELECT unnest(experts_01) e, unnest(gates_01) g FROM '{files}') GROUP BY e"
    ).fetchall()
    for expert, total in rows:
        expected = TRACE.gate_weights[:, 1][TRACE.experts[:, 1] == expert].astype(np.float64).sum()
        assert total == pytest.approx(expected)


def assert_loads(rows, trace, layer):
    counted = np.zeros(trace.header.num_experts, np.int64)
    for expert, load in rows:
        if expert != NO_EXPERT:
            counted[expert] = load
    np.testing.assert_array_equal(counted, trace.loads()[layer])
