"""Whole-house rule: a test that skips for a reason not listed in allowed_skips.txt fails the run."""

import gc
from pathlib import Path

import pytest

from tests import beside

ALLOWED = {
    line
    for line in (Path(__file__).parent / "allowed_skips.txt").read_text().splitlines()
    if line and not line.startswith("#")
}
_not_allowed: list[str] = []
_beside = pytest.StashKey[beside.Beside]()


def pytest_sessionstart(session):
    if beside.wanted(session.config):
        session.config.stash[_beside] = beside.Beside([beside.TESTS / room for room in beside.ROOMS])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """What the second process runs is told last."""
    if _beside in config.stash:
        items.sort(key=lambda item: -1 if (place := beside.room_of(item.path)) is None else place)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    second = item.config.stash.get(_beside, None)
    return True if second and beside.room_of(item.path) is not None and second.tell(item) else None


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "no reason"
        if reason not in ALLOWED:
            _not_allowed.append(f"{report.nodeid}: {reason}")


@pytest.fixture(scope="session", autouse=True)
def one_probe():
    """Commands that find no calibration probe the machine for two seconds: here once for each way."""
    from moelab.calibration import machine_files
    from moelab.kernels import choose_isa

    probe, known = machine_files.quick_probe, {}

    def probe_once(*, isa=None, activation="int8"):
        way = (choose_isa(isa).isa, activation, frozenset(beside.cores()))
        if way not in known:
            known[way] = probe(isa=isa, activation=activation)
        return known[way]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_files, "quick_probe", probe_once)
        yield


def pytest_collection_finish():
    """What all imports made stays until the end: a full collection that walks through it takes half a second.

    The bench of loading asks for 73 of them in one test.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    second = session.config.stash.get(_beside, None)
    if exitstatus == 0 and (_not_allowed or (second and second.broke())):
        session.exitstatus = 1


def pytest_unconfigure(config):
    if _beside in config.stash:
        config.stash[_beside].close()


def pytest_terminal_summary(terminalreporter, config):
    second = config.stash.get(_beside, None)
    if second and second.broke():
        terminalreporter.section("the second process", sep="=", red=True)
        terminalreporter.line(second.broke(), red=True)
    if _not_allowed:
        terminalreporter.section("skips that are not in tests/allowed_skips.txt", sep="=", red=True)
        for line in _not_allowed:
            terminalreporter.line(line, red=True)
