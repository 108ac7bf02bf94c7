"""Which way of transformers is the peer: the search beside all ways, on made-up times; every attention really runs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from moelab.bench import decode
from moelab.bench.decode_peers import ATTENTIONS, BACKENDS, DTYPES, Transformers, Way, fastest_ways
from moelab.bench.parity import transformers_twin
from moelab.engine.engine import load
from moelab.store import shipped

ALL = [Way(*values) for values in product(DTYPES, ATTENTIONS, BACKENDS, (False, True), (1, 2))]


@pytest.mark.parametrize("seed", range(30))
def test_the_search_finds_the_fastest_where_choices_are_apart(seed):
    """Each choice costs a factor of its own: the best of all 48 is found, with at most 9 compiled."""
    rng = np.random.default_rng(seed)
    factors = {value: rng.uniform(1, 4) for value in (*DTYPES, *BACKENDS, True, False)}
    attention = {value: rng.uniform(1, 2) for value in ATTENTIONS}
    threads = {n: rng.uniform(1, 2) for n in (1, 2)}
    tried = []

    def seconds(way):
        rest = factors[way.dtype] * factors[way.backend] * factors[way.compiled]
        return rest * attention[way.attention] * threads[way.threads]

    def trial(way):
        tried.append(way)
        return seconds(way)

    found = fastest_ways(trial, (1, 2))
    assert found[0] == min(ALL, key=seconds)
    assert len(tried) == len(set(tried))
    assert sum(way.compiled for way in tried) <= 9
    assert [seconds(way) for way in found] == sorted(seconds(way) for way in tried)


def test_other_attention_and_threads_may_be_the_best_compiled():
    """Plain, eager attention on one thread is the fastest; compiled, sdpa on two."""

    def seconds(way):
        as_plain = (way.attention == "eager") + (way.threads == 1)
        return 1 + as_plain if way.compiled else 10 - as_plain

    assert fastest_ways(seconds, (1, 2))[0] in [way for way in ALL if way.compiled and seconds(way) == 1]


def test_ways_that_fail_are_left_out_and_none_at_all_is_an_error():
    found = fastest_ways(lambda way: None if way.dtype == "bfloat16" or way.compiled else 1.0, (1,))
    assert {(way.dtype, way.compiled) for way in found} == {("float32", False)}
    with pytest.raises(RuntimeError, match="expected a way to decode that runs here"):
        fastest_ways(lambda way: None, (1,))


def test_plain_ways_decode_and_leave_torch_as_it_was():
    """bfloat16 and sdpa are really another arithmetic; threads stay as they were found."""
    twin = transformers_twin(shipped("nano/model"))
    peers = Transformers(twin, 24)
    before = torch.get_num_threads()
    prompts = np.arange(2, 34).reshape(2, 16)
    for way in [Way(d, a, "batched_mm", False, 1) for d in DTYPES for a in ATTENTIONS]:
        assert peers.decode(way)(prompts, 3) > 0
        assert str(peers._model(way.dtype).dtype) == f"torch.{way.dtype}"
        assert peers._model(way.dtype).config._attn_implementation == way.attention
    assert torch.get_num_threads() == before


def test_our_row_has_what_was_counted():
    rates = []
    with load(shipped("nano/model"), device="cpu") as engine:
        engine.measure_read_limit()
        run = decode.ours(engine, rates)
        taken = {"moelab": [run(np.arange(2, 34).reshape(2, 16), 6) for _ in range(3)]}
    taken["peer"] = [10 * seconds for seconds in taken["moelab"]]
    row = decode._row("moelab", 2, taken, "peer", rates)
    assert row.times_best_peer == pytest.approx(10)
    assert row.gb_per_s == pytest.approx(float(np.median([each.gb_per_s for each in rates])))
    assert len(row.routed_gb_per_s_per_node) == len(row.routed_percent_of_read_limit_per_node) == 1
    assert row.routed_gb_per_s_per_node[0] > 0
    assert row.cache_resident
    assert row.read_limit.startswith("measured in this run")
    assert decode._row("peer", 2, taken, "peer", []).gb_per_s is None
