"""array_axes: are the axes of somebody's expert ids tokens, layers, top-k? What speaks against it, and what to do.

Shapes alone do not say it, so what else was given does. Does not know what the ids mean. Floor 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

MOST_LAYERS = 512
"""No model has so many MoE layers; the deepest known has 93."""


def check_axes(ids: np.ndarray, of_tokens: Mapping[str, Any]) -> None:
    """``ids`` [T, L, K]; ``of_tokens``: what was given for each token, or ``None``, one for all.

    Raises ``ValueError`` where the second axis must be the tokens; warns where it may be.
    """
    num_tokens, num_layers, _ = ids.shape
    lengths = {name: len(each) for name, each in of_tokens.items() if _is_list(each)}
    turned = [name for name, length in lengths.items() if length == num_layers != num_tokens]
    says = f"experts is {ids.shape}, read as [T, L, K]: {num_tokens:,} tokens, {num_layers:,} MoE layers"
    fix = "if it is [L, T, K], give experts.transpose(1, 0, 2), and gate_weights alike"
    if turned:
        raise ValueError(f"{says}; but {turned[0]} has {num_layers:,} entries, one for each token: {fix}")
    if num_layers > MOST_LAYERS:
        raise ValueError(f"{says}; expected at most {MOST_LAYERS}: {fix}")
    if num_layers > num_tokens > 0 and num_tokens not in lengths.values():
        warnings.warn(f"{says}, more than tokens: {fix}", UserWarning, stacklevel=4)


def _is_list(value: Any) -> bool:
    """A text has a length too, an array of no axes has none."""
    return hasattr(value, "__len__") and not isinstance(value, str) and getattr(value, "ndim", 1) > 0


def check_different(ids: np.ndarray, routed: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises ``ValueError`` where a token has an expert twice in one layer; ``shape`` is what was given."""
    ranked = np.sort(np.where(routed, ids, -1), axis=2)
    if not ((ranked[:, :, 1:] == ranked[:, :, :-1]) & (ranked[:, :, 1:] >= 0)).any():
        return
    fix = "the last axis is the top-k of one token and layer, experts.transpose(0, 2, 1) if it is [T, K, L]"
    if len(shape) == 2:
        fix = f"{shape} was read as [T, K] of one layer; give experts[:, :, None] if it is [T, L] of a top-1 router"
    raise ValueError(f"experts names an expert twice for one token and layer, expected K different ones: {fix}")
