"""Choosing the next token: greedy, or temperature with top-k and top-p, from a seeded generator.

Every sequence draws from its own generator, so what it says does not depend on its batch. Order of the
filters as in transformers: temperature, top-k, top-p (Holtzman et al. 2020). Floor 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; `top_k` and `top_p` None are off; `seed` makes draws repeatable."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature: expected 0 (greedy) or more, got {self.temperature}; use 0.7 for variety")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected 1 or more, got {self.top_k}; leave it out for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected above 0 and at most 1, got {self.top_p}; leave it out for no limit")

    def generator(self, index: int) -> torch.Generator:
        """The generator of the sequence with this index in its call."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + index) % (1 << 63))


def pick(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token id from logits [vocab]."""
    if sampling.temperature == 0:
        # NumPy's: torch wakes its thread team for a vocabulary, which then spins on the workers' cores.
        return int(logits.float().cpu().numpy().argmax())
    return int(torch.multinomial(probabilities(logits, sampling), 1, generator=generator))


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What is drawn from: float32 [vocab] on the CPU, 0 where a filter removed the token."""
    scaled = logits.float().cpu() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k).values[-1], float("-inf"))
    chances = scaled.softmax(-1)
    if sampling.top_p is not None:
        ordered, ids = torch.sort(chances, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # the mass ranked above: the first token always stays
        chances = chances.index_fill(0, ids[before >= sampling.top_p], 0.0)
        chances = chances / chances.sum()
    return chances
