"""Ctrl-C: held where a stretch must not be cut in two, and at any moment of a move, after which all is as it was."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from moelab.dispatch.c_face import dispatch_arguments
from moelab.kernels import ExpertLayout, Pool, isa_table
from moelab.kernels.pieces import num_units
from moelab.migration.interrupts import held_interrupts
from moelab.migration.moves import Moves
from tests.migration.test_moves import random_layers

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")


def test_held_until_the_end():
    done = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with held_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            done.append("inside")
        done.append("never")
    assert done == ["inside"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with held_interrupts():
        pass
    with pytest.raises(ValueError, match="own"), held_interrupts():
        raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_is_left_alone():
    seen = []

    def work():
        with held_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


@pytest.mark.skipif(not NATIVE, reason="native kernels are not built")
def test_at_any_moment_of_a_move():
    """Signals come at moments by lot in the time that a move takes. Every byte and table is as before, each time."""
    layout, num_layers, num_experts = ExpertLayout(256, 256, "bf16"), 6, 16
    units, experts = num_units(layout), np.arange(num_experts)
    zeros = np.zeros(num_experts, np.int64)
    plans = [[(experts, zeros, zeros + units, (experts + shift) % 2)] * num_layers for shift in range(2)]
    rng, num_interrupted, num_over = np.random.default_rng(0), 0, 0
    with Pool() as alone:
        if alone.num_workers < 2:
            pytest.skip("one core only")
    with Pool(virtual_nodes=2) as pool:
        layers, blocks = random_layers(pool, layout, num_layers, num_experts)
        started = time.perf_counter()
        first = Moves(layers, pool, pool.memory_node_of_node)
        first.go(plans[0], dispatch=dispatch_arguments)
        first.commit()
        took = time.perf_counter() - started
        for _ in range(25):
            before = [layer.placement for layer in layers]
            moves = Moves(layers, pool, pool.memory_node_of_node)
            delay = float(rng.uniform(0, took))
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                moves.go(plans[1], dispatch=dispatch_arguments)
                num_over += 1
                timer.join()
                time.sleep(0.01)
            except KeyboardInterrupt:
                num_interrupted += 1
            assert moves.undo() == []
            assert [layer.placement for layer in layers] == before
            for layer, of_layer in zip(layers, blocks, strict=True):
                for expert, block in enumerate(of_layer):
                    np.testing.assert_array_equal(layer.placement[expert], block)
    assert num_interrupted == 25
    assert num_over < 20, "hardly a signal came in the middle"
