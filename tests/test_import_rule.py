"""The floors of DESIGN.md: a module imports only from lower floors, heavy packages only where allowed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "moelab"

FLOOR_OF_ROOM = {
    "domain": 0, "source_stamp": 0, "first_compile": 0, "palette": 0,
    "compiled_on_use": 0.5,  # stands on two before it
    "store": 1, "formats": 1, "policies": 1, "dispatch": 1, "cost_model": 1, "kernels": 1,
    "engine": 2, "analysis": 2, "simulator": 2, "sizing": 2, "synthetic": 2, "sources": 2,
    "planner": 3, "calibration": 3,  # execution asks calibration for the machine, so it stands below
    "migration": 4, "execution": 4, "realism": 4, "shadows": 4, "sweeps": 4, "exploration": 4,
    "plots": 5, "findings": 5,
    "html_report": 6, "widgets": 6, "bench": 6,
    "cli": 7,
}  # fmt: skip
TORCH_ROOMS = {"engine", "bench"}
PICTURE_ROOMS = {"widgets", "plots"}
IN_METHODS_ONLY = {"pandas", "xarray", "dask", "distributed"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(file: Path) -> list[tuple[str, int, bool]]:
    """(module, line, at module level) of every import that runs; TYPE_CHECKING blocks are left out."""
    found: list[tuple[str, int, bool]] = []

    def walk(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}:{child.lineno}: relative import, write the full name"
                found.append((child.module or "", child.lineno, top))
                if child.module == "moelab":
                    names = [alias.name for alias in child.names if alias.name != "__version__"]
                    found.extend((f"moelab.{name}", child.lineno, top) for name in names)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            walk(child, top and not inside)

    walk(ast.parse(file.read_text()), True)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_downwards(file):
    room = room_of(file)
    if room in {"__init__", "__main__"}:
        return
    assert room in FLOOR_OF_ROOM, f"{file}: room {room} has no floor, add it to the table"
    for module, line, top in imports(file):
        parts = module.split(".")
        where = f"{file}:{line}"
        if parts[0] == "moelab" and len(parts) > 1 and parts[1] != room:
            target = parts[1]
            assert target in FLOOR_OF_ROOM, f"{where}: imports moelab.{target}, which has no floor"
            assert FLOOR_OF_ROOM[target] < FLOOR_OF_ROOM[room], f"{where}: {room} may not import {target}"
        if parts[0] == "torch":
            reference = file == PACKAGE / "kernels" / "reference.py"
            in_format_function = room == "formats" and not top
            assert room in TORCH_ROOMS or reference or in_format_function, f"{where}: torch is not allowed here"
        if parts[0] in {"plotly", "ipywidgets", "anywidget"}:
            assert room in PICTURE_ROOMS, f"{where}: {parts[0]} belongs in widgets or plots"
        if parts[0] in IN_METHODS_ONLY:
            assert not top, f"{where}: import {parts[0]} inside the method that returns it"


def test_rule_sees_a_violation(tmp_path):
    """The walker itself: function-level, module-level and TYPE_CHECKING imports are told apart."""
    file = tmp_path / "sample.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
        "import numpy\ndef f():\n    import pandas\nclass C:\n    import plotly\n"
    )
    found = {(module, top) for module, _, top in imports(file)}
    assert found == {("typing", True), ("numpy", True), ("pandas", False), ("plotly", True)}


def test_analysis_simulation_and_planning_without_torch():
    """Import (and use) floors 0 to 3 without the engine in a process where torch cannot be imported."""
    program = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "plotly", "ipywidgets", "anywidget", "pandas", "xarray", "dask"}:
            raise ImportError(f"{name} is blocked in this test")
sys.meta_path.insert(0, NoTorch())
import moelab
from moelab import analysis, planner, policies, simulator, store
from moelab.analysis import popularity, miss_ratio_curve
trace = moelab.open_trace(moelab.shipped("nano/capture")).load(slice(0, 2000))
plan = moelab.PLANNERS["frequency"](trace, slots_per_layer=8)
result = moelab.simulate(trace, plan)
assert 0 < result.hit_rate_per_request < 1, result
print("no torch:", "torch" not in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "no torch: True" in done.stdout
