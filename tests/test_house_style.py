"""Whole-house rule: the tree is as ruff wants it and mypy finds nothing. Never skips: the [test] extra has both."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_tree_is_clean(command):
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


def test_native_lines_fit():
    """ruff says so of Python; nobody says so of C and C++."""
    paths = [path for folder in ("kernels", "tests/kernels") for path in (ROOT / folder).rglob("*.[ch]*")]
    assert len(paths) > 50
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        if path.suffix in (".c", ".h", ".cpp")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 120
    ]
    assert long == []
