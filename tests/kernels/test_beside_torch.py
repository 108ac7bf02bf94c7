"""The pool beside torch's own threads, and in a notebook that is interrupted."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from jupyter_client.manager import start_new_kernel

import moelab
from moelab.kernels import ExpertLayout, Pool, RoutedExperts, routed
from tests.kernels.random_experts import random_arena, random_step

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def thread_ids() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


@pytest.fixture
def four_torch_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@linux
def test_pool_and_torch_thread_team_run_at_the_same_time(four_torch_threads, monkeypatch):
    """More threads than cores, both computing: no deadlock, the results of each alone, pins and thread count stay."""
    monkeypatch.setattr(routed, "ALONE_BYTES", {"numba": 0, "native": 0})
    layout = ExpertLayout(512, 256, "int4_g32")
    arena = random_arena(layout, 8, seed=1)
    x, ids, gates = random_step(np.random.default_rng(2), 6, 3, 8, 512)
    expected = RoutedExperts(layout, arena.addresses, owner=arena).forward(x, ids, gates)
    a = torch.randn(300, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = a @ a  # starts torch's team, so that the threads that come next are the pool's
    before = thread_ids()
    with Pool() as pool:
        workers = thread_ids() - before
        assert len(workers) == pool.num_workers - 1
        pins = {tid: os.sched_getaffinity(tid) for tid in workers}
        assert all(len(cores) == 1 for cores in pins.values()) == (pool.pinned or not workers)
        experts = RoutedExperts(layout, arena.addresses, pool=pool, owner=arena)
        stop, wrong, num_products = threading.Event(), [], [0]

        def multiply() -> None:
            while not stop.is_set():
                num_products[0] += 1
                if not torch.allclose(a @ a, product, rtol=1e-12, atol=1e-12):
                    wrong.append("torch")

        team = threading.Thread(target=multiply, daemon=True)
        team.start()
        deadline, calls = time.monotonic() + 60, 0
        while (calls < 300 or num_products[0] < 20) and time.monotonic() < deadline:
            calls += 1
            if not np.array_equal(experts.forward(x, ids, gates), expected):
                wrong.append("pool")
        stop.set()
        team.join(60)
        assert not team.is_alive()
        assert calls >= 300
        assert num_products[0] >= 20
        assert wrong == []
        assert {tid: os.sched_getaffinity(tid) for tid in workers} == pins
        assert torch.get_num_threads() == 4
    assert not workers & thread_ids(), "the pool's threads end with it"


def test_engine_leaves_the_number_of_torch_threads_as_found(four_torch_threads):
    with moelab.load(moelab.shipped("nano/model")) as engine:
        inside = []
        engine.observers.append(lambda *arguments: inside.append(torch.get_num_threads()))
        engine.generate([1, 2, 3], 3, stop=())
        assert set(inside) == {1}
        assert torch.get_num_threads() == 4

        def fail(*arguments):
            raise KeyboardInterrupt

        engine.observers.append(fail)
        with pytest.raises(KeyboardInterrupt):
            engine.generate([1, 2, 3], 3, stop=())
        assert torch.get_num_threads() == 4


class Notebook:
    """A real ipykernel; ``run`` sends a cell and gives (text printed, name of the error or None)."""

    def __init__(self) -> None:
        self.manager, self.client = start_new_kernel(kernel_name="python3", startup_timeout=120)

    def run(self, source: str, interrupt_after: str | None = None) -> tuple[str, str | None]:
        message = self.client.execute(textwrap.dedent(source))
        text, error, interrupted = "", None, False
        while True:
            got = self.client.get_iopub_msg(timeout=180)
            if got["parent_header"].get("msg_id") != message:
                continue
            content = got["content"]
            if got["msg_type"] == "stream":
                text += content["text"]
            elif got["msg_type"] == "error":
                error = content["ename"]
            elif got["msg_type"] == "status" and content["execution_state"] == "idle":
                return text, error
            if interrupt_after is not None and interrupt_after in text and not interrupted:
                interrupted = True
                time.sleep(0.3)  # into the middle of the work
                self.manager.interrupt_kernel()  # SIGINT, as the stop button sends it

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def notebook():
    notebook = Notebook()
    yield notebook
    notebook.close()


@linux
def test_interrupted_replay_leaves_a_kernel_that_replays(notebook):
    """SIGINT while the steps of a replay run; the same kernel replays again, and no worker is left behind."""
    setup = """
        import os
        import moelab
        from moelab.domain.machine import Machine, NumaNode
        decode = moelab.open_trace(moelab.shipped("nano/capture")).load(phase=moelab.Phase.DECODE)
        node = NumaNode(name="node0", cores=(0, 1), memory_bytes=2**34, read_gb_per_s={2: 10.0})
        machine = Machine(name="paper", source="calibration", nodes=(node,), last_level_cache_bytes=32 << 20)
        def replay(tokens):
            return moelab.replay(decode, machine=machine, expert_shape="own", tokens=tokens, progress=False,
                                 on_prediction=lambda *a: print("begins", flush=True))
        replay(4)
        threads = len(os.listdir("/proc/self/task"))
    """
    text, error = notebook.run(setup)
    assert error is None, text
    text, error = notebook.run("replay(25000)", interrupt_after="begins")
    assert error == "KeyboardInterrupt", text
    text, error = notebook.run("""
        row = replay(8).rows[0]
        print(row.tokens, row.max_relative_error < row.relative_error_tolerance)
        print(len(os.listdir("/proc/self/task")) <= threads)
    """)
    assert error is None, text
    assert "8 True\nTrue" in text


@linux
def test_interrupted_layer_calls_leave_a_pool_that_runs(notebook):
    """Three interrupts in a loop of layer calls on one pool; results stay the same bit for bit."""
    text, error = notebook.run("""
        import numpy as np
        from moelab.kernels import ExpertArena, ExpertLayout, Pool, RoutedExperts
        from moelab.kernels.generated import fill_expert
        layout = ExpertLayout(2048, 1024, "int4_g32")
        arena = ExpertArena(layout, 8)
        for e in range(8):
            fill_expert(arena[e], layout, seed=e)
        pool = Pool()
        experts = RoutedExperts(layout, arena.addresses, pool=pool, owner=arena)
        x, ids = np.ones((1, 2048), np.float32), np.arange(4)[None]
        gates = np.full((1, 4), 0.25, np.float32)
        y = experts.forward(x, ids, gates).copy()
    """)
    assert error is None, text
    for _ in range(3):
        text, error = notebook.run(
            "print('begins', flush=True)\nwhile True: experts.forward(x, ids, gates)", interrupt_after="begins"
        )
        assert error == "KeyboardInterrupt", text
        text, error = notebook.run("print(np.array_equal(experts.forward(x, ids, gates), y), pool)")
        assert error is None, text
        assert text.startswith("True Pool(")
