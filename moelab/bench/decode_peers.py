"""How transformers can decode on a CPU, and a short search for the fastest: arithmetic, attention, experts, compiled.

float32 or bfloat16, attention ``eager`` or ``sdpa``, each expert backend, plain or ``torch.compile``d over a static
cache, at one and at all threads. Plain ways are all tried. Compiling takes half a minute, so that of the compiled ones
each arithmetic and backend is tried with the attention and threads that were best plain, and the best of those with the
others. It does not know our engine. Floor 6; extra ``[test]`` (transformers, compressed-tensors).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("eager", "sdpa")
BACKENDS = ("eager", "batched_mm", "grouped_mm")  # who computes the experts, of transformers' on a CPU

Decode = Callable[[np.ndarray, int], float]  # prompts [B, T], new tokens -> seconds of the decode steps alone


@dataclass(frozen=True)
class Way:
    """One way to run transformers."""

    dtype: str
    attention: str
    backend: str
    compiled: bool
    threads: int

    def __str__(self) -> str:
        compiled = ", compiled" if self.compiled else ""
        return (
            f"transformers {self.dtype}, {self.attention} attention, {self.backend}{compiled}, {self.threads} threads"
        )


def fastest_ways(trial: Callable[[Way], float | None], threads: Sequence[int]) -> list[Way]:
    """All that were tried, the fastest first. ``trial`` gives seconds, ``None`` for a way that does not run here.

    Raises ``RuntimeError`` where none does.
    """
    seconds: dict[Way, float | None] = {}

    def best(ways: Sequence[Way]) -> Way | None:
        for way in ways:
            if way not in seconds:
                seconds[way] = trial(way)
        usable = [way for way in ways if seconds[way] is not None]
        return min(usable, key=lambda way: seconds[way] or 0.0, default=None)

    compiled = []
    for dtype in DTYPES:
        for backend in BACKENDS:
            plain = best([Way(dtype, attention, backend, False, n) for attention in ATTENTIONS for n in threads])
            # What does not run plain may run compiled, with the attention that always runs.
            compiled.append(replace(plain or Way(dtype, "eager", backend, False, max(threads)), compiled=True))
    first = best(compiled)
    if first is not None:
        nearest = best([replace(first, threads=n) for n in threads]) or first
        best([replace(nearest, attention=attention) for attention in ATTENTIONS])
    found = sorted((took, str(way), way) for way, took in seconds.items() if took is not None)
    if not found:
        raise RuntimeError(
            "transformers: expected a way to decode that runs here; got none of them: see the errors above"
        )
    return [way for _, _, way in found]


class Transformers:
    """Decodes nano in any way; ``twin`` is the model in float32. One copy for each arithmetic, at most two."""

    def __init__(self, twin: Any, capacity: int) -> None:
        self._models: dict[str, Any] = {"float32": twin}
        self._forwards: dict[Way, Any] = {}
        self.capacity = capacity
        # One for each layer, backend, attention and batch; the defaults of 8 and 256 give up half way.
        torch._dynamo.config.recompile_limit = 512
        torch._dynamo.config.accumulated_recompile_limit = 4096

    def _model(self, dtype: str) -> Any:
        if dtype not in self._models:
            from copy import deepcopy

            self._models[dtype] = deepcopy(self._models["float32"]).to(getattr(torch, dtype))
        return self._models[dtype]

    def decode(self, way: Way) -> Decode:
        """Greedy decode over a static cache, one forward pass a token; torch's threads are left as they were."""
        from transformers import StaticCache

        model = self._model(way.dtype)
        if way not in self._forwards:
            self._forwards[way] = torch.compile(model.forward, dynamic=False) if way.compiled else model.forward
        forward = self._forwards[way]

        @torch.no_grad()
        def decode(prompts: np.ndarray, num_tokens: int) -> float:
            model.set_experts_implementation(way.backend)
            model.set_attn_implementation(way.attention)
            threads_before = torch.get_num_threads()
            torch.set_num_threads(way.threads)
            try:
                cache = StaticCache(config=model.config, max_cache_len=self.capacity)
                tokens = torch.from_numpy(prompts)
                logits = model(tokens, past_key_values=cache, use_cache=True).logits[:, -1]
                started = time.perf_counter()
                for step in range(num_tokens - 1):
                    following = logits.argmax(-1)[:, None]
                    positions = torch.full((len(tokens), 1), prompts.shape[1] + step)
                    output = forward(following, past_key_values=cache, use_cache=True, position_ids=positions)
                    logits = output.logits[:, -1]
                return time.perf_counter() - started
            finally:
                torch.set_num_threads(threads_before)

        return decode
