"""Reader of mbolt's co-activation report: counts of experts and of pairs, without order. Gives a ``CountsTable``.

One JSON file: ``model``, ``quant``, ``k``, ``n_decode_tokens``, ``n_expert_per_layer`` and ``layers`` with ``heat`` [E]
(decode tokens that used the expert) and ``pairs`` [[i, j, tokens that used both, lift]], kept from a count of 5
and a lift of 1.5 on, at most 2,000 in a layer. A folder with one such file is read too. The lift is not
taken over (the analysis computes its own), nor the clusters. Floor 1. Source: doramirdor/mbolt, results/.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from moelab.domain.counts import CountsTable

_FIRST_BYTES = 4096


def matches(path: Path) -> bool:
    """True for such a JSON file, or a folder that holds exactly one."""
    if path.is_dir():
        return len(_files(path)) == 1
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(_FIRST_BYTES)
    return all(f'"{key}"'.encode() in start for key in ("n_expert_per_layer", "n_decode_tokens", "k"))


def read(path: Path, *, licence: str = "MIT") -> CountsTable:
    """The table; raises ``ValueError`` that names the file where it is damaged or its sums contradict."""
    file = _files(path)[0] if path.is_dir() else path
    try:
        document: dict[str, Any] = json.loads(file.read_text())
        layers = document["layers"]
        loads = np.array([layer["heat"] for layer in layers], np.int64)
        pairs = [
            (index, min(i, j), max(i, j), count)
            for index, layer in enumerate(layers)
            for i, j, count, _ in layer.get("pairs", [])
        ]
        model, num_tokens, top_k = document["model"], document["n_decode_tokens"], document["k"]
        numbers, num_experts = tuple(layer["layer"] for layer in layers), document["n_expert_per_layer"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no co-activation report ({error!r}): truncated, damaged or another file") from None
    if loads.shape != (len(numbers), num_experts):
        raise ValueError(f"{file}: heat is {loads.shape}, expected [layers, {num_experts}]")
    try:
        return CountsTable(
            model=str(model), num_tokens=int(num_tokens), top_k=int(top_k), model_layer_of_layer=numbers, loads=loads,
            pairs=np.array(pairs, np.int64).reshape(-1, 4),
            pair_rule="count >= 5 and lift >= 1.5, the 2000 most frequent of a layer", phase="decode",
            quantization=str(document.get("quant", "unknown")), licence=licence, provenance=f"mbolt, file {file.name}",
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*.json")) if matches(file)]
