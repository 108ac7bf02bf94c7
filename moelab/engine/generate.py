"""Generation: requests go through chunked prefill, then decode together, one row each.

Continuous batching in its smallest form: a free row takes the next request, is prefilled alone in
chunks, and joins the decode of the others; when a sequence ends, the last active row moves into its
place, so the active rows are always the first. One row per sequence and one padded attention, so
sequences of different lengths share a step and do not see each other.
It knows neither text nor files. Floor 2.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from moelab.domain.trace import Phase
from moelab.engine.sampling import Sampling, pick

if TYPE_CHECKING:
    from moelab.engine.counters import DecodeMark
    from moelab.engine.engine import Engine

FinishReason = Literal["length", "stop"]
PREFILL_CHUNK = 256


@dataclass
class Sequence:
    """One request on its way. `token_ids` are the generated ones; the last has been sampled, never fed."""

    request: int
    prompt_token_ids: list[int]
    max_new_tokens: int
    sampling: Sampling
    stop_token_ids: frozenset[int]
    domain: str | None = None
    index: int = 0
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prefill_s: float = 0.0
    decode_s: float = 0.0
    decode_from: DecodeMark | None = None  # what had been counted before its first decode step, after its last
    decode_until: DecodeMark | None = None

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise ValueError(f"prompt of request {self.request}: expected at least one token, got none; give a text")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected 1 or more, got {self.max_new_tokens}; use forward for logits")
        self._generator = self.sampling.generator(self.index)

    def take(self, logits: torch.Tensor) -> None:
        """Choose the next token from logits [vocab] and see whether the sequence ends with it."""
        token = pick(logits, self.sampling, self._generator)
        self.token_ids.append(token)
        if token in self.stop_token_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_new_tokens:
            self.finish_reason = "length"


def check_sizes(batch_size: int, prefill_chunk: int) -> None:
    """ValueError where one of them is below 1; for callers that must know before they write anything."""
    if batch_size < 1 or prefill_chunk < 1:
        given = f"{batch_size}, {prefill_chunk}"
        raise ValueError(f"batch_size, prefill_chunk: expected 1 or more, got {given}; use 1, {PREFILL_CHUNK}")


def run(
    engine: Engine, sequences: Iterable[Sequence], batch_size: int = 1, prefill_chunk: int = PREFILL_CHUNK
) -> Iterator[Sequence]:
    """Generate for all sequences, at most `batch_size` at a time; yields a sequence after each new token of it."""
    check_sizes(batch_size, prefill_chunk)
    cache = engine.new_cache(batch_size)
    waiting = iter(sequences)
    active: list[Sequence] = []
    exhausted = False
    try:
        while True:
            while len(active) < batch_size and not exhausted:
                sequence = next(waiting, None)
                if sequence is None:
                    exhausted = True
                    break
                row = len(active)
                cache.clear(row)
                started = time.perf_counter()
                sequence.take(engine.prefill(sequence, cache, row, prefill_chunk))
                sequence.prefill_s = time.perf_counter() - started
                if sequence.finish_reason is None:
                    sequence.decode_from = engine.decode_mark()
                    active.append(sequence)
                else:
                    engine.end_request()
                yield sequence
            if not active:
                return
            started = time.perf_counter()
            fed = torch.tensor([[sequence.token_ids[-1]] for sequence in active])
            logits = engine.step(fed, cache, 0, active, Phase.DECODE, "last")
            assert logits is not None
            stepped = list(active)
            for row, sequence in enumerate(stepped):
                sequence.take(logits[row, 0])
            spent = time.perf_counter() - started
            for row in reversed(range(len(stepped))):
                stepped[row].decode_s += spent
                if stepped[row].finish_reason is not None:
                    stepped[row].decode_until = engine.decode_mark()
                    cache.move(len(active) - 1, row)
                    active[row] = active[-1]
                    active.pop()
                    engine.end_request()
            yield from stepped
    finally:
        for sequence in active:
            sequence.decode_until = engine.decode_mark()
        if active:  # the caller lost interest, or a step failed
            engine.end_request()
