"""SIGINT in a real Jupyter kernel, as the stop button sends it: in a replay, and in layer calls on a pool."""

from __future__ import annotations

import sys
import textwrap
import time

import pytest
from jupyter_client.manager import start_new_kernel

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


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
    text, error = notebook.run("replay(8000)", interrupt_after="begins")
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
