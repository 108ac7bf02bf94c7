"""HF recorder: `with record(hf_model) as trace:` - which experts a running transformers model uses.

One forward hook on each router and two on the model: before a pass, to learn whose tokens it holds, and after it, to
put the routing of all layers into rows. Works inside ``generate`` (prefill, chunks, decode steps, batches with left
padding; drafted tokens: see ``requests``). Layers that never route (a vision tower, multi-token prediction) have no
place in the trace. It does not know how traces are stored, and asks nothing of the model but its configuration.
Floor 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from moelab.domain.model import ModelSpec
from moelab.domain.model_config import text_config_of
from moelab.domain.trace import NO_EXPERT, NO_TOKEN_ID, TokenTable, Trace, TraceHeader
from moelab.engine.hf.gates import Gates, find_gates, in_rank_order
from moelab.engine.hf.requests import Requests, Rows
from moelab.engine.hf.routers import RouterModule, find_routers
from moelab.engine.recorder import FLUSH_TOKENS, empty_trace, fill_trace

if TYPE_CHECKING:
    from moelab.store.writer import TraceWriter

Pass = tuple[int, Rows, np.ndarray, np.ndarray]  # its step, its rows, experts and gate weights [T, L, K]


@contextmanager
def record_hf(
    model: nn.Module,
    path: str | Path | None = None,
    *,
    domain_of_request: Sequence[str] = (),
    keep_text: bool = False,
    licence: str = "not stated",
    provenance: str = "recorded with moelab.record",
) -> Iterator[Trace]:
    """Record what the routers of `model` choose inside the block; see `moelab.record`.

    ValueError for a model without routers, a compiled one, a folder that already holds tokens, and where nothing was
    routed; TypeError for a router of an unknown form.
    """
    if hasattr(model, "_orig_mod"):
        raise ValueError("record: got a model compiled by torch.compile, whose hooks do not run: pass model._orig_mod")
    routers = find_routers(model)
    trace = empty_trace(_header(model, routers, Gates(None, "unknown", "unknown"), None, (), licence, provenance))
    recorder = HfRecorder(model, routers, path, tuple(domain_of_request), keep_text, licence, provenance)
    try:
        with recorder.hooks():
            yield trace
    finally:
        complete = recorder.finish()
        if complete is not None:
            fill_trace(trace, complete)
    if complete is None:
        raise ValueError("record: nothing was routed inside the block: call model(...) or model.generate(...) in it")


@dataclass
class HfRecorder:
    """The hooks and what they gather. Header and folder are made after the first pass, which says L, E and K."""

    model: nn.Module
    routers: list[RouterModule]
    path: str | Path | None
    domain_of_request: tuple[str, ...]
    keep_text: bool
    licence: str
    provenance: str
    header: TraceHeader | None = None
    _rows: Rows | None = None  # of the pass that runs
    _seen: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)  # of its routers: weights, ids
    _num_experts: int = 0
    _gates: dict[int, Gates] = field(default_factory=dict)
    _passes: list[Pass] = field(default_factory=list)
    _num_pending: int = 0
    _step: int = 0
    _writer: TraceWriter | None = None

    def __post_init__(self) -> None:
        config = getattr(self.model, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        self._requests = Requests(frozenset([ends] if isinstance(ends, int) else ends or ()))
        self._arguments = list(signature(self.model.forward).parameters)
        self._domains = tuple(dict.fromkeys(self.domain_of_request))
        if self.path is not None and Path(self.path).exists() and any(Path(self.path).iterdir()):
            raise ValueError(f"{self.path}: expected a new trace folder, got one with files; choose another path")

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """All hooks, for as long as the block runs."""
        handles = [
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after, with_kwargs=True),
        ]
        for index, router in enumerate(self.routers):
            handles.append(router.module.register_forward_hook(self._routed(index), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen = {}
        self._rows = self._requests.rows(dict(zip(self._arguments, args, strict=False)) | kwargs)

    def _routed(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            router = self.routers[index]
            if self._rows is None:
                raise ValueError(
                    f"{router.name} routed outside a call of {type(self.model).__name__}: record the module that you "
                    "call (record(model.model) for model.model(...)); gradient checkpointing routes once more in the "
                    "backward pass: turn it off"
                )
            if index in self._seen:
                raise ValueError(f"{router.name} routed twice in one pass: turn gradient checkpointing off")
            with torch.no_grad():
                logits, weights, ids = (each.detach() for each in router.read(output))
                bias = router.bias(args, kwargs, logits.shape[-1])
                if index not in self._gates:
                    self._gates[index] = find_gates(logits, weights, ids, bias)
                self._seen[index] = in_rank_order(self._gates[index], logits, weights, ids, bias)
            self._num_experts = max(self._num_experts, router.num_real_experts or logits.shape[-1])

        return hook

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        rows, seen, self._rows = self._rows, self._seen, None
        assert rows is not None
        cache = getattr(output, "past_key_values", None)
        if cache is not None and kwargs.get("past_key_values") is None:
            self._requests.remember(cache)  # a cache that the pass made itself
        if self.header is None:
            self._begin(seen)
        assert self.header is not None
        if sorted(seen) != sorted(self._gates):
            there, expected = ({self.routers[each].name for each in of} for of in (seen, self._gates))
            raise ValueError(
                f"this pass routed in {len(seen)} layers, the first in {len(expected)}: {there ^ expected}"
            )
        self._keep(rows, seen)

    def _begin(self, seen: dict[int, tuple[torch.Tensor, ...]]) -> None:
        if not seen:
            raise ValueError("record: the first pass did not reach a router, so there is nothing to record")
        routers = [self.routers[index] for index in sorted(seen)]
        found = {self._gates[index] for index in seen}
        orders, kinds = {gates.slot_order for gates in found}, {gates.kind for gates in found}
        gates = Gates(
            None, kinds.pop() if len(kinds) == 1 else "unknown", orders.pop() if len(orders) == 1 else "unknown"
        )
        shape = (self._num_experts, max(ids.shape[1] for _, ids in seen.values()))
        self.header = _header(self.model, routers, gates, shape, self._domains, self.licence, self.provenance)
        if self.path is not None:
            from moelab.store.writer import TraceWriter

            self._writer = TraceWriter(self.path, self.header)

    def _keep(self, rows: Rows, seen: dict[int, tuple[torch.Tensor, ...]]) -> None:
        assert self.header is not None
        num_tokens, top_k = len(rows.kept), self.header.top_k
        experts = np.full((num_tokens, len(seen), top_k), NO_EXPERT, np.uint16)
        gate_weights = np.zeros(experts.shape, np.float16)
        kept = torch.from_numpy(rows.kept)
        for layer, index in enumerate(sorted(seen)):
            of_all_weights, of_all_ids = seen[index]
            ids = of_all_ids[kept.to(of_all_ids.device)].cpu().numpy()
            weights = of_all_weights[kept.to(of_all_weights.device)].float().cpu().numpy()
            there = ids < (self.routers[index].num_real_experts or self._num_experts)
            experts[:, layer, : ids.shape[1]] = np.where(there, ids, NO_EXPERT)
            gate_weights[:, layer, : ids.shape[1]] = np.where(there, weights, 0)
        self._passes.append((self._step, rows, experts, gate_weights))
        self._step += 1
        self._num_pending += num_tokens
        if self._writer is not None and self._num_pending >= FLUSH_TOKENS:
            self._writer.append(*self._batch())

    def _batch(self) -> tuple[np.ndarray, np.ndarray, TokenTable]:
        """What was gathered since the last flush, which forgets it."""
        passes, self._passes, self._num_pending = self._passes, [], 0
        steps, rows, experts, gate_weights = zip(*passes, strict=True)
        request = np.concatenate([each.request for each in rows])
        lengths = [len(each.kept) for each in rows]
        names = [*(self._domains.index(name) for name in self.domain_of_request), -1]
        table = TokenTable.build(
            step=np.repeat(steps, lengths), request=request, position=np.concatenate([r.position for r in rows]),
            phase=np.repeat([int(each.phase) for each in rows], lengths),
            domain=np.array(names)[np.minimum(request, len(names) - 1)],
            token_id=np.concatenate([each.token_id for each in rows]) if self.keep_text else NO_TOKEN_ID,
        )  # fmt: skip
        return np.concatenate(experts), np.concatenate(gate_weights), table

    def finish(self) -> Trace | None:
        """The whole trace, from the folder if there is one; ``None`` where nothing was routed."""
        if self.header is None:
            return None
        if self._writer is None:
            return Trace(self.header, *self._batch()) if self._passes else empty_trace(self.header)
        try:
            if self._passes:
                self._writer.append(*self._batch())
        finally:
            self._writer.close()
        from moelab.store import open_trace

        return open_trace(self._writer.path).load()


def _header(
    model: nn.Module,
    routers: list[RouterModule],
    gates: Gates,
    shape: tuple[int, int] | None,
    domains: tuple[str, ...],
    licence: str,
    provenance: str,
) -> TraceHeader:
    """What is true of everything that this model routes; `shape` is (E, K) as seen, or what attributes say."""
    configuration: Any = getattr(model, "config", None)
    whole = {} if configuration is None else configuration.to_dict()
    config = text_config_of(whole)
    if shape is None:
        num_experts = max(router.num_real_experts for router in routers) or 1
        shape = (num_experts, min(num_experts, max(router.top_k or 1 for router in routers)))
    said = (whole.get("quantization_config") or {}).get("quant_method")
    name = str(whole.get("_name_or_path") or getattr(configuration, "name_or_path", ""))
    try:
        release = version("transformers")
    except PackageNotFoundError:
        release = "of unknown release"
    device = next(model.parameters(), torch.empty(0)).device.type
    return TraceHeader(
        model=Path(name).name or type(model).__name__,
        model_type=str(config.get("model_type") or "unknown"),
        num_layers=len(routers),
        num_experts=shape[0],
        top_k=shape[1],
        model_layer_of_layer=tuple(router.layer for router in routers),
        expert_bytes=tuple(router.expert_bytes for router in routers),
        hidden_size=config.get("hidden_size"),
        moe_intermediate_size=config.get("moe_intermediate_size"),
        gate_weight_kind=gates.kind,
        slot_order=gates.slot_order,
        engine=f"transformers {release}: {type(model).__name__} on {device}",
        quantization=str(said or routers[0].expert_dtype),
        licence=licence,
        provenance=provenance,
        synthetic=False,
        domains=domains,
        model_fingerprint=_fingerprint(whole),
    )


def _fingerprint(config: dict[str, Any]) -> str | None:
    """Of the architecture, where moelab knows the family: without it a plan cannot check what it is applied to."""
    try:
        return ModelSpec.from_hf_config(config).fingerprint
    except (ValueError, TypeError, KeyError):
        return None
