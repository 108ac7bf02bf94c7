"""Model types that exist, and how a checkpoint spells the canonical tensor names.  Floor 2."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from types import ModuleType
from typing import Any

from moelab.engine import models
from moelab.engine.checkpoint import Checkpoint, CheckpointError


def model_types() -> list[str]:
    """The architectures that exist: the files of `moelab/engine/models`."""
    return sorted(module.name for module in pkgutil.iter_modules(models.__path__))


def model_module(model_type: Any) -> ModuleType:
    """The file of a model type. ValueError that lists what exists."""
    if model_type not in model_types():
        raise ValueError(
            f"model_type: expected one of {', '.join(model_types())}, got {model_type!r}; "
            "add moelab/engine/models/<model_type>.py or load another model"
        )
    return importlib.import_module(f"{models.__name__}.{model_type}")


class Names:
    """How a checkpoint spells the canonical names `model.*` and `lm_head.*`."""

    def __init__(self, checkpoint: Checkpoint, module: ModuleType) -> None:
        self._checkpoint = checkpoint
        self._skipped_prefixes: tuple[str, ...] = module.SKIPPED_PREFIXES
        forms: tuple[tuple[str, str], ...] = module.NAME_FORMS
        fitting = (form for form in forms if f"{form[0]}embed_tokens.weight" in checkpoint)
        self._body, self._head = next(fitting, forms[0])

    def spell(self, name: str) -> str:
        """The name in the file of a canonical name."""
        if name.startswith("lm_head."):
            return self._head + name.removeprefix("lm_head.")
        return self._body + name.removeprefix("model.")

    def count_skipped(self, expected: dict[str, tuple[int, ...]], num_layers: int) -> dict[str, int]:
        """Tensors left out, by kind. CheckpointError for one of no known kind: we would compute something else."""
        counts: Counter[str] = Counter()
        for name, entry in self._checkpoint.entries.items():
            if name in expected:
                continue
            layer = name.removeprefix(f"{self._body}layers.").split(".")[0]
            if name.startswith(self._skipped_prefixes):
                counts["vision"] += 1
            elif name.startswith(f"{self._body}layers.") and layer.isdigit() and int(layer) >= num_layers:
                counts["multi_token_prediction"] += 1
            elif name.endswith("rotary_emb.inv_freq"):
                counts["rotary_frequencies"] += 1
            else:
                raise CheckpointError(
                    entry.file,
                    "only tensors that this architecture uses",
                    f"{name} {list(entry.shape)}",
                    "load it with the config.json that it was written with; the engine may lack its quantisation",
                )
        return dict(counts)
