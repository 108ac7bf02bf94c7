"""One library with the emulator for all tests of this folder; its counters are printed at the end of the run."""

from __future__ import annotations

import shutil

import pytest

from tests.kernels.amx import library

_executed: dict[str, int] = {}


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory, request):
    """Path of the library, AMX files by g++ -O3 as they ship (but see library.py); or the one of on_library.py."""
    given = request.config.getoption("--amx-library", None)
    if given is not None:
        return given
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    return library.build(tmp_path_factory.mktemp("amx") / "gxx_O3")


@pytest.fixture
def amx(emulated_library):
    """moelab on that library; the ``Emulator``."""
    with library.loaded(emulated_library) as emulator:
        assert emulator.library.moelab_amx(None) == 0, "this process may not use AMX"
        with emulator.counted() as executed:
            yield emulator
        for name, number in executed.items():
            _executed[name] = _executed.get(name, 0) + number


def pytest_terminal_summary(terminalreporter):
    if _executed:
        terminalreporter.section("AMX instructions executed by the emulator")
        terminalreporter.line(", ".join(f"{name} {number:,}" for name, number in sorted(_executed.items())))
