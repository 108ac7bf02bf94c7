"""Rooms of tests that need one core run beside all others, in a second pytest process; the first one tells its reports.

Only where the whole suite is asked for and there are two cores. What lies in ``ROOMS`` times nothing, and runs no pool
of workers for longer than a moment: those tests want both cores. A test that the second process did not come to runs in
the first one. Does not know what the tests do.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

ROOMS = (
    "bench/test_simulator.py", "planner",  # they compile what many others call, and come first
    "policies", "simulator", "test_house_style.py", "findings", "realism", "synthetic",
    "analysis", "dispatch", "store", "sweeps", "domain", "cost_model", "sizing", "formats",
)  # fmt: skip
TESTS = Path(__file__).parent
ENDS = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


def wanted(config: pytest.Config) -> bool:
    """The whole suite and nothing that looks at one test at a time."""
    option = config.option
    return (
        config.args_source is pytest.Config.ArgsSource.TESTPATHS
        and option.markexpr in config.getini("addopts")
        and not any(
            (option.keyword, option.collectonly, option.usepdb, option.trace, option.lf, option.capture == "no")
        )
        and len(cores()) > 1
    )


def cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def room_of(path: Path) -> int | None:
    """Its place in ``ROOMS``."""
    inside = path.relative_to(TESTS)
    return next((place for place, room in enumerate(ROOMS) if inside.is_relative_to(room)), None)


class Beside:
    """The second process, given what to run as `pytest` is, and what it reported so far, by test."""

    def __init__(self, arguments: Sequence[str | Path]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="moelab-beside-")
        told, self._said = Path(self._folder.name, "reports"), Path(self._folder.name, "output")
        told.touch()
        self._told = told.open("rb")
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.beside", told, *arguments],
                cwd=TESTS.parent, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._reports: dict[str, list[dict]] = {}

    def reports_of(self, nodeid: str) -> list[dict] | None:
        """All of one test, waiting for them; ``None`` where the process ended before."""
        while True:
            has_ended = self.process.poll() is not None
            while (report := _next(self._told)) is not None:
                self._reports.setdefault(report["nodeid"], []).append(report)
            found = self._reports.get(nodeid, [])
            if found and found[-1]["when"] == "teardown":
                return found
            if has_ended:
                return None
            time.sleep(0.05)

    def tell(self, item: pytest.Item) -> bool:
        """Its reports as if it had run here; False where there are none."""
        reports = self.reports_of(item.nodeid)
        if reports is None:
            return False
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in reports:
            report = item.ihook.pytest_report_from_serializable(config=item.config, data=data)
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def broke(self) -> str | None:
        """What it said last, where it ended otherwise than by running its tests; it may take time to clear away."""
        try:
            code = self.process.wait(20 if self._reports else 0)
        except subprocess.TimeoutExpired:  # this run broke off, nobody waits for the rest
            return None
        if code in ENDS:
            return None
        return (
            f"tests/beside.py: expected its process to run its tests; got exit {code}\n{self._said.read_text()[-3000:]}"
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._told.close()
        self._folder.cleanup()


def _next(file: BinaryIO) -> dict | None:
    """One more report; ``None`` where it is not wholly there."""
    begin = file.tell()
    try:
        return pickle.load(file)
    except (EOFError, pickle.UnpicklingError):
        file.seek(begin)
        return None


class Writer:
    """In the second process: every report as it comes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._file.write(pickle.dumps(data))


def main(told: str, *arguments: str) -> int:
    """Behind whatever the first process computes: its tests find the machine as they would alone."""
    if hasattr(os, "nice"):
        os.nice(5)
    with open(told, "ab", buffering=0) as file:
        return pytest.main(["-p", "no:cacheprovider", *arguments], plugins=[Writer(file)])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
