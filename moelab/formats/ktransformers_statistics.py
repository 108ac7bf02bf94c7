"""KTransformers' activation statistics (`--init-expert-location FILE.pt`, strategy frequency), written from a Plan.

KTransformers takes no placement but counts, and puts the experts of the globally largest ones on the GPU, per_layer x
num_moe_layers of them. So the plan's fast tier is written as counts: 2 for an expert that is placed there, 1 for
others, 0 for layers without experts. `torch.save` of ``{"logical_count": float [1, num_hidden_layers, E]}``, all
hidden layers counted, dense ones too (facts read from kt_ep_wrapper.py, 2026). What it cannot say: nodes, pieces,
policies; such a plan is refused. Floor 1; torch is imported where the file is written or read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moelab.domain.plan import Plan

PLACED, NOT_PLACED = 2.0, 1.0


def write(plan: Plan, path: str | Path, *, model_layer_of_layer: Sequence[int], num_hidden_layers: int) -> int:
    """Write the file; returns the number for `--kt-num-gpu-experts` (experts of a layer, on average).

    Raises ``ValueError`` for a plan of more than one node or fast tier, or with a policy, a fast tier that does not
    come out even over the layers, layers that do not fit, or a name that does not end in .pt (for which KTransformers
    would silently take equal counts).
    """
    path = Path(path)
    if path.suffix != ".pt":
        raise ValueError(f"{path}: expected a name that ends in .pt: KTransformers ignores statistics of another kind")
    nodes = [tier for tier in plan.tiers if tier.startswith("node")]
    if len(nodes) > 1 or len(plan.fast_tiers) != 1:
        raise ValueError(
            f"plan has tiers {', '.join(plan.tiers)}; KTransformers' statistics say one GPU tier beside one memory: "
            "write its EPLB table instead"
        )
    if plan.policy.name != "static":
        raise ValueError(
            f"plan moves experts by {plan.policy.name}; KTransformers' statistics say where experts stay: plan with "
            "static slots"
        )
    layers = list(model_layer_of_layer)
    if len(layers) != plan.model.num_layers or max(layers) >= num_hidden_layers:
        raise ValueError(
            f"got model layers {layers[:3]}.. of {num_hidden_layers}; expected {plan.model.num_layers} numbers below it"
        )
    resident = plan.resident(plan.fast_tiers[0].tier)
    per_layer, rest = divmod(int(resident.sum()), len(layers))
    if rest:
        raise ValueError(
            f"plan places {int(resident.sum())} experts, which is no multiple of its {len(layers)} layers; "
            "KTransformers takes one number for each layer: plan with slots_per_layer, or slots that divide"
        )
    counts = np.zeros((1, num_hidden_layers, plan.model.num_experts), np.float32)
    counts[0, layers] = np.where(resident, PLACED, NOT_PLACED)
    import torch

    torch.save({"logical_count": torch.from_numpy(counts)}, path)
    return per_layer


def read_resident(path: str | Path, *, per_layer: int, model_layer_of_layer: Sequence[int]) -> np.ndarray:
    """bool [L, E]: what KTransformers' `frequency` puts on the GPU from such a file (the larger count first, then the
    lower layer, then the lower expert)."""
    import torch

    counts = torch.load(path, weights_only=True)["logical_count"].sum(0).numpy()[list(model_layer_of_layer)]
    chosen = np.argsort(-counts.ravel(), kind="stable")[: per_layer * len(counts)]
    mask = np.zeros(counts.size, bool)
    mask[chosen] = True
    return mask.reshape(counts.shape)
