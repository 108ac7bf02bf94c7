"""Every notebook runs from top to bottom; they are thin and stored without outputs."""

import ast
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.shared_traces import SHARED_TRACES

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


SAYS = {
    "01_record_and_replay": ("measured ms/token",),
    "03_simulate": ("admit_ema_lfu", "hit_rate_per_request", "ms/token", "times_one_token", "is an oracle"),
    "04_plan": ("heldout_mean_max", "anneal", "slice_factor", "measured ms", "tau="),
    "05_apply": ("'texts equal': True", "measured_ms_per_token", "node_imbalance", "plan is for"),
    "06_size_kimi_k2": ("594.2", "leave-one-out", "within the interval", "bandwidth alone", "break_even_utilisation"),
    "02_analyse": ("of_one_request", "pairs_held_out_lift", "NOT within", "lru_miss_20%"),
    "07_bring_your_own_traces": (
        "DeepseekV3TopkRouter",
        "normalised_scaled",
        "routings are the same",
        "held out",
        "TraceBrowser",
    ),
}
"""What the outputs of a notebook must hold: a notebook that runs and shows nothing is no success."""


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_without_outputs(path):
    for cell in code_cells(path):
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_thin(path):
    cells = code_cells(path)
    assert len(cells) <= 15
    for cell in cells:
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef), "belongs in moelab"
    first, *_, last = nbformat.read(path, as_version=4).cells
    assert first.source.splitlines()[0].startswith("# ")
    assert first.source.splitlines()[2].startswith("**Question:**"), "a notebook begins with what it answers"
    headings = [line for line in last.source.splitlines() if line.startswith("#")]
    assert headings[-1] == "## What to try next", "and ends with where to go"


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    started = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - started
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
    text = " ".join(str(o) for cell in notebook.cells for o in cell.get("outputs", []))
    for words in SAYS[path.stem]:
        assert words in text
    if path.stem == "02_analyse" and SHARED_TRACES.is_dir():
        for model in ("gpt-oss-20b", "deepseek-v2-lite", "qwen3-30b-a3b"):
            assert model in text
    print(f"{path.stem}: {seconds:.0f} s")
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    size = (tmp_path / "executed.ipynb").stat().st_size
    print(f"{path.stem}: {size / 1000:.0f} kB with outputs")
    assert size < 200_000, "bundled JavaScript in the outputs, or a picture with every point"
