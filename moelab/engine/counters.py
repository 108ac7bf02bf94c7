"""Counters of an engine: what it did since it was loaded.  Floor 2."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """Since loading. `expert_bytes` counts every distinct expert of a layer-step once."""

    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    step_s: float = 0.0
    expert_s: float = 0.0
    expert_bytes: int = 0
