"""CountsTable: how often each expert was routed to, without order. It can be analysed, never simulated.

Many published captures keep no more than this: loads by layer and, of some pairs of experts, how often
both served the same token. There is no time, no request and so no interval, no reuse and no hit rate in it;
that is why it is no ``Trace``. Knows its own sums; does not know files (``moelab.formats``).
Floor 0: NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.domain.summary import summary_html, summary_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class CountsTable:
    """Loads int64 [L, E] over ``num_tokens`` tokens, each routed to ``top_k`` experts in every layer.

    ``pairs`` int64 [P, 4] holds (layer, lower expert, higher expert, tokens that used both) of the pairs
    that the source kept, and ``pair_rule`` says which those are; P may be 0. ``phase`` is ``prefill``,
    ``decode`` or ``None`` where mixed or unknown. Raises ``ValueError`` where sums or ids contradict.
    """

    model: str
    num_tokens: int
    top_k: int
    model_layer_of_layer: tuple[int, ...]
    loads: np.ndarray
    pairs: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    pair_rule: str = "none"
    phase: str | None = None
    quantization: str = "unknown"
    licence: str = "unknown"
    provenance: str = "unknown"
    synthetic: bool = False

    def __post_init__(self) -> None:
        if self.loads.ndim != 2 or self.loads.dtype != np.int64 or len(self.loads) != len(self.model_layer_of_layer):
            raise ValueError(
                f"loads is {self.loads.dtype} {self.loads.shape}, expected int64 [L, E] with L = "
                f"{len(self.model_layer_of_layer)}, one row for each of model_layer_of_layer"
            )
        if (self.loads < 0).any():
            raise ValueError(f"loads holds {self.loads.min()}, expected no negative count")
        expected = self.num_tokens * self.top_k
        wrong = np.flatnonzero(self.loads.sum(1) != expected)
        if len(wrong):
            raise ValueError(
                f"loads of layer {wrong[0]} sum to {self.loads[wrong[0]].sum()}, expected num_tokens x top_k = "
                f"{self.num_tokens} x {self.top_k} = {expected}: the table is damaged or counts something else"
            )
        if self.pairs.ndim != 2 or self.pairs.shape[1:] != (4,) or self.pairs.dtype != np.int64:
            raise ValueError(f"pairs is {self.pairs.dtype} {self.pairs.shape}, expected int64 [P, 4]")
        layer, low, high, count = self.pairs.T
        known = (layer >= 0) & (layer < self.num_layers) & (low >= 0) & (low < high) & (high < self.num_experts)
        if not known.all():
            raise ValueError(
                f"pairs holds {self.pairs[~known][0].tolist()}, expected (layer, lower expert, higher expert, count) "
                f"within {self.num_layers} x {self.num_experts}"
            )
        too_many = count > np.minimum(self.loads[layer, low], self.loads[layer, high])
        if too_many.any():
            raise ValueError(f"pair {self.pairs[too_many][0].tolist()} was counted more often than one of its experts")

    @property
    def num_layers(self) -> int:
        return self.loads.shape[0]

    @property
    def num_experts(self) -> int:
        return self.loads.shape[1]

    def to_frame(self) -> pd.DataFrame:
        """One row for each layer and expert."""
        import pandas as pd

        layer, expert = np.divmod(np.arange(self.loads.size), self.num_experts)
        columns = {
            "routing": "synthetic" if self.synthetic else "recorded",
            "layer": layer,
            "model_layer": np.asarray(self.model_layer_of_layer)[layer],
            "expert": expert,
            "load": self.loads.ravel(),
        }
        return pd.DataFrame(columns)

    def summary(self) -> dict[str, Any]:
        """What ``repr`` and ``_repr_html_`` show; plain values."""
        return {
            "model": self.model,
            "routing": "synthetic" if self.synthetic else "recorded",
            "kind": "counts: can be analysed, not simulated",
            "tokens": self.num_tokens,
            "phase": self.phase or "not known",
            "layers x experts, top-k": f"{self.num_layers} x {self.num_experts}, {self.top_k}",
            "pairs": f"{len(self.pairs)} ({self.pair_rule})",
            "quantisation": self.quantization,
            "licence": self.licence,
        }

    def __repr__(self) -> str:
        return summary_text("CountsTable", self.summary())

    def _repr_html_(self) -> str:
        return summary_html("CountsTable", self.summary())
