"""TokenRows: which tokens one forward pass is made of, as observers see them.  Floor 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.domain.trace import Phase


@dataclass(slots=True)
class TokenRows:
    """B sequences with Q new tokens each: T = B * Q rows in the order of `expert_ids`, one sequence after the other.

    `requests`, `starts` (position of the first new token) and `domains` have one entry per sequence;
    `token_ids` is int64 [B, Q]. The columns [T] are made when they are asked for, because an observer
    that does not need them should not pay for them in every step. `candidate_scores` float16 [L, T, E] and
    `stale_gate_experts` uint16 [L, T, K] are there where somebody asked for them (`Stepper.asking`).
    """

    requests: list[int]
    starts: list[int]
    domains: list[str | None]
    token_ids: np.ndarray
    phase: Phase
    request_ended: bool = False  # had a request its last tokens in the step before?
    candidate_scores: np.ndarray | None = None
    stale_gate_experts: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.token_ids.size)

    @property
    def request(self) -> np.ndarray:
        """int32 [T]."""
        return self.of_sequences(np.array(self.requests, np.int32))

    @property
    def position(self) -> np.ndarray:
        """int32 [T]: position of each token within its request."""
        offsets = np.arange(self.token_ids.shape[1], dtype=np.int32)
        return (np.array(self.starts, np.int32)[:, None] + offsets).ravel()

    @property
    def token_id(self) -> np.ndarray:
        """int32 [T]: the tokens that were fed, the user's text."""
        return self.token_ids.astype(np.int32).ravel()

    @property
    def flags(self) -> int:
        """What a policy is told of this step: the sum of `policies.signature.FLAG_*`."""
        # Here, because it imports all policies: an engine without them need not wait for that.
        from moelab.policies.signature import FLAG_DECODE, FLAG_PREFILL, FLAG_REQUEST_ENDED, FLAG_REQUEST_STARTS

        phase = FLAG_PREFILL if self.phase is Phase.PREFILL else FLAG_DECODE
        return phase + FLAG_REQUEST_STARTS * (0 in self.starts) + FLAG_REQUEST_ENDED * self.request_ended

    def of_sequences(self, values: np.ndarray) -> np.ndarray:
        """One value per sequence [B] -> one per row [T]."""
        return values if self.token_ids.shape[1] == 1 else np.repeat(values, self.token_ids.shape[1])
