"""Requests: whose tokens a forward pass of a transformers model holds.

A pass without a past begins one request for each row of the batch; a pass with a cache goes on with the requests that
filled that cache. Left padding has no rows. In a batch `generate` feeds a row that is over with its end token and then
with padding: those have no rows either, so n new tokens give n - 1 decode rows, as with moelab's own engine.
Assisted generation: a pass that verifies drafted tokens looks like a further piece of a prompt, so it is prefill, and
drafts that were rejected keep rows, at positions that the accepted tokens take again.
It does not know routers. With beam search a request is a row of the batch, whatever text lies in it. Floor 2.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from moelab.domain.trace import NO_TOKEN_ID, Phase


@dataclass(frozen=True)
class Rows:
    """The tokens of one pass that belong to requests; all arrays have one entry for each of them.

    ``kept`` are their places among the B x S tokens that the routers saw.
    """

    kept: np.ndarray
    request: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    phase: Phase


class Requests:
    """Numbers requests from 0 in the order in which they begin.

    `end_token_ids`: what ends a row of a batch (of the model's generation config).
    """

    def __init__(self, end_token_ids: frozenset[int]) -> None:
        self._end = np.array(sorted(end_token_ids), np.int64)
        self._of_cache: dict[int, tuple[weakref.ref[Any], np.ndarray]] = {}
        self._ended: set[int] = set()
        self._running = np.arange(0)  # requests of the latest pass, one for each row of its batch
        self.num_requests = 0

    def rows(self, kwargs: dict[str, Any]) -> Rows:
        """The rows of a pass from what the model is called with; ValueError for what cannot be told apart."""
        token_ids, shape = _tokens(kwargs)
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        request = self._requests_of(cache, past, shape[0])
        mask = _mask(kwargs.get("attention_mask"), shape, past)
        position = (mask.cumsum(1) - 1)[:, -shape[1] :]
        real = mask[:, -shape[1] :].astype(bool)
        phase = Phase.DECODE if past and shape[1] == 1 else Phase.PREFILL
        if phase is Phase.PREFILL:
            self._ended -= set(request.tolist())
        elif shape[0] > 1:  # one row alone is ended by generate itself, so its end token was fed on purpose
            over = np.isin(token_ids[:, 0], self._end)
            self._ended |= set(request[over].tolist())
            real &= ~np.isin(request, sorted(self._ended))[:, None]
        kept = np.flatnonzero(real.ravel())
        return Rows(kept, np.repeat(request, shape[1])[kept], position.ravel()[kept], token_ids.ravel()[kept], phase)

    def _requests_of(self, cache: Any, past: int, num_rows: int) -> np.ndarray:
        known = self._of_cache.get(id(cache))
        if past and known is not None and known[0]() is cache and len(known[1]) == num_rows:
            self._running = known[1]
            return known[1]
        self._running = np.arange(self.num_requests, self.num_requests + num_rows)
        self.num_requests += num_rows
        self.remember(cache)
        return self._running

    def remember(self, cache: Any) -> None:
        """The requests of the latest pass filled this cache."""
        if cache is not None:
            self._of_cache[id(cache)] = (weakref.ref(cache), self._running)


def _tokens(kwargs: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """(token ids int64 [B, S], (B, S)); ids are ``NO_TOKEN_ID`` where only embeddings were given."""
    token_ids, embeddings = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    if token_ids is not None:
        array = token_ids.detach().cpu().numpy().astype(np.int64)
        return array, (array.shape[0], array.shape[1])
    if embeddings is None:
        raise ValueError(
            f"the model was called with {', '.join(kwargs) or 'nothing'}, expected input_ids or inputs_embeds: "
            "encoder-decoder models cannot be recorded"
        )
    shape = (int(embeddings.shape[0]), int(embeddings.shape[1]))
    return np.full(shape, NO_TOKEN_ID, np.int64), shape


def _mask(mask: Any, shape: tuple[int, int], past: int) -> np.ndarray:
    """int64 [B, past + S]: 1 for a token, 0 for padding."""
    whole = (shape[0], past + shape[1])
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        array = (mask.detach().cpu().numpy() != 0).astype(np.int64)
        if array.shape[1] >= whole[1]:  # a static cache gives a mask of its full length
            return array[:, : whole[1]]
        # A mask of the new tokens alone: the past counts as real.
        return np.concatenate([np.ones((shape[0], whole[1] - array.shape[1]), np.int64), array], axis=1)
    if mask is not None and shape[0] > 1:
        raise ValueError(
            f"attention_mask is {type(mask).__name__} of {getattr(mask, 'ndim', 'several')} dimensions for a batch of "
            f"{shape[0]}, expected [batch, tokens], which says what is padding: use the default (dynamic) cache"
        )
    return np.ones(whole, np.int64)
