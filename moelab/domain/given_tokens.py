"""given_tokens: the token table of a trace of arrays: requests, positions, phases, steps, domains.

Fills in what follows from what was given and refuses what contradicts itself. Floor 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moelab.domain.given_array import given_array, given_integers
from moelab.domain.trace import Phase, TokenTable


def domains_of_tokens(domain: Any, num_tokens: int) -> tuple[tuple[str, ...], np.ndarray]:
    """(names, index of each token) of a name for each token."""
    given = [domain] * num_tokens if domain is None or isinstance(domain, str) else _list("domain", domain)
    _check_length("domain", given, num_tokens)
    given = [None if name is None or name != name else str(name) for name in given]  # NaN: pandas' nothing
    names = tuple(dict.fromkeys(name for name in given if name is not None))
    index = {name: i for i, name in enumerate(names)} | {None: -1}
    return names, np.array([index[name] for name in given], np.int16)


def _list(name: str, value: Any) -> list[Any]:
    try:
        return list(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}, expected one name for all tokens or one for each") from None


def numbers_of_requests(request: Any, num_tokens: int) -> tuple[np.ndarray, str]:
    """(int64 [T], words for the provenance): names, and numbers beyond int32, are numbered as they occur."""
    given = given_array("request", request)
    if given.dtype.kind not in "iuUSO" or given.ndim != 1:
        raise ValueError(f"request is {given.dtype} {given.shape}, expected a number or a name for each token")
    _check_length("request", given, num_tokens)
    if given.dtype.kind in "iu" and (not len(given) or (given.min() >= 0 and given.max() < 2**31)):
        return given.astype(np.int64), ""
    number: dict[Any, int] = {}
    numbered = np.array([number.setdefault(name, len(number)) for name in given.tolist()], np.int64)
    return numbered, f"; {len(number)} requests numbered as they occur"


def token_table(
    num_tokens: int,
    request: np.ndarray | None,
    position: Any,
    step: Any,
    num_prompt_tokens: Any,
    domain: Any,
    token_id: Any,
) -> TokenTable:
    """``request`` as ``numbers_of_requests`` gives it, ``domain`` as indices; the rest as ``from_arrays`` says."""
    requests = np.zeros(num_tokens, np.int64) if request is None else request
    _, index, lengths = np.unique(requests, return_inverse=True, return_counts=True)
    if position is None and not num_tokens:
        position = np.zeros(0, np.int64)
    elif position is None:
        order = np.argsort(index, kind="stable")
        starts = np.concatenate([[0], lengths.cumsum()[:-1]]).astype(np.int64)
        position = np.empty(num_tokens, np.int64)
        position[order] = np.arange(num_tokens) - np.repeat(starts, lengths)
    position = given_integers("position", position, low=0)
    _check_length("position", position, num_tokens)
    _check_positions(index, position)
    prompt = given_integers("num_prompt_tokens", 0 if num_prompt_tokens is None else num_prompt_tokens, low=0)
    if prompt.ndim > 1 or prompt.size not in (1, len(lengths)):
        raise ValueError(
            f"num_prompt_tokens has {prompt.size} entries, expected one for all or one for each of the {len(lengths)} "
            "requests, in rising order of their numbers"
        )
    is_prompt = position < np.broadcast_to(prompt.reshape(-1), max(1, len(lengths)))[index]
    if step is None:
        changes = np.flatnonzero(np.diff(index)) + 1
        if len(changes) + 1 > len(lengths) and num_tokens:
            raise ValueError(
                "request comes back after another one, so requests ran together: give step, the forward pass of each "
                "token, or sort the rows by request"
            )
        same = np.zeros(num_tokens, bool)
        same[1:] = (index[1:] == index[:-1]) & is_prompt[1:] & is_prompt[:-1]
        step = np.cumsum(~same) - 1
    step = given_integers("step", step, low=0, high=2**63 - 1)
    _check_length("step", step, num_tokens)
    if token_id is not None:
        token_id = given_integers("token_id", token_id)
        _check_length("token_id", token_id, num_tokens)
    return TokenTable.build(
        step=step,
        request=requests,
        position=position,
        phase=np.where(is_prompt, Phase.PREFILL, Phase.DECODE),
        domain=domain,
        token_id=token_id,
    )


def _check_positions(index: np.ndarray, position: np.ndarray) -> None:
    """Of each request they differ: a token has one place."""
    order = np.lexsort((position, index))
    same = (np.diff(index[order]) == 0) & (np.diff(position[order]) == 0)
    if same.any():
        at = order[np.flatnonzero(same)[0]]
        raise ValueError(
            f"position {int(position[at])} occurs twice in one request, expected each place of a request once: leave "
            "position out, or give request"
        )


def _check_length(name: str, values: Any, num_tokens: int) -> None:
    if np.ndim(values) != 1 or len(values) != num_tokens:
        raise ValueError(f"{name} has {np.size(values)} entries, expected one for each of the {num_tokens} tokens")
