"""The second process: its failures and skips are told as they are, and a process that breaks off is told too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests import beside

THREE = """
import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_number(number):
    assert number == 1

def test_not_here():
    pytest.skip("never here")
"""
BROKEN = """
import os

def test_first():
    pass

def test_second():
    os._exit(23)
"""


def second_process(folder, text):
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(text)
    return beside.Beside(["--rootdir", folder, "-c", folder / "pytest.ini", folder / "test_it.py"])


def test_what_it_found(tmp_path, request):
    second = second_process(tmp_path, THREE)
    told = {}
    for name in ("test_not_here", "test_number[1]", "test_number[2]"):
        reports = second.reports_of(f"test_it.py::{name}")
        assert [report["when"] for report in reports][-1] == "teardown"
        told[name] = [
            request.config.hook.pytest_report_from_serializable(config=request.config, data=report)
            for report in reports
            if report["when"] == "call"
        ]
    assert told["test_number[1]"][0].passed
    assert told["test_number[2]"][0].failed
    assert "assert 2 == 1" in str(told["test_number[2]"][0].longrepr)
    assert told["test_not_here"][0].longrepr[2] == "Skipped: never here"
    assert second.reports_of("test_it.py::test_of_nobody") is None
    assert second.broke() is None
    second.close()


def test_a_run_that_breaks_off_waits_for_nothing(tmp_path):
    second = second_process(tmp_path, "import time\n\ndef test_long():\n    time.sleep(600)\n")
    assert second.broke() is None
    second.close()
    assert second.process.returncode not in (None, *beside.ENDS)


def test_a_process_that_breaks_off(tmp_path):
    """What it had not come to is left to the first process, and the run fails."""
    second = second_process(tmp_path, BROKEN)
    assert second.reports_of("test_it.py::test_second") is None
    assert second.reports_of("test_it.py::test_first")[-1]["outcome"] == "passed"
    assert "exit 23" in second.broke()
    second.close()


@pytest.mark.parametrize("room", beside.ROOMS)
def test_rooms_are_there(room):
    assert (beside.TESTS / room).exists()
    assert beside.room_of(beside.TESTS / room) is not None


@pytest.mark.parametrize(
    "other",
    [
        {"markexpr": "slow"}, {"keyword": "word"}, {"collectonly": True}, {"usepdb": True}, {"trace": True},
        {"lf": True}, {"capture": "no"},
    ],
    ids=str,
)  # fmt: skip
def test_only_for_the_whole_suite(monkeypatch, other):
    monkeypatch.setattr(beside, "cores", lambda: {0, 1})
    plain = {"markexpr": "not slow", "keyword": "", "collectonly": False, "usepdb": False, "trace": False, "lf": False}

    def config(source, option):
        return SimpleNamespace(
            args_source=source, option=SimpleNamespace(**option), getini=lambda name: ["-ra", "-m", "not slow"]
        )

    asked = {"capture": "fd", **plain}
    assert beside.wanted(config(pytest.Config.ArgsSource.TESTPATHS, asked))
    assert not beside.wanted(config(pytest.Config.ArgsSource.TESTPATHS, asked | other))
    assert not beside.wanted(config(pytest.Config.ArgsSource.ARGS, asked))
    monkeypatch.setattr(beside, "cores", lambda: {0})
    assert not beside.wanted(config(pytest.Config.ArgsSource.TESTPATHS, asked))
