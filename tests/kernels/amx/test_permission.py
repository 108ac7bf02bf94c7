"""The permission for tiles in a real process: asked once, before the pool has threads, and refused."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.kernels.amx.library import BESIDE_AMX, ROOT

PROGRAM = """
    import ctypes, sys
    from pathlib import Path
    from moelab.kernels import Pool, choose_isa, native
    from moelab.kernels.job import ABI_VERSION
    from tests.kernels.amx.library import loaded

    with loaded(Path(sys.argv[1])) as emulator:
        library = emulator.library
        if not emulator.active:
            print("inert")
            sys.exit()
"""
ONCE_BEFORE_THREADS = """
        assert library.amx_emulator_num_requests() == 0
        with Pool(2):
            assert library.amx_emulator_num_requests() == 1
            assert library.amx_emulator_threads_at_request() == threads, library.amx_emulator_threads_at_request()
        assert choose_isa("amx").isa == choose_isa("amx").isa == "amx"
        assert library.amx_emulator_num_requests() == 1
        print("done")
"""
REFUSED = """
        library.amx_emulator_answer(ctypes.c_int64(-95))
        choice = choose_isa()
        assert choice.isa == sys.argv[2], choice
        assert "the kernel refused this process its tiles (arch_prctl" in choice.why
        try:
            choose_isa("amx")
        except ValueError as error:
            assert "arch_prctl" in str(error)
        else:
            raise AssertionError("a forced isa fell back")
        print("done")
"""


def run(library, body: str) -> None:
    program = textwrap.dedent(PROGRAM) + textwrap.indent(textwrap.dedent(body), "    ")
    command = [sys.executable, "-c", program, library, BESIDE_AMX]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("done", "inert")


def test_asked_once_before_the_pool_has_threads(emulated_library):
    threads = """
        threads = len(list(Path("/proc/self/task").iterdir()))
    """
    run(emulated_library, threads + ONCE_BEFORE_THREADS)


def test_refusal_falls_back_and_raises_where_amx_was_forced(emulated_library):
    run(emulated_library, REFUSED)
