"""WatchedSequence: a request that remembers how sure the model was of each token.  Floor 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from moelab.engine.generate import Sequence, run
from moelab.engine.prompts import Prompt
from moelab.engine.sampling import Sampling

if TYPE_CHECKING:
    from moelab.engine.engine import Engine


@dataclass
class WatchedSequence(Sequence):
    """`margins`: of each token, the largest logit less the second."""

    margins: list[float] = field(default_factory=list)

    def take(self, logits: torch.Tensor) -> None:
        first, second = torch.topk(logits.float(), 2).values.tolist()
        self.margins.append(first - second)
        super().take(logits)


def watched_stream(engine: Engine, prompt: Prompt) -> Iterator[tuple[int, float]]:
    """Greedy tokens and their margins as they come, `max_new_tokens` of them whatever they are."""
    plain = engine.new_sequence(prompt.prompt, prompt.max_new_tokens, Sampling(), ())
    sequence = WatchedSequence(
        plain.request, plain.prompt_token_ids, plain.max_new_tokens, plain.sampling, plain.stop_token_ids
    )
    for _ in run(engine, [sequence]):
        yield sequence.token_ids[-1], sequence.margins[-1]
