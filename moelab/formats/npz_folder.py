"""A folder of ``trace.npz`` and ``sequences.json``: how the two public captures of whole sequences are packed.

``trace.npz``: ``expert_ids`` [T, L, K] in rank order, ``weights`` float16 [T, L, K], ``seq_id`` [T] and perhaps
``position`` [T]. ``sequences.json``: a list with ``seq`` and ``n_tokens`` of each sequence and what its source
says of it. Does not know models: ``esft`` and ``gpt_oss_fingerprint`` do. Floor 1.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

ARRAYS, SEQUENCES = "trace.npz", "sequences.json"


def has_fields(path: Path, *fields: str) -> bool:
    """True for such a folder whose first sequence has all the ``fields``."""
    if not (path / ARRAYS).is_file() or not (path / SEQUENCES).is_file():
        return False
    try:
        sequences = json.loads((path / SEQUENCES).read_text())
    except (ValueError, OSError):
        return False
    return bool(sequences) and isinstance(sequences, list) and all(field in sequences[0] for field in fields)


def read_arrays(path: Path, shape: tuple[int, int, int]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """(arrays, sequences); ``shape`` is (L, E, K) of the model that was recorded.

    Raises ``ValueError`` that names the file where it is damaged, an array is missing or of another shape,
    or the sequences do not cover the tokens.
    """
    file = path / ARRAYS
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise ValueError(f"{file} cannot be read ({error}): restore it from its source") from None
    missing = {"expert_ids", "weights", "seq_id"} - set(arrays)
    if missing:
        raise ValueError(f"{file} holds {', '.join(sorted(arrays))}, expected {', '.join(sorted(missing))} too")
    num_layers, num_experts, top_k = shape
    ids = arrays["expert_ids"]
    for name in ("expert_ids", "weights"):
        if arrays[name].ndim != 3 or arrays[name].shape[1:] != (num_layers, top_k) or len(arrays[name]) != len(ids):
            raise ValueError(f"{file}: {name} is {arrays[name].shape}, expected [T, {num_layers}, {top_k}]")
    if ids.dtype.kind not in "ui" or (ids.size and int(ids.max()) >= num_experts):
        raise ValueError(f"{file}: expert_ids is {ids.dtype} up to {ids.max()}, expected ids below {num_experts}")
    sequences = json.loads((path / SEQUENCES).read_text())
    expected = np.repeat([s["seq"] for s in sequences], [s["n_tokens"] for s in sequences])
    if not np.array_equal(arrays["seq_id"], expected):
        raise ValueError(
            f"{path / SEQUENCES} names {len(expected)} tokens in {len(sequences)} sequences, expected the "
            f"{len(ids)} of seq_id in {ARRAYS}, in the same order: the two files belong to different captures"
        )
    return arrays, sequences
