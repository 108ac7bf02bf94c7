"""`record`: one call for both kinds of running model, moelab's engine and a transformers model.  Floor 2."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from moelab.domain.trace import Trace
from moelab.engine.engine import Engine

if TYPE_CHECKING:
    from torch import nn


def record(
    model: Engine | nn.Module,
    path: str | Path | None = None,
    *,
    domains: Sequence[str] = (),
    domain_of_request: Sequence[str] = (),
    keep_text: bool = False,
    licence: str = "not stated",
    provenance: str = "recorded with moelab.record",
    scores: bool | None = None,
    stale_gate: bool | None = None,
) -> AbstractContextManager[Trace]:
    """`with record(model) as trace:` records everything that `model` routes inside the block.

    The trace is empty while the block runs and complete when it ends. `model` is an engine of `moelab.load`, or a
    transformers model, whose routers get a hook each: any call of it is recorded, also inside `generate`.

    `path`: a new trace folder; without one the trace stays in memory. `keep_text` stores token ids: the user's text.
    `licence` and `provenance` go into the header. An engine knows the domain of each request: with a path, name in
    `domains` all that will occur. A transformers model does not: `domain_of_request` names the domain of each request,
    in the order in which they begin. `scores` and `stale_gate` (an engine only) record the router scores of all
    experts and what each router would choose a layer early, see `Trace.extras`. What was recorded before an exception
    in the block is kept. TypeError for another kind of model; ValueError for options that it cannot have.
    """
    if isinstance(model, Engine):
        from moelab.engine.recorder import record_engine

        if domain_of_request:
            raise ValueError("record: domain_of_request is for transformers models: give generate(..., domain=...)")
        return record_engine(
            model, path, domains=domains, keep_text=keep_text, licence=licence, provenance=provenance, scores=scores,
            stale_gate=stale_gate,
        )  # fmt: skip
    from torch import nn

    if not isinstance(model, nn.Module):
        raise TypeError(f"record: expected an engine (moelab.load) or a transformers model, got {type(model).__name__}")
    if domains or scores or stale_gate:
        raise ValueError(
            "record: domains, scores and stale_gate are for moelab's engine, got a transformers model: name domains in "
            "domain_of_request and leave the others out"
        )
    from moelab.engine.hf.recorder import record_hf

    return record_hf(
        model, path, domain_of_request=domain_of_request, keep_text=keep_text, licence=licence, provenance=provenance
    )
