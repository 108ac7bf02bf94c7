"""Bytes that decide a prediction on nodes of unequal rates: against a walk over experts, one after the other."""

from __future__ import annotations

import os
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

import moelab
from moelab.domain.machine import Machine, NumaNode
from moelab.domain.plan_copies import whole_on
from moelab.domain.trace import NO_EXPERT, Phase
from moelab.execution.deciding_bytes import by_workers, deciding_bytes, slowness_here
from moelab.execution.execute import prepare
from moelab.execution.folding import Folding
from moelab.execution.prediction import predict_row
from moelab.execution.steps import take_steps
from moelab.execution.weights import generated
from moelab.kernels import ExpertLayout, Pool, isa_table

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
needs_two_nodes = pytest.mark.skipif(not NATIVE or cores < 2, reason="needs native kernels and two cores")


@pytest.fixture(scope="module")
def work_and_layout():
    capture = moelab.open_trace(moelab.shipped("nano/capture")).load(phase=Phase.DECODE)
    layout = ExpertLayout(64, 32, "int4_g32")
    folding = Folding(capture.header.num_layers, capture.header.num_experts, "")
    return prepare(capture, take_steps(capture, 30), folding, 64, layout.expert_bytes), layout


def placed(layout, node_of_expert, pool):
    copies = [whole_on(of_layer, 1) for of_layer in node_of_expert]
    return generated(layout, *node_of_expert.shape, isa=NATIVE[0], activation="int8", pool=pool, copies=copies)


def twin(work, node_of_expert, rates, expert_bytes):
    """Exact fractions: seconds of the node that is last, and what all nodes would read in that time."""
    out = []
    for ids in work.ids:
        total = Fraction(0)
        for layer in range(ids.shape[1]):
            held = [0] * len(rates)
            for expert in {int(e) for e in ids[:, layer].ravel()} - {NO_EXPERT}:
                held[node_of_expert[layer][expert]] += expert_bytes
            total += max(Fraction(h) / Fraction(r) for h, r in zip(held, rates, strict=True))
        out.append(float(total * sum(map(Fraction, rates))))
    return out


@needs_two_nodes
@pytest.mark.parametrize("seed", range(4))
def test_against_a_walk_over_experts(work_and_layout, seed):
    work, layout = work_and_layout
    rng = np.random.default_rng(seed)
    rates = rng.uniform(1, 50, 2)
    nodes = rng.integers(0, 2, (6, 48))
    with Pool(2, virtual_nodes=2) as pool:
        weights = placed(layout, nodes, pool)
        found = deciding_bytes(weights, work, rates[0] / rates)
        again = deciding_bytes(weights, work, rates[1] / rates)  # only ratios matter
        equal = deciding_bytes(weights, work, np.ones(2))
        weights.close()
    np.testing.assert_allclose(found, twin(work, nodes.tolist(), rates.tolist(), layout.expert_bytes), rtol=1e-12)
    np.testing.assert_allclose(again, found, rtol=1e-12)
    assert (found >= work.bytes_of_step * (1 - 1e-12)).all()  # no placement is read faster than by all nodes together
    busiest = twin(work, nodes.tolist(), [1, 1], layout.expert_bytes)
    np.testing.assert_array_equal(equal, busiest)  # to the bit: twice the bytes of the busiest node


@needs_two_nodes
def test_bytes_that_lie_as_the_rates_do_take_no_longer_than_all_at_once(work_and_layout):
    """Rates 3 : 1, and of every 4 experts that a layer-step asks for 3 lie on the faster node: nothing is lost."""
    work, layout = work_and_layout
    one = next(step for step, ids in enumerate(work.ids) if len(ids) == 1)
    ids = work.ids[one][0]  # [L, K] of one token
    nodes = np.zeros((6, 48), np.int64)
    for layer in range(6):
        nodes[layer, ids[layer][: ids.shape[1] // 4]] = 1
    with Pool(2, virtual_nodes=2) as pool:
        weights = placed(layout, nodes, pool)
        best = deciding_bytes(weights, work, np.array([1.0, 3.0]))
        other = deciding_bytes(weights, work, np.array([3.0, 1.0]))
        weights.close()
    assert best[one] == pytest.approx(work.bytes_of_step[one])
    assert other[one] == pytest.approx(work.bytes_of_step[one] * 3)  # 3/4 of the bytes at 1/4 of all rates
    machine = machine_of({2: 30.0}, {2: 10.0})
    predictions = [
        predict_row(machine, step_bytes=each[[one]], step_tokens=np.ones(1), num_layers=6, kernel="none")
        for each in (best, other)
    ]
    assert predictions[1].ms_per_token() == pytest.approx(3 * predictions[0].ms_per_token())


def machine_of(*rates):
    nodes = tuple(
        NumaNode(name=f"node{n}", cores=(n,), memory_bytes=1, read_gb_per_s=rate) for n, rate in enumerate(rates)
    )
    return Machine(name="paper", source="preset", nodes=nodes)


def test_whose_rates_they_are():
    pool = SimpleNamespace(num_nodes=2, node_of_worker=[0, 0, 0, 1])
    values, source = slowness_here(machine_of({2: 30.0}, {2: 10.0}), pool, in_cache=False)
    assert (values.tolist(), source) == ([1.0, 3.0], "read rates of paper")
    for machine, in_cache in ((machine_of({2: 30.0}), False), (machine_of({2: 30.0}, {}), False),
                              (machine_of({2: 30.0}, {2: 30.0}), True)):  # fmt: skip
        values, source = slowness_here(machine, pool, in_cache=in_cache)
        assert (values.tolist(), source) == ([1.0, 3.0], "workers of each node")
    assert by_workers([2, 2, 2]).tolist() == [1.0, 1.0, 1.0]
    assert by_workers([1, 2, 4]).tolist() == [1.0, 0.5, 0.25]
