"""Verdicts of ``moelab bench kernels`` on made-up rows: just below a gate, just above it, nothing known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moelab.bench.kernel_gates import GATES, MORE, QUICK, judged
from moelab.bench.kernel_row import KernelRow


def case(isa="avx512", weights="int4_g32", activation="int8", batch=1, threads=2, **figures):
    return KernelRow("case", isa=isa, weights=weights, activation=activation, batch=batch, threads=threads, **figures)


def peer(name, batch, times_ours):
    return KernelRow("peer", name=name, weights="its own", batch=batch, threads=2, times_ours=times_ours)


def verdict(*rows):
    """Of the first row."""
    row = judged(rows)[0]
    return row.gate, row.gate_percent, row.within_gate


@pytest.mark.parametrize(("isa", "weights", "activation", "batch", "percent"), [
    ("avx512", "int4_g32", "int8", 1, 92), ("avx512", "int4_g32", "bf16", 1, 90), ("avx2", "int4_g32", "int8", 1, 90),
    ("avx2", "int8_g32", "int8", 1, 90), ("avx512", "int4_g32", "int8", 4, 90),
])  # fmt: skip
@pytest.mark.parametrize("threads", [1, 2])
def test_of_the_read_limit(isa, weights, activation, batch, percent, threads):
    def of(found):
        return verdict(case(isa, weights, activation, batch, threads, percent_of_read_limit=found))

    assert of(percent - 0.01) == (f"{percent}%", percent, False)
    assert of(percent + 0.01) == (f"{percent}%", percent, True)
    assert of(None) == (f"{percent}%", percent, None)  # no step between equal reads


@pytest.mark.parametrize(("found", "within"), [(64.9, False), (65.1, True), (None, None)])
def test_a_large_batch_is_of_the_peak(found, within):
    """However little of the read limit it reaches."""
    large = case(batch=128, percent_of_peak=found, percent_of_read_limit=20.0)
    assert verdict(large) == ("65% peak", 65.0, within)


def test_a_large_batch_is_also_ahead_of_torch():
    large = case(batch=128, percent_of_peak=70.0)
    assert verdict(large, peer("torch bf16 prepacked", 128, 1.01)) == ("65% peak, 1x", 65.0, True)
    assert verdict(large, peer("torch bf16 prepacked", 128, 0.99))[2] is False
    assert verdict(large, peer("torch bf16 prepacked", 16, 0.99))[2] is True  # of another batch
    assert verdict(large, peer("ggml Q4_0 plain", 128, 0.99)) == ("65% peak", 65.0, True)  # that row's own gate


@pytest.mark.parametrize(("ms", "within"), [(63.9, True), (64.1, False)])
def test_batch_16_is_no_slower_a_token_than_batch_1(ms, within):
    others = [case(batch=1, threads=1, ms_median=1.0), case("avx2", ms_median=1.0), case(ms_median=4.0)]
    assert verdict(case(batch=16, ms_median=ms), *others) == ("per token", None, within)
    assert verdict(case(batch=16, ms_median=ms), *others[:2]) == ("per token", None, None)  # nothing beside it


@pytest.mark.parametrize(("torch", "ggml", "within"), [
    (1.31, 1.31, True), (1.29, 5.0, False), (5.0, 1.29, False), (None, 5.0, None), (None, 1.29, False),
])  # fmt: skip
def test_batch_16_is_well_ahead_of_the_better_peer(torch, ggml, within):
    rows = [
        case(batch=16, ms_median=40.0), case(ms_median=4.0), peer("torch bf16 linear", 16, torch),
        peer("ggml Q4_K repacked", 16, ggml), peer("torch _weight_int4pack_mm", 16, 1.1),
    ]  # fmt: skip
    assert verdict(*rows) == ("per token, 1.3x", None, within)
    of_peers = [(row.gate, row.within_gate) for row in judged(rows)[2:]]
    assert of_peers == [
        ("1.3x", None if torch is None else torch > 1.3), ("1.3x", ggml > 1.3), ("1x", True),
    ]  # fmt: skip


@pytest.mark.parametrize(("times", "within"), [(0.99, False), (1.01, True)])
@pytest.mark.parametrize(("name", "batch"), [
    ("kt-kernel AMXInt4_KGroup", 1), ("kt-kernel AMXInt4_KGroup", 16), ("torch bf16 linear", 4),
    ("ggml Q4_0 plain", 128),
])  # fmt: skip
def test_every_peer_is_behind(name, batch, times, within):
    assert verdict(peer(name, batch, times)) == ("1x", None, within)
    assert verdict(replace(peer(name, batch, times), num_agreeing=3))[2] is None, "of rounds that do not agree"


@pytest.mark.parametrize(("us", "within"), [(14.9, True), (15.1, False)])
def test_an_empty_call(us, within):
    call = KernelRow("call", isa="avx2", name="empty call", batch=1, threads=2, ms_median=us / 1e3)
    assert verdict(call) == ("15 us", None, within)


@pytest.mark.parametrize("row", [
    KernelRow("call", isa="avx2", name="empty call, Python", ms_median=1.0),
    KernelRow("absent", isa="avx512", reason="not built"),
    KernelRow("absent", name="ggml Q4_0 plain", reason="not installed"),
    KernelRow("crossover", isa="amx", name="beside avx512", batch=16, times_ours=0.5),
    case("numba", percent_of_read_limit=1.0), case(weights="int8_g32", percent_of_read_limit=1.0),
])  # fmt: skip
def test_no_gate_no_verdict(row):
    assert judged([row]) == [row]


def test_every_gate_is_of_a_case_that_runs():
    run = {row[:4] for row in QUICK + MORE}
    assert {key for key in GATES if key != "call"} <= run
