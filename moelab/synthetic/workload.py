"""Workload: which requests run, of which domain, and how long their prompts and answers are.  Floor 2.

Requests run one after the other: a prefill step with the whole prompt, then one decode step for each token.
Does not know routing, batches of several sequences or prefill chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.domain.trace import Phase, Trace

LENGTH_SPREAD = 0.6
"""Deviation of the logarithm of request lengths: the longest of 100 is about ten times the shortest."""


@dataclass(frozen=True, eq=False)
class Workload:
    """int64 [R] each: ``domain`` (index into ``domains``, -1 for none), prompt and answer tokens."""

    domains: tuple[str, ...]
    domain: np.ndarray
    num_prefill: np.ndarray
    num_decode: np.ndarray

    @property
    def num_requests(self) -> int:
        return len(self.domain)

    @property
    def num_tokens(self) -> int:
        return int(self.num_prefill.sum() + self.num_decode.sum())

    @classmethod
    def random(
        cls, num_tokens: int, *, prefill: int = 200, decode: int = 300, num_domains: int = 8, seed: int = 0
    ) -> Workload:
        """Requests of lognormal lengths with means ``prefill`` and ``decode`` until ``num_tokens`` are reached exactly.

        Domains are drawn evenly. Raises ``ValueError`` for sizes that make no request.
        """
        for name, value, least in (("num_tokens", num_tokens, 1), ("prefill", prefill, 0), ("decode", decode, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}, expected {least} or more")
        if prefill + decode < 1 or num_domains < 1:
            raise ValueError(
                f"prefill {prefill} + decode {decode} tokens in {num_domains} domains, expected at least 1 of each"
            )
        rng = np.random.default_rng([seed, 1])
        lengths: list[tuple[int, int]] = []
        left = num_tokens
        while left > 0:
            factor = rng.lognormal(-(LENGTH_SPREAD**2) / 2, LENGTH_SPREAD, 2)
            prompt = min(left, max(prefill > 0, round(prefill * factor[0])))
            answer = min(left - prompt, max(decode > 0, round(decode * factor[1])))
            lengths.append((prompt, answer))
            left -= prompt + answer
        sizes = np.array(lengths, np.int64)
        domain = rng.permutation(np.arange(len(sizes)) % num_domains)
        return cls(tuple(f"synthetic domain {i + 1}" for i in range(num_domains)), domain, sizes[:, 0], sizes[:, 1])

    @classmethod
    def of_trace(cls, trace: Trace) -> Workload:
        """The requests of a trace in their order, each with as many tokens of each phase and its domain."""
        tokens = trace.tokens
        _, first, inverse = np.unique(tokens.request, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        decode = np.bincount(inverse, tokens.phase == Phase.DECODE).astype(np.int64)
        prefill = np.bincount(inverse).astype(np.int64) - decode
        return cls(trace.header.domains, tokens.domain[first[order]].astype(np.int64), prefill[order], decode[order])
