"""The checkpoint whose own weights a replay runs: the one that the trace was recorded from, or none. Floor 4.

Compares shape and, where the trace carries it, the fingerprint of the weights; traces recorded before that field was
there are compared by shape alone.
"""

from __future__ import annotations

from pathlib import Path

from moelab.domain.trace import TraceHeader
from moelab.store import shipped


def recorded_checkpoint(header: TraceHeader, model_dir: str | Path | None) -> tuple[Path | None, str]:
    """(directory, "") or (``None``, why there is none).

    ``model_dir`` must be the recorded model: ``ValueError`` for another shape or retrained weights. Without it nano's
    own traces get the nano that ships, unless its weights are others.
    """
    if model_dir is not None:
        problem = _difference(header, Path(model_dir))
        if problem:
            raise ValueError(f"{problem}: give the checkpoint that was recorded, or record this one")
        return Path(model_dir), ""
    if header.synthetic or header.model != "nano":
        return None, f"no checkpoint of {header.model} is known"
    problem = _difference(header, shipped("nano/model"))
    return (None, problem) if problem else (shipped("nano/model"), "")


def _difference(header: TraceHeader, model_dir: Path) -> str:
    """What tells the checkpoint from the recorded model; empty where nothing does."""
    from moelab.engine.loader import open_model, weights_fingerprint  # torch is imported only where it is asked

    opened = open_model(model_dir)
    try:
        got = (len(opened.spec.model_layer_of_layer), opened.spec.n_routed_experts)
        if got != (header.num_layers, header.num_experts):
            return (
                f"trace is of {header.model} ({header.num_layers} x {header.num_experts}); checkpoint {model_dir} has "
                f"{got[0]} x {got[1]}"
            )
        recorded = header.weights_fingerprint
        if recorded is None:
            return ""
        found = weights_fingerprint(opened)
        if found == recorded:
            return ""
        return f"trace is of {header.model} with weights {recorded}; checkpoint {model_dir} has weights {found}"
    finally:
        opened.checkpoint.close()
