"""A script ends while a daemon thread of it computes on a pool: the pool is not destroyed under the thread.

The script's own handler runs after all of moelab's and sees the thread go on: with a destroyed pool it would wait for
workers that have ended, or read freed memory.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from moelab.kernels import isa_table

SCRIPT = """
    import atexit, threading, time

    times = 0

    def look():
        before = times
        for _ in range(1000):
            if times < before + 2:
                time.sleep(0.001)
        print("it goes on" if times >= before + 2 else "it stands still")

    atexit.register(look)  # before moelab is imported: the last of all handlers
    import numpy as np
    from moelab.kernels import ExpertArena, ExpertLayout, Pool, RoutedExperts, routed

    routed.ALONE_BYTES = {"numba": 0, "native": 0}
    layout = ExpertLayout(512, 256, "int4_g32")
    arena, pool = ExpertArena(layout, 2), Pool(2)
    experts = RoutedExperts(layout, arena.addresses, "generic", "int8", pool, owner=arena)
    step = np.ones((8, 512), np.float32), np.tile(np.arange(2, dtype=np.uint16), (8, 1)), np.ones((8, 2), np.float32)

    def compute():
        global times
        while True:
            USE
            times += 1

    threading.Thread(target=compute, daemon=True).start()
    while not times:
        time.sleep(0.001)
"""
USES = {"forward": "experts.forward(*step)", "run": "pool.run(lambda worker, num_workers: None)"}


@pytest.mark.skipif(
    not any(row.supported for row in isa_table() if row.isa != "numba"), reason="native kernels are not built"
)
@pytest.mark.parametrize("use", USES)
def test_exit_beside_a_daemon_thread(use):
    script = textwrap.dedent(SCRIPT).replace("USE", USES[use])
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "it goes on\n", "")
