"""Ctrl-C in a notebook cell: a real Jupyter kernel, interrupted as JupyterLab does it while engine or replay run."""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

pytestmark = pytest.mark.notebook
ROOT = Path(__file__).resolve().parent.parent.parent
CELL_S = 30

SETUP = """
import os
import threading
import moelab
engine = moelab.load(moelab.shipped("nano/model"), num_workers=2)
trace = moelab.open_trace(moelab.shipped("nano/capture")).load(phase=moelab.Phase.DECODE)
PROMPT = "The people of the city"
pool, num_threads = engine.pool, threading.active_count()
"""
TEXT = """
result = engine.generate(PROMPT, 48, stop=())
assert engine.pool is pool and not pool.closed
assert threading.active_count() == num_threads
print(repr(result.text))
"""
# Loops that end by Ctrl-C alone; each says when it is inside. Batches of eight run the experts on the pool.
LOOPS = {
    "generate": """
while True:
    engine.generate([PROMPT] * 8, 32, stop=())
    print("inside", flush=True)
""",
    "replay": """
while True:
    moelab.replay(trace, expert_shape="own", tokens=50, num_workers=2)
    print("inside", flush=True)
""",
    "pool": """
while True:
    pool.draw(200, lambda number: sum(range(2000)))
    print("inside", flush=True)
""",
}


class Notebook:
    """A kernel, and cells that are run in it."""

    def __init__(self) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(ROOT))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=CELL_S)

    def cell(self, code: str, on_first_text=None) -> tuple[dict, str]:
        """The reply and what was printed; ``on_first_text()`` is called once something is."""
        printed: list[str] = []

        def output(message: dict) -> None:
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                if not printed and on_first_text is not None:
                    on_first_text()
                printed.append(message["content"]["text"])

        reply = self.client.execute_interactive(code, timeout=CELL_S, output_hook=output)
        return reply["content"], "".join(printed)

    def checked(self, code: str) -> str:
        reply, printed = self.cell(code)
        assert reply["status"] == "ok", "\n".join(reply["traceback"])
        return printed

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def notebook():
    notebook = Notebook()
    try:
        notebook.checked(SETUP)
        yield notebook
    finally:
        notebook.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no signals on this platform")
@pytest.mark.parametrize("name", LOOPS)
def test_interrupt_of_a_cell(notebook, name):
    """Each interrupt comes at another moment of the loop; the same engine then says the same text."""
    expected = notebook.checked(TEXT)
    process = notebook.checked("print(os.getpid())")
    rng = random.Random(name)
    for _ in range(3):

        def interrupt() -> None:
            threading.Timer(rng.uniform(0.01, 0.3), notebook.manager.interrupt_kernel).start()

        reply, printed = notebook.cell(LOOPS[name], on_first_text=interrupt)
        assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt"), reply
        assert printed.startswith("inside")
        assert notebook.manager.is_alive()
        assert notebook.checked(TEXT) == expected
    assert notebook.checked("print(os.getpid())") == process
