"""Whole-house rule: a test that skips for a reason not listed in allowed_skips.txt fails the run."""

import gc
from pathlib import Path

import pytest

ALLOWED = {
    line
    for line in (Path(__file__).parent / "allowed_skips.txt").read_text().splitlines()
    if line and not line.startswith("#")
}
_not_allowed: list[str] = []


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "no reason"
        if reason not in ALLOWED:
            _not_allowed.append(f"{report.nodeid}: {reason}")


def pytest_collection_finish():
    """What all imports made stays until the end: a full collection that walks through it takes half a second.

    The bench of loading asks for 73 of them in one test.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    if _not_allowed and exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    if _not_allowed:
        terminalreporter.section("skips that are not in tests/allowed_skips.txt", sep="=", red=True)
        for line in _not_allowed:
            terminalreporter.line(line, red=True)
