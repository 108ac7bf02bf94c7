"""docs/sizing.md: every command on the page still prints the tables below it."""

import shlex
from pathlib import Path

import pytest

from moelab.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sizing.md"
COMMANDS = [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    moelab size ")]


def test_the_page_has_its_commands():
    assert len(COMMANDS) == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_tables_are_what_the_command_prints(capsys, command):
    assert main(shlex.split(command)[1:]) == 0
    page = set(PAGE.read_text().splitlines())
    starts = ("| ", "hybrid", "cpu:", "vector:", "amx:")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(starts)]
    assert len(printed) >= 18
    missing = [line for line in printed if line not in page]
    assert not missing, (
        f"{len(missing)} rows differ, first: {missing[0]}; run the command and put its table on the page"
    )
