"""write: a synthetic trace into a trace folder, whole or not at all.  Floor 2.

It grows in a hidden folder beside the target, batch after batch, and takes the target's name when it is closed.
An interrupt removes it; a kill leaves the hidden folder, never a half-written trace under the name.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from moelab.store import TraceStoreError, TraceWriter
from moelab.synthetic.generate import generate, header_of
from moelab.synthetic.parameters import RoutingParameters
from moelab.synthetic.shape import RoutingShape
from moelab.synthetic.workload import Workload


def write(
    path: str | Path,
    shape: RoutingShape,
    parameters: RoutingParameters,
    workload: Workload,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Generate into the new folder ``path``; raises ``TraceStoreError`` where something is there already."""
    from tqdm.auto import tqdm

    path = Path(path)
    if path.exists():
        raise TraceStoreError(path, expected="a new folder", got="something there already", fix="choose another path")
    if not path.resolve().parent.is_dir():
        raise TraceStoreError(path.parent, expected="a folder", got="nothing there", fix="create it")
    hidden = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.resolve().parent))
    try:
        with (
            tqdm(total=workload.num_tokens, desc="synth", unit="tok", delay=1, disable=not progress) as bar,
            TraceWriter(hidden / "trace", header_of(shape, parameters, workload, seed)) as writer,
        ):
            for batch in generate(shape, parameters, workload, seed=seed):
                writer.append_trace(batch)
                bar.update(batch.num_tokens)
        (hidden / "trace").rename(path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return path
