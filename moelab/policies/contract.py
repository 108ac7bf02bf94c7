"""The contract: checks one decision of a policy and applies it to residency and room.  Floor 1.

The only code that changes ``resident``, ``free_slots`` and ``free_bytes``; the simulator's loop and
the live engine both call it after each ``decide``. Order: evict, admit, prefetch. Does not know
which policy decided. A broken rule ends the
run: its number is returned, and residency is left as far as it was applied.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numba import njit

from moelab.policies.signature import ADMIT, EVICT, FLAG_OVERFLOW, PREFETCH, pool_of
from moelab.source_stamp import stamped

RULES: dict[int, str] = {
    1: "num_out is negative or larger than its output array",
    2: "it evicted an expert that is on no fast tier",
    3: "it evicted an expert that this request uses (pinned while in use)",
    4: "it evicted an expert that the plan pinned",
    5: "it admitted an expert that this request does not use",
    6: "it admitted or prefetched an expert that is resident already",
    7: "it named a fast tier that does not exist",
    8: "the residents exceed the capacity",
    9: "it named a layer or expert that does not exist",
    10: "its admits and prefetches exceed the upload budget",
}
"""Number and text of each rule; 0 is no error."""


_IN_USE = 64  # bit that marks the experts of the request in ``resident`` while a decision is checked


class PolicyContractError(ValueError):
    """A policy answered with something it may not do."""


def contract_error(policy: str, rule: int, where: np.ndarray, step: int) -> PolicyContractError:
    """The exception for a rule; ``where`` int64 [5] is (clock, request's layer, layer, expert, tier)."""
    clock, of_layer, layer, expert, tier = (int(v) for v in where)
    named = "" if layer < 0 else f": layer {layer} expert {expert}" + (f" tier {tier}" if tier >= 0 else "")
    return PolicyContractError(
        f"policy {policy} broke the contract at request {clock} (step {step}, layer {of_layer}){named}: "
        f"{RULES[rule]}; correct the policy's decide function"
    )


def source_stamp() -> int:
    """Checksum of this file: callers that compile it in use the number in the key of their disk cache."""
    return zlib.crc32(Path(__file__).read_bytes()) ^ zlib.crc32(Path(__file__).with_name("signature.py").read_bytes())


@njit(cache=True, forceinline=True)
@stamped
def _take_off(of_layer, expert, resident, pinned, expert_bytes, free_slots, free_bytes):
    """Evict one expert; return the broken rule or 0."""
    if of_layer < 0 or of_layer >= resident.shape[0] or expert < 0 or expert >= resident.shape[1]:
        return 9
    value = np.int64(resident[of_layer, expert])
    tier = (value & ~_IN_USE) - 1
    if tier < 0:
        return 2
    if value & _IN_USE:
        return 3
    if pinned[of_layer, expert]:
        return 4
    pool = pool_of(of_layer, free_slots)
    resident[of_layer, expert] = 0
    free_slots[tier, pool] += 1
    free_bytes[tier, pool] += expert_bytes[tier + 1, of_layer]
    return 0


@njit(cache=True, forceinline=True)
@stamped
def _put_on(of_layer, expert, tier, must_be_used, resident, expert_bytes, free_slots, free_bytes):
    """Admit or prefetch one expert; return the broken rule or 0."""
    if of_layer < 0 or of_layer >= resident.shape[0] or expert < 0 or expert >= resident.shape[1]:
        return 9
    if tier < 0 or tier >= free_slots.shape[0]:
        return 7
    value = np.int64(resident[of_layer, expert])
    if must_be_used and not value & _IN_USE:
        return 5
    if value & ~_IN_USE:
        return 6
    pool = pool_of(of_layer, free_slots)
    resident[of_layer, expert] = value | (tier + 1)
    free_slots[tier, pool] -= 1
    free_bytes[tier, pool] -= expert_bytes[tier + 1, of_layer]
    return 0


@njit(cache=True, forceinline=True)
@stamped
def apply_decision(
    clock, layer, flags, experts, resident, pinned, expert_bytes, free_slots, free_bytes, upload_budget,
    admit, evict, prefetch, num_out, where,
):  # fmt: skip
    """Apply one decision; return 0, or the number of the broken rule with its place in ``where``.

    Arguments are those of ``signature`` with ``pinned`` bool [L, E] and ``where`` int64 [5].
    """
    num_admit, num_evict, num_prefetch = num_out[ADMIT], num_out[EVICT], num_out[PREFETCH]
    where[0] = clock
    where[1] = layer
    where[2] = -1
    where[4] = -1
    if min(num_admit, num_evict, num_prefetch) < 0:
        return 1
    if num_admit > len(admit) or num_evict > len(evict) or num_prefetch > len(prefetch):
        return 1
    if num_admit + num_prefetch > upload_budget:
        return 10
    for i in range(len(experts)):
        resident[layer, experts[i]] |= _IN_USE
    rule = 0
    for i in range(num_evict):
        of_layer, expert = np.int64(evict[i, 0]), np.int64(evict[i, 1])
        rule = _take_off(of_layer, expert, resident, pinned, expert_bytes, free_slots, free_bytes)
        if rule != 0:
            where[2] = of_layer
            where[3] = expert
            break
    for i in range(num_admit + num_prefetch):
        if rule != 0:
            break
        is_admit = i < num_admit
        if is_admit:
            of_layer, expert, tier = np.int64(layer), np.int64(admit[i, 0]), np.int64(admit[i, 1])
        else:
            j = i - num_admit
            of_layer, expert, tier = np.int64(prefetch[j, 0]), np.int64(prefetch[j, 1]), np.int64(prefetch[j, 2])
        rule = _put_on(of_layer, expert, tier, is_admit, resident, expert_bytes, free_slots, free_bytes)
        if rule == 0 and of_layer != layer:
            pool = pool_of(of_layer, free_slots)
            if free_slots[tier, pool] < 0 or free_bytes[tier, pool] < 0:
                rule = 8
        if rule != 0:
            where[2] = of_layer
            where[3] = expert
            where[4] = tier
    if rule == 0:
        pool = pool_of(layer, free_slots)
        for each in range(free_slots.shape[0]):
            if free_slots[each, pool] < 0 or free_bytes[each, pool] < 0:
                excused = flags & FLAG_OVERFLOW and _only_used(each, free_slots, layer, resident, pinned)
                if not excused:
                    where[4] = each
                    rule = 8
    for i in range(len(experts)):
        resident[layer, experts[i]] &= ~_IN_USE
    return rule


@njit(cache=True)
@stamped
def _only_used(tier, free_slots, layer, resident, pinned):
    """Does the overflowing pool of this layer hold nothing but experts of this request (and pinned ones)?"""
    first, last = (layer, layer + 1) if free_slots.shape[1] > 1 else (0, resident.shape[0])
    for of_layer in range(first, last):
        for expert in range(resident.shape[1]):
            if resident[of_layer, expert] == tier + 1 and not pinned[of_layer, expert]:
                return False
    return True
