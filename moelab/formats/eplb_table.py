"""EPLB tables (`physical_to_logical_map`) from a Plan's nodes, as SGLang's `--init-expert-location` takes them in JSON.

``{"physical_to_logical_map": int [L, R]}``: physical slot p of a layer holds that logical expert; slots are dealt to
the nodes in equal runs of R / N. A plan has unequal numbers of copies on its nodes, so shorter runs are filled up by
repeating experts that the node holds already, which is the node's own copy once more. What a table cannot say is
refused: pieces and fast tiers. Rows are the layers with experts, as DeepSeek's EPLB and vLLM count them, or all hidden
layers, as SGLang does: then a dense layer's row deals all experts in order, and nobody reads it. Floor 1: NumPy and the
standard library.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moelab.domain.plan import Plan


def table_of(plan: Plan) -> np.ndarray:
    """int64 [L, R], node after node; raises ``ValueError`` for pieces, fast tiers or a node without experts."""
    nodes = [tier for tier in plan.tiers if tier.startswith("node")]
    if len(nodes) < len(plan.tiers):
        raise ValueError(
            f"plan has tiers {', '.join(plan.tiers)}; an EPLB table says equal devices only: plan for nodes"
        )
    columns = plan.placements.arrays()
    if ((columns["start"] > 0) | (columns["stop"] < plan.num_units)).any():
        raise ValueError(
            "plan cuts experts into pieces; an EPLB table says whole experts only: plan with another planner"
        )
    held = [
        [
            np.sort(columns["expert"][(columns["layer"] == layer) & (columns["tier"] == node)])
            for node in range(len(nodes))
        ]
        for layer in range(plan.model.num_layers)
    ]
    longest = max(len(experts) for of_layer in held for experts in of_layer)
    if min(len(experts) for of_layer in held for experts in of_layer) == 0:
        raise ValueError("plan leaves a node without experts in some layer; an EPLB table fills every device: re-plan")
    return np.stack([np.concatenate([np.resize(experts, longest) for experts in of_layer]) for of_layer in held])


def write(
    plan: Plan,
    path: str | Path,
    *,
    model_layer_of_layer: Sequence[int] | None = None,
    num_hidden_layers: int | None = None,
) -> np.ndarray:
    """Write the table as JSON, whole or not at all; returns it, int64 [rows, R].

    ``model_layer_of_layer`` [L] and ``num_hidden_layers``: rows of all hidden layers, both or neither.
    Raises ``ValueError`` as ``table_of`` does, and for layers that do not fit.
    """
    table = table_of(plan)
    if (model_layer_of_layer is None) != (num_hidden_layers is None):
        raise ValueError("got one of model_layer_of_layer and num_hidden_layers, expected both or neither")
    if model_layer_of_layer is not None and num_hidden_layers is not None:
        layers = list(model_layer_of_layer)
        if len(set(layers)) != len(table) or not 0 <= min(layers) <= max(layers) < num_hidden_layers:
            raise ValueError(
                f"got model layers {layers[:3]}.. of {num_hidden_layers}; expected {len(table)} different ones below it"
            )
        rows = np.tile(np.resize(np.arange(plan.model.num_experts), table.shape[1]), (num_hidden_layers, 1))
        rows[layers] = table
        table = rows
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"physical_to_logical_map": table.tolist()}) + "\n")
    partial.replace(path)
    return table


def read(
    path: str | Path, *, num_nodes: int, num_experts: int, model_layer_of_layer: Sequence[int] | None = None
) -> np.ndarray:
    """int64 [L, E]: bit n where node n has a copy, of all rows or of those named. Raises ``ValueError`` for what is no
    such table."""
    try:
        table = np.asarray(json.loads(Path(path).read_text())["physical_to_logical_map"], np.int64)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected JSON with physical_to_logical_map [L, R]; got {error}") from error
    if table.ndim != 2 or table.shape[1] % num_nodes or table.min() < 0 or table.max() >= num_experts:
        raise ValueError(
            f"{path}: expected [L, R], R a multiple of {num_nodes}, experts 0..{num_experts - 1}; got "
            f"{list(table.shape)}"
        )
    if model_layer_of_layer is not None:
        if max(model_layer_of_layer) >= len(table):
            raise ValueError(f"{path}: expected a row of layer {max(model_layer_of_layer)}; got {len(table)} rows")
        table = table[list(model_layer_of_layer)]
    masks = np.zeros((len(table), num_experts), np.int64)
    node = np.arange(table.shape[1]) // (table.shape[1] // num_nodes)
    np.bitwise_or.at(masks, (np.arange(len(table))[:, None], table), np.broadcast_to(1 << node, table.shape))
    if (masks == 0).any():
        layer, expert = np.argwhere(masks == 0)[0]
        raise ValueError(f"{path}: layer {layer} has no copy of expert {expert}; expected one of each at least")
    return masks
