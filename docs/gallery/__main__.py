"""Makes the gallery: every notebook executed on this machine, as a Markdown page with pictures, and the index.

    python -m docs.gallery [NAME..]

From the root of the project, with the `[test]` extra and a Chromium (`apt-get install chromium`). Without names all
notebooks, one after the other because some of them measure: 2 min 36 s beside one other process (2026-11-26). Ends
with an error where a page is not fit to be published (`check`).
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from docs.gallery.browser import Browser
from docs.gallery.check import NOTEBOOKS, PAGES, PICTURES, problems
from docs.gallery.index import index
from docs.gallery.neutral import neutral
from docs.gallery.page import page
from moelab.domain.machine import Machine
from moelab.domain.units import GIB
from moelab.kernels.isa import choose_isa


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in an empty folder; raises where a cell does."""
    notebook = nbformat.read(path, as_version=4)
    environment = {**os.environ, "PLOTLY_RENDERER": "plotly_mimetype"}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": folder}},
            store_widget_state=False,
        )  # fmt: skip
        client.execute(env=environment)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = nbformat.from_dict(neutral(cell.outputs))
    return notebook


def ran_on(seconds: float) -> str:
    """When and on what a page was made, in one line."""
    machine = Machine.detect()
    cores = sum(len(node.cores) for node in machine.nodes)
    memory = sum(node.memory_bytes for node in machine.nodes) / GIB
    return (
        f"run on {datetime.date.today().isoformat()} in {seconds:.0f} s: {machine.cpu}, {cores} cores, "
        f"{memory:.0f} GiB, {choose_isa().isa} kernels, Python {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.gallery", description=__doc__.splitlines()[0])
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"of {', '.join(known)} (default: all)")
    names = parser.parse_args().names or list(known)
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no notebook {', '.join(unknown)}; there are {', '.join(known)}")
    PICTURES.mkdir(exist_ok=True)
    with Browser() as browser:
        for name in names:
            started = time.perf_counter()
            notebook = executed(known[name])
            seconds = time.perf_counter() - started
            text, pictures = page(notebook, name, ran_on(seconds), browser)
            for old in PICTURES.glob(f"{name}-*"):
                old.unlink()
            for file, data in pictures.items():
                (PICTURES / file).write_bytes(data)
            (PAGES / f"{name}.md").write_text(text, encoding="utf-8")
            size = len(text.encode()) + sum(map(len, pictures.values()))
            print(f"{name}: {seconds:.0f} s, {len(pictures)} pictures, {size / 1000:.0f} kB", flush=True)
    (PAGES / "README.md").write_text(index(NOTEBOOKS, PAGES), encoding="utf-8")
    if found := problems():
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
