"""Tail and own work, counted by the library: phases that sleep as long as a test says, in the place of kernels."""

from __future__ import annotations

import ctypes
import time

import numpy as np
import pytest

from moelab.kernels import ExpertLayout, Pool, RoutedExperts
from moelab.kernels import pool as pool_module
from moelab.kernels.native import PHASE, library
from moelab.kernels.places import Place
from tests.kernels.random_experts import random_arena

pytestmark = pytest.mark.skipif(library()[0] is None, reason="native kernels are not built")


@pytest.fixture
def pool(monkeypatch):
    """Two workers, each a node of its own, on any core."""
    monkeypatch.setattr(pool_module, "places", lambda *_: [Place(0, 0), Place(0, 1)])
    with Pool(pin=False, virtual_nodes=2) as pool:
        yield pool


@pytest.mark.parametrize(("up_ms", "down_ms"), [((20, 80), (50, 10)), ((90, 10), (90, 10)), ((30, 30), (0, 60))])
def test_both_waits_are_counted_and_own_work_has_none(pool, up_ms, down_ms):
    """Expert n is on node n and takes ms[n] of each phase. Sleeping workers need no core of their own."""
    layout = ExpertLayout(64, 32, "int4_g32")
    arena = random_arena(layout, 2, 0)
    layer = RoutedExperts(layout, arena.addresses, "generic", pool=pool, owner=arena, node_of_expert=[0, 1])

    def phase(ms_of_expert, units):
        def sleep(job, start, stop, bytes_read):
            assert start // units == (stop - 1) // units
            time.sleep(ms_of_expert[start // units] / 1e3 * (stop - start) / units)
            ctypes.cast(bytes_read, ctypes.POINTER(ctypes.c_uint64))[0] += 1000 * (stop - start)
            return 0

        return PHASE(sleep)

    table = layer.native_struct.table.contents
    table.gate_up, table.down = phase(up_ms, 1), phase(down_ms, 4)
    seen = []  # seconds of a call, tail, own work of each node: the call that was disturbed least is judged
    for _ in range(8):
        before = np.array([layer.seconds, layer.tail_seconds, *layer.seconds_of_node])
        layer.forward(np.ones((1, 64), np.float32), np.array([[0, 1]]), np.ones((1, 2), np.float32))
        seen.append(1e3 * (np.array([layer.seconds, layer.tail_seconds, *layer.seconds_of_node]) - before))
    total, tail, *own = min(seen, key=lambda call: call[0])
    late = 12  # ms that sleeps may take longer
    for node in range(2):
        assert up_ms[node] + down_ms[node] - 1 <= own[node] <= up_ms[node] + down_ms[node] + late
    assert abs(tail - abs(up_ms[0] - up_ms[1]) - abs(down_ms[0] - down_ms[1])) <= late
    assert max(up_ms) + max(down_ms) - 1 <= total
    assert layer.bytes_of_node == [8 * 5000, 8 * 5000]
