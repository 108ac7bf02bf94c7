"""Routers: the modules of a transformers model that choose experts, and what each returns, in one form.

Nearly every family of transformers 5 has a ``*TopKRouter`` whose ``forward`` returns (logits [T, E], gate weights
[T, K], expert ids [T, K]) of the flattened tokens; the few that return something else have a row in ``READERS``.
``output_router_logits`` is not used: many families ignore it, and top-k of logits is not what a biased or grouped
router chose. It does not know requests or traces. Floor 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Routed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # logits [T, E], gate weights [T, K], expert ids [T, K]

ROUTER_NAME = re.compile(r"(router|moegate|moev\dgate|gating)$", re.IGNORECASE)
BIAS_NAMES = ("e_score_correction_bias", "expert_bias")
TOP_K_NAMES = ("top_k", "moe_top_k", "num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k")


@dataclass(frozen=True)
class RouterModule:
    """One router: its place in the model, E and K as far as its attributes say (else ``None``), bytes of an expert.

    ``num_real_experts``: experts with weights; ids from there on are identity experts (LongCat) and cost no read.
    """

    name: str
    module: nn.Module
    parent: nn.Module
    layer: int
    num_real_experts: int
    top_k: int | None
    expert_bytes: int
    expert_dtype: str

    def read(self, output: Any) -> Routed:
        """What this router returned, in one form. TypeError, naming the router, where it is no such thing."""
        kind = type(self.module).__name__
        reader = READERS.get(kind, read_triple)
        try:
            logits, weights, ids = reader(output, self.parent)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise TypeError(
                f"{self.name} ({kind}) returned {_shapes(output)}, expected (logits [T, E], gate weights [T, K], "
                f"expert ids [T, K]) ({error}): add a reader for {kind} to moelab/engine/hf/routers.py"
            ) from None
        return logits, weights, ids

    def bias(self, args: tuple[Any, ...], kwargs: dict[str, Any], num_scores: int) -> torch.Tensor | None:
        """The bias [num_scores] that this router adds to the scores to choose: its own, or an argument of its call."""
        given = [*args[1:], *(kwargs[name] for name in BIAS_NAMES if name in kwargs)]
        owned = [*self.module.named_buffers(), *self.module.named_parameters()]
        for each in given + [tensor for name, tensor in owned if name.rsplit(".", 1)[-1] in BIAS_NAMES]:
            if isinstance(each, torch.Tensor) and each.is_floating_point() and each.numel() == num_scores:
                return each.detach().reshape(-1)
        return None


def read_triple(output: Any, parent: nn.Module) -> Routed:
    """(logits, gate weights, ids, ...): the form of most families."""
    logits, weights, ids = output[0], output[1], output[2]
    if ids.is_floating_point() or ids.ndim != 2 or weights.shape != ids.shape or logits.shape[0] != ids.shape[0]:
        raise ValueError("shapes or dtypes differ")
    return logits, weights, ids


def read_llama4(output: Any, parent: nn.Module) -> Routed:
    """(sigmoid scores [T, E], 0 where not chosen; logits [T, E]): the experts are the top-k of the logits."""
    scores, logits = output
    ids = logits.topk(parent.top_k, dim=-1).indices
    return logits, scores.gather(1, ids), ids


def read_dbrx(output: torch.Tensor, parent: nn.Module) -> Routed:
    """Logits alone; the block routes them by a method of its own."""
    weights, ids = parent.route_tokens_to_experts(output)  # type: ignore[operator]
    return output, weights, ids


READERS: dict[str, Callable[[Any, nn.Module], Routed]] = {"Llama4Router": read_llama4, "DbrxRouter": read_dbrx}
"""Routers of another form, by class name. A router that fits neither is refused by name when it first routes."""


def find_routers(model: nn.Module) -> list[RouterModule]:
    """All routers of the model with the experts that they stand beside, in the order of the layers.

    ValueError where there is none.
    """
    modules = dict(model.named_modules())
    found: list[RouterModule] = []
    for name, module in modules.items():
        if not ROUTER_NAME.search(type(module).__name__):
            continue
        parent = _holder(modules, name)
        if parent is None:
            continue
        experts = parent.experts
        assert isinstance(experts, nn.Module)
        num_real = _first_int(experts, ("num_experts", "num_local_experts", "num_routed_experts")) or (
            len(experts) if isinstance(experts, nn.ModuleList) else 0
        )
        size, dtype = _bytes_of(experts, num_real)
        found.append(
            RouterModule(
                name=name,
                module=module,
                parent=parent,
                layer=_layer_of(name, len(found)),
                num_real_experts=num_real,
                top_k=_first_int(module, TOP_K_NAMES) or _first_int(parent, TOP_K_NAMES),
                expert_bytes=size,
                expert_dtype=dtype,
            )
        )
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no router beside its experts (module names that end in TopKRouter, Router or "
            "Gate): expected a mixture-of-experts model of transformers 5"
        )
    return found


def _holder(modules: dict[str, nn.Module], name: str) -> nn.Module | None:
    """The module around the router that holds `experts`: its parent, or the parent's parent (a wrapped gate)."""
    while name:
        name = name.rpartition(".")[0]
        if isinstance(getattr(modules[name], "experts", None), nn.Module):
            return modules[name]
        if re.search(r"\.\d+$", name):  # a whole layer: beyond it nothing belongs to this router
            return None
    return None


def _layer_of(name: str, otherwise: int) -> int:
    """The model's own number of the layer: the last number in the module's path."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
    return int(numbers[-1]) if numbers else otherwise


def _first_int(module: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    return None


def _bytes_of(experts: nn.Module, num_real: int) -> tuple[int, str]:
    """Bytes of one expert as it lies in memory, 0 where E is not known, and the dtype of its largest tensor."""
    tensors = [*experts.parameters(), *experts.buffers()]
    padded = _first_int(experts, ("total_experts",))  # LongCat keeps unused rows for its identity experts
    num_bytes = 0
    for tensor in tensors if num_real else ():
        shares = padded if padded is not None and tensor.shape[0] == padded else num_real
        num_bytes += tensor.numel() * tensor.element_size() // shares
    largest = max(tensors, key=lambda each: each.numel(), default=None)
    return num_bytes, "unknown" if largest is None else str(largest.dtype).removeprefix("torch.")


def _shapes(output: Any) -> str:
    if isinstance(output, torch.Tensor):
        return f"{output.dtype} {tuple(output.shape)}"
    if isinstance(output, list | tuple):
        return f"({', '.join(_shapes(each) for each in output)})"
    return type(output).__name__
