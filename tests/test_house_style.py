"""Whole-house rule: the tree is as ruff wants it and mypy finds nothing. Never skips: the [test] extra has both.

The training scripts of nano are left out of ruff: they stand beside the model as the record of how it was made
(61 findings, nearly all long lines) and no code of the house imports them.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXCLUDE = ["--config", 'extend-exclude = ["build", "traces/nano/training"]']


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", *EXCLUDE], ["ruff", "format", "--check", *EXCLUDE], ["mypy"]],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_tree_is_clean(command):
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
