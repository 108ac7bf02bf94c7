"""Reader of ESFT's expert scores: DeepSeek-V2-Lite, whole sequences in PREFILL, four domains, gate weights.

Two forms. The published one: ``DOMAIN/expert_weights_<model layer>.txt``, one line for each sequence, ``T * K``
ids and ``T * K`` gate weights separated by tabs, two tabs between them, token-major, ids in the order of
``torch.topk(sorted=False)``; line i of every file of a domain is the same sequence. And the same packed as
``trace.npz`` with ``sequences.json`` (``npz_folder``).

The weights are softmax over all experts, not renormalised. Each sequence was one forward pass (teacher
forcing over prompt and target), so nothing here is decode. Shapes and expert bytes come from the preset,
because the files say neither. Floor 1. Source: deepseek-ai/ESFT, results/expert_scores (Wang et al. 2024).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from moelab.domain.model import ModelSpec
from moelab.domain.trace import Phase, TokenTable, Trace, TraceHeader
from moelab.formats import npz_folder

PRESET = "deepseek-v2-lite"
_FILE = re.compile(r"expert_weights_(\d+)\.txt")


def matches(path: Path) -> bool:
    """True for a folder of either form."""
    if not path.is_dir():
        return False
    return npz_folder.has_fields(path, "domain", "line") or any(path.glob("*/expert_weights_*.txt"))


def read(path: Path, *, preset: str = PRESET, licence: str = "MIT (data); the model's licence is DeepSeek's") -> Trace:
    """All sequences of all domains, domains and lines in rising order; ``preset`` is the recorded model.

    Raises ``ValueError`` that names the file and line where lengths, layers, ids or weights contradict.
    """
    spec = ModelSpec.preset(preset)
    shape = (spec.num_moe_layers, spec.n_routed_experts, spec.num_experts_per_tok)
    if (path / npz_folder.ARRAYS).is_file():
        arrays, sequences = npz_folder.read_arrays(path, shape)
        experts, gate_weights = arrays["expert_ids"].astype(np.uint16), arrays["weights"].astype(np.float16)
        domain_of_sequence = [str(s["domain"]) for s in sequences]
        lengths = np.array([s["n_tokens"] for s in sequences])
        form = npz_folder.ARRAYS
    else:
        experts, gate_weights, lengths, domain_of_sequence = _read_text(path, spec)
        form = "expert_weights_*.txt"
    if not np.isfinite(gate_weights).all():
        raise ValueError(f"{path} holds a gate weight that is not finite: restore it from its source")
    rank = np.argsort(-gate_weights.astype(np.float32), axis=2, kind="stable")
    domains = tuple(dict.fromkeys(domain_of_sequence))
    header = TraceHeader(
        model=spec.name or preset, model_type=spec.model_type, num_layers=shape[0], num_experts=shape[1],
        top_k=shape[2],
        model_layer_of_layer=tuple(spec.model_layer_of_layer), expert_bytes=(spec.expert_bytes("bf16"),) * shape[0],
        hidden_size=spec.hidden_size, moe_intermediate_size=spec.moe_intermediate_size,
        gate_weight_kind="softmax_over_all", slot_order="rank", engine="ESFT (transformers)", quantization="bf16",
        licence=licence, provenance=f"ESFT expert scores, {form}; shape and expert bytes of preset {preset}",
        synthetic=False, domains=domains,
    )  # fmt: skip
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    tokens = TokenTable.build(
        step=sequence, request=sequence, position=np.arange(len(sequence)) - (lengths.cumsum() - lengths)[sequence],
        phase=Phase.PREFILL, domain=np.array([domains.index(d) for d in domain_of_sequence])[sequence],
    )  # fmt: skip
    return Trace(
        header, np.take_along_axis(experts, rank, axis=2), np.take_along_axis(gate_weights, rank, axis=2), tokens
    )


def _read_text(path: Path, spec: ModelSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """(experts, gate weights [T, L, K], tokens of each sequence, domain of each sequence)."""
    top_k = spec.num_experts_per_tok
    experts, weights, lengths, domain_of_sequence = [], [], [], []
    for folder in sorted(p for p in path.iterdir() if any(p.glob("expert_weights_*.txt"))):
        file_of_layer = {int(m.group(1)): p for p in folder.iterdir() if (m := _FILE.fullmatch(p.name))}
        if sorted(file_of_layer) != list(spec.model_layer_of_layer):
            raise ValueError(
                f"{folder} has files for model layers {sorted(file_of_layer)}, expected those of {spec.name}: "
                f"{spec.model_layer_of_layer[0]} to {spec.model_layer_of_layer[-1]}"
            )
        columns = [_read_layer(file_of_layer[n], top_k, spec.n_routed_experts) for n in spec.model_layer_of_layer]
        for layer, (_, _, tokens) in enumerate(columns):
            if not np.array_equal(tokens, columns[0][2]):
                raise ValueError(
                    f"{file_of_layer[spec.model_layer_of_layer[layer]]} has sequences of other lengths than "
                    f"{file_of_layer[spec.model_layer_of_layer[0]]}, expected the same lines in every layer: truncated"
                )
        experts.append(np.stack([ids for ids, _, _ in columns], axis=1))
        weights.append(np.stack([values for _, values, _ in columns], axis=1))
        lengths.append(columns[0][2])
        domain_of_sequence += [folder.name] * len(columns[0][2])
    return np.concatenate(experts), np.concatenate(weights), np.concatenate(lengths), domain_of_sequence


def _read_layer(file: Path, top_k: int, num_experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids uint16 [T, K], weights float16 [T, K], tokens of each line) of one layer and domain."""
    ids, weights, lengths = [], [], []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        left, _, right = line.strip().partition("\t\t")
        try:
            row = np.array(left.split("\t"), np.int64)
            values = np.array(right.split("\t"), np.float64)
        except ValueError as error:
            raise ValueError(f"{file}, line {number} holds what is no number ({error}): damaged") from None
        if len(row) != len(values) or len(row) % top_k:
            raise ValueError(
                f"{file}, line {number} has {len(row)} ids and {len(values)} weights, expected as many of both, "
                f"a multiple of top-k = {top_k}: truncated or of another model"
            )
        if row.min() < 0 or row.max() >= num_experts:
            raise ValueError(f"{file}, line {number} holds expert {row.max()}, expected ids below {num_experts}")
        ids.append(row.astype(np.uint16).reshape(-1, top_k))
        weights.append(values.astype(np.float16).reshape(-1, top_k))
        lengths.append(len(row) // top_k)
    if not ids:
        raise ValueError(f"{file} is empty, expected one line for each sequence")
    return np.concatenate(ids), np.concatenate(weights), np.array(lengths)
