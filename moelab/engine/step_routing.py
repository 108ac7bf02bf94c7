"""StepRouting: the experts and gate weights of one forward pass, as observers see them.  Floor 2."""

from __future__ import annotations

import numpy as np

from moelab.domain.trace import NO_EXPERT


class StepRouting:
    """`expert_ids` int32 and `gate_weights` float32, [L, T, K] over the MoE layers; the model fills every layer.

    Where asked, else None: `candidate_scores` float16 [L, T, E] and `stale_gate_experts` uint16 [L, T, K], as
    `Trace.extras` has them.
    """

    def __init__(
        self, num_layers: int, num_tokens: int, top_k: int, num_experts: int, *, scores: bool = False,
        stale_gate: bool = False,
    ) -> None:  # fmt: skip
        shape = (num_layers, num_tokens, top_k)
        self.expert_ids = np.empty(shape, np.int32)
        self.gate_weights = np.empty(shape, np.float32)
        self.candidate_scores = np.empty((num_layers, num_tokens, num_experts), np.float16) if scores else None
        self.stale_gate_experts = np.full(shape, NO_EXPERT, np.uint16) if stale_gate else None
