"""Reader of the GPT-OSS expert fingerprints: gpt-oss-20b, decode tokens of whole generations, gate weights.

Two forms. The published one: JSON files ``DATASET/CATEGORY/*_examples.json``, one generation each, with
``router_data: [{"token_<position>": {"layer_<l>": {"selected_experts": [K], "selected_probs": [K]}}}]``. And the
same packed as ``trace.npz`` with ``sequences.json`` (``npz_folder``).

The weights are softmax over the K selected. The prompt's routing was dropped by the source: positions start
at the prompt's length and every token is decode. Domains are the datasets. Shape and expert bytes come
from the preset. Floor 1. Source: AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from moelab.domain.model import ModelSpec
from moelab.domain.trace import Phase, TokenTable, Trace, TraceHeader
from moelab.formats import npz_folder

PRESET = "gpt-oss-20b"
_SUFFIX = "_examples.json"
_FIRST_BYTES = 4096


def matches(path: Path) -> bool:
    """True for one such JSON file, a folder with some below it, or the packed folder."""
    if path.is_file():
        if path.suffix != ".json":
            return False
        with path.open("rb") as file:
            start = file.read(_FIRST_BYTES)
        return all(f'"{key}"'.encode() in start for key in ("row_index", "dataset", "category"))
    return npz_folder.has_fields(path, "dataset", "first_pos") or next(path.rglob(f"*{_SUFFIX}"), None) is not None


def read(path: Path, *, preset: str = PRESET, licence: str = "Apache-2.0") -> Trace:
    """One generation, or all of a folder in the order of their paths; ``preset`` is the recorded model.

    Raises ``ValueError`` that names the file where it is damaged, or layers, experts or positions contradict.
    """
    spec = ModelSpec.preset(preset)
    shape = (spec.num_moe_layers, spec.n_routed_experts, spec.num_experts_per_tok)
    if (path / npz_folder.ARRAYS).is_file():
        arrays, sequences = npz_folder.read_arrays(path, shape)
        if "position" not in arrays:
            raise ValueError(f"{path / npz_folder.ARRAYS} holds {', '.join(sorted(arrays))}, expected position too")
        experts, gate_weights, position = arrays["expert_ids"], arrays["weights"], arrays["position"].astype(np.int64)
        domain_of_sequence = [str(s["dataset"]) for s in sequences]
        lengths, form = np.array([s["n_tokens"] for s in sequences]), npz_folder.ARRAYS
    else:
        files = [path] if path.is_file() else sorted(path.rglob(f"*{_SUFFIX}"))
        read_files = [_read_file(file, shape) for file in files]
        experts, gate_weights, position = (np.concatenate([part[i] for part in read_files]) for i in range(3))
        domain_of_sequence = [part[3] for part in read_files]
        lengths, form = np.array([len(part[0]) for part in read_files]), f"{len(files)} files *{_SUFFIX}"
    rank = np.argsort(-gate_weights.astype(np.float32), axis=2, kind="stable")
    domains = tuple(dict.fromkeys(domain_of_sequence))
    weight_format = spec.native_formats["routed_experts"]
    header = TraceHeader(
        model=spec.name or preset, model_type=spec.model_type, num_layers=shape[0], num_experts=shape[1],
        top_k=shape[2], model_layer_of_layer=tuple(spec.model_layer_of_layer),
        expert_bytes=(spec.expert_bytes(weight_format),) * shape[0],
        hidden_size=spec.hidden_size, moe_intermediate_size=spec.moe_intermediate_size,
        gate_weight_kind="softmax_over_selected", slot_order="rank", engine="transformers", quantization=weight_format,
        licence=licence, provenance=f"GPT-OSS expert fingerprints, {form}; shape and expert bytes of preset {preset}",
        synthetic=False, domains=domains,
    )  # fmt: skip
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    tokens = TokenTable.build(
        step=np.arange(len(sequence)), request=sequence, position=position, phase=Phase.DECODE,
        domain=np.array([domains.index(d) for d in domain_of_sequence])[sequence],
    )  # fmt: skip
    return Trace(
        header,
        np.take_along_axis(experts.astype(np.uint16), rank, axis=2),
        np.take_along_axis(gate_weights.astype(np.float16), rank, axis=2),
        tokens,
    )


def _read_file(file: Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """(experts [T, L, K], gate weights [T, L, K], positions [T], dataset) of one generation."""
    try:
        document: dict[str, Any] = json.loads(file.read_text())
        by_token = {name: layers for entry in document["router_data"] for name, layers in entry.items()}
        dataset = str(document["dataset"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no expert fingerprint ({error!r}): truncated, damaged or another format") from None
    num_layers, num_experts, top_k = shape
    positions = sorted(int(name.removeprefix("token_")) for name in by_token)
    if not positions or positions != list(range(positions[0], positions[0] + len(positions))):
        raise ValueError(f"{file} has {len(positions)} tokens with gaps, expected one or more consecutive positions")
    ids, weights = [], []
    for position in positions:
        layers = by_token[f"token_{position}"]
        if set(layers) != {f"layer_{layer}" for layer in range(num_layers)}:
            raise ValueError(f"{file}, token {position} has {len(layers)} layers, expected layer_0 to {num_layers - 1}")
        rows = [layers[f"layer_{layer}"] for layer in range(num_layers)]
        if any(len(row["selected_experts"]) != top_k or len(row["selected_probs"]) != top_k for row in rows):
            raise ValueError(f"{file}, token {position}: expected {top_k} experts and weights in every layer")
        ids.append([row["selected_experts"] for row in rows])
        weights.append([row["selected_probs"] for row in rows])
    experts = np.array(ids, np.int64)
    if experts.min() < 0 or experts.max() >= num_experts:
        raise ValueError(f"{file} holds expert {experts.max()}, expected ids below {num_experts}")
    return experts, np.array(weights, np.float16), np.array(positions, np.int64), dataset
