"""Machine code that Numba keeps on disk is not used after an edit of another file of its room."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "moelab"

# A cached function of the room that inlines pool_of of signature.py: which pool does layer 1 take from?
PROBE = """
from moelab.policies.compiled import compiled
from moelab.policies.signature import pool_of
@compiled
def probe(layer, free_slots):
    return pool_of(layer, free_slots)
"""
PROGRAM = """
import os
import numpy as np
import moelab.policies
from moelab.policies.probe import probe
assert moelab.policies.__file__.startswith(os.getcwd()), moelab.policies.__file__
print(probe(1, np.zeros((1, 2), np.int64)), sum(probe.stats.cache_hits.values()))
"""


def test_edit_of_an_imported_file_is_noticed(tmp_path):
    (tmp_path / "moelab").mkdir()
    for name in ("__init__.py", "source_stamp.py", "first_compile.py", "compiled_on_use.py"):
        shutil.copy(PACKAGE / name, tmp_path / "moelab")
    for room in ("policies", "domain"):
        shutil.copytree(PACKAGE / room, tmp_path / "moelab" / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "moelab" / "policies" / "probe.py").write_text(PROBE)
    # -S and our own path: the import hook of an editable install would find the checkout, not the copy.
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run() -> list[str]:
        command = [sys.executable, "-S", "-B", "-c", PROGRAM]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert run() == ["1", "0"]
    assert run() == ["1", "1"]
    signature = tmp_path / "moelab" / "policies" / "signature.py"
    text = signature.read_text()
    edited = text.replace("return layer if free_slots", "return layer - 1 if free_slots")
    assert edited != text
    signature.write_text(edited)
    assert run() == ["0", "0"]


def test_every_cached_function_is_stamped():
    """``on_use`` stamps by itself; below a bare ``njit`` stands ``stamped``."""
    num_cached = num_on_use = 0
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            num_on_use += any(decorator.startswith("on_use(") for decorator in decorators)
            if any("cache=True" in decorator for decorator in decorators):
                num_cached += 1
                assert decorators[-1] == "stamped", f"{file}:{node.lineno}: put @stamped below @njit(cache=True)"
    assert num_cached > 0
    assert num_on_use > 10
