"""The bench of the crossover and the peak run; the times under the emulator mean nothing."""

from __future__ import annotations

from moelab.bench import amx_crossover, kernels
from moelab.kernels import peak_gflops
from tests.kernels.amx.library import BESIDE_AMX


def test_crossover(amx, monkeypatch):
    monkeypatch.setattr(kernels, "HIDDEN_SIZE", 128)
    monkeypatch.setattr(kernels, "INTERMEDIATE_SIZE", 64)
    monkeypatch.setattr(amx_crossover, "TOKENS_OF_EXPERT", (1, 5, 17))
    with amx.counted() as executed:
        rows = amx_crossover.rows_of_crossover(0.0, BESIDE_AMX)
    assert [row.batch for row in rows] == [1, 5, 17]
    assert all(row.times_ours > 0 and row.num_steps >= 3 for row in rows)
    if amx.active:
        # 8 experts of 8 rows of tiles by 4 groups and 8 by 2; four steps at least of 1, 1 and 2 blocks of 16 tokens.
        assert executed["TDPBSUD"] >= 4 * (1 + 1 + 2) * 8 * (8 * 4 + 8 * 2)


def test_peak_counts_what_it_executes(amx, monkeypatch):
    monkeypatch.setitem(peak_gflops.__globals__, "PEAK_ITERATIONS", 50)
    for activation, name in (("int8", "TDPBSUD"), ("bf16", "TDPBF16PS")):
        with amx.counted() as executed:
            assert peak_gflops("amx", activation) > 0
        if amx.active:
            assert executed == {"LDTILECFG": 1, "TILERELEASE": 1, "TILEZERO": 8, name: 200}
