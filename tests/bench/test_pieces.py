"""Whole experts, cut ones and a mixture: real runs at a tiny shape, times by hand, ratios beside a naive twin."""

from statistics import median

import numpy as np
import pytest

from moelab.analysis.bootstrap import resamples
from moelab.bench.placement import pieces as pieces_room
from moelab.bench.placement.pieces import pieces
from moelab.domain.allowed_cores import allowed_cores
from moelab.kernels import ExpertLayout
from moelab.kernels.native import library

cores = len(allowed_cores())
needs_native = pytest.mark.skipif(library()[0] is None, reason="native kernels are not built")


@needs_native
def test_pieces():
    rows = pieces(shapes=("128x128",), seconds=0.4, isa="generic")
    # Four units of rows are too few for eight nodes.
    assert [(row["nodes"], row["experts"]) for row in rows] == [(n, k) for n in (2, 3, 4) for k in (8, 7)]
    assert [row["composed"] for row in rows] == [cores < 2] * 2 + [True] * 4
    by = {(row["nodes"], row["experts"]): row for row in rows}
    assert {key: sorted(row["us"]) for key, row in by.items()} == {
        key: ["cut", "mixture", "whole"] if key in {(2, 7), (3, 8), (3, 7), (4, 7)} else ["cut", "whole"] for key in by
    }
    assert by[3, 8]["bytes_over_whole"] == pytest.approx({"whole": 1.0, "cut": 8 / 9, "mixture": 8 / 9})
    assert by[4, 7]["bytes_over_whole"] == pytest.approx({"whole": 1.0, "cut": 7 / 8, "mixture": 7 / 8})
    for row in rows:
        assert row["over_whole"]["whole"] == 1.0
        for form, (low, high) in row["over_whole_interval"].items():
            assert low <= high
            assert abs(row["over_whole"][form] - (low + high) / 2) <= high - low
            if form != "whole" and high < 1:
                assert "whole" not in row["wins"].split(" or ")
        assert row["wins"]


def test_composed_times_are_of_the_fullest_node():
    """Overheads of 1 us, experts of 10 us, cut ones 12: by hand."""
    layout = ExpertLayout(128, 128, "int4_g32")  # four units: two, one and one on three nodes
    times = {f"whole {n}": np.full(3, 1.0 + 10 * n) for n in range(1, 9)}
    times |= {f"cut 3 {n}": np.full(3, 1.0 + 12 * n) for n in (8, 7, 2, 1)}
    row = pieces_room._row("128x128", layout, "generic", 3, 8, times)
    largest = 0.5 if (np.rint(np.linspace(0, 4, 4)) == [0, 1, 3, 4]).all() else None
    assert row["us"] == pytest.approx(
        {"whole": 31e6, "cut": 1e6 * (1 + 96 * largest), "mixture": 1e6 * (21 + 24 * largest)}
    )
    assert row["wins"] == "whole"
    times["whole 3"] = np.full(3, 50.0)
    assert pieces_room._row("128x128", layout, "generic", 3, 8, times)["wins"] == "mixture"


@pytest.mark.parametrize("seed", range(4))
def test_ratios_are_the_naive_twins(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(2, 12))
    a, b = rng.uniform(1, 2, num), rng.uniform(1, 2, num)
    middle, low, high = pieces_room.ratio(a, b)
    assert middle == pytest.approx(np.median(a / b))
    medians = []
    for counts in resamples(num, 400, 0).astype(int):
        medians.append(median(np.repeat(a / b, counts).tolist()))
    assert (low, high) == pytest.approx(
        (2 * middle - np.quantile(medians, 0.975), 2 * middle - np.quantile(medians, 0.025))
    )
    one = pieces_room.ratio(np.ones(1), np.ones(1))
    assert one[0] == 1
    assert np.isnan(one[1:]).all()
