"""What every peer offers, and the checks that all of them share.

Knows shapes, and whether a module can be imported. Does not know any peer's library, nor how a bench takes time.
Floor 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

import numpy as np

Projections = tuple[np.ndarray, np.ndarray, np.ndarray]  # gate [I, H], up [I, H], down [H, I], float32
Experts = Sequence[Projections] | Callable[[int], Projections]

NOT_INSTALLED = "not installed"


class Peer(Protocol):
    """One layer of SwiGLU experts in a peer's own weight format, run by ``num_threads`` threads of its own pool."""

    name: str
    weight_bytes_per_expert: int

    def __init__(
        self, experts: Experts, num_experts: int, hidden_size: int, intermediate_size: int, num_threads: int
    ) -> None: ...

    @staticmethod
    def available() -> str | None:
        """``None`` where the peer runs, else the reason: the text of its row."""

    @staticmethod
    def version() -> str: ...

    def forward(self, x: np.ndarray, expert_ids: np.ndarray, gate_weights: np.ndarray) -> np.ndarray:
        """float32 [T, H], int [T, K], float32 [T, K] -> float32 [T, H]; every distinct expert is read once."""

    def close(self) -> None: ...


def why_not(module: str) -> str | None:
    """``None`` if ``module`` can be imported, else ``not installed`` or the error of its import."""
    if find_spec(module) is None:
        return NOT_INSTALLED
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return f"import failed: {error}"
    return None


def projections(experts: Experts, expert: int, hidden_size: int, intermediate_size: int) -> Projections:
    """The three float32 matrices of one expert, contiguous. Raises ``ValueError`` for other shapes."""
    matrices = experts(expert) if callable(experts) else experts[expert]
    gate, up, down = (np.ascontiguousarray(matrix, np.float32) for matrix in matrices)
    shapes = (gate.shape, up.shape, down.shape)
    wide, tall = (intermediate_size, hidden_size), (hidden_size, intermediate_size)
    if shapes != (wide, wide, tall):
        raise ValueError(f"expert {expert}: expected gate, up, down of shapes {(wide, wide, tall)}, got {shapes}")
    return gate, up, down


def check_step(
    x: np.ndarray, expert_ids: np.ndarray, gate_weights: np.ndarray, num_experts: int, hidden_size: int
) -> None:
    """Raises ``ValueError`` where a peer's C code would read or write outside its arrays. No unrouted slots."""
    num_tokens = len(x)
    if x.shape != (num_tokens, hidden_size) or x.dtype != np.float32:
        raise ValueError(f"x: expected float32 [T, {hidden_size}], got {x.dtype} {x.shape}")
    if expert_ids.ndim != 2 or len(expert_ids) != num_tokens or gate_weights.shape != expert_ids.shape:
        raise ValueError(
            f"expected expert_ids and gate_weights [{num_tokens}, K], got {expert_ids.shape} and {gate_weights.shape}"
        )
    if expert_ids.size == 0 or expert_ids.min() < 0 or expert_ids.max() >= num_experts:
        raise ValueError(
            f"expert_ids: expected at least one, all from 0 to {num_experts - 1}; peers know no empty slot"
        )
