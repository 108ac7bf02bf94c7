"""StepRouting: the experts and gate weights of one forward pass, as observers see them.  Floor 2."""

from __future__ import annotations

import numpy as np


class StepRouting:
    """`expert_ids` int32 and `gate_weights` float32, [L, T, K] over the MoE layers; the model fills every layer."""

    def __init__(self, num_layers: int, num_tokens: int, top_k: int) -> None:
        self.expert_ids = np.empty((num_layers, num_tokens, top_k), np.int32)
        self.gate_weights = np.empty((num_layers, num_tokens, top_k), np.float32)
