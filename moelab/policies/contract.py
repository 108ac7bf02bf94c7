"""The contract: checks one decision of a policy and applies it to residency and room.  Floor 1.

The only code that changes ``resident``, ``free_slots`` and ``free_bytes``; the simulator's loop and
the live engine both call ``open_request``, ``decide``, ``close_request`` for each request. Order: evict, admit,
prefetch. Does not know which policy decided. A broken rule ends the run: its number is returned, and
residency is left as far as it was applied.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled, inlined
from moelab.policies.signature import ADMIT, EVICT, FLAG_OVERFLOW, IN_USE, PREFETCH, pool_of

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


@inlined
def open_request(view, hits, misses):
    """Mark what the request uses and split it into hits and misses; ``hits`` and ``misses`` int32 [E] are buffers.

    ``view.experts`` and ``view.layer`` are set; leaves ``view.hits``, ``view.misses`` and an empty answer.
    """
    experts, used = view.experts, view.resident[at(view.layer)]
    num_hits = 0
    num_misses = 0
    for i in range(len(experts)):  # no branch: nobody can guess which uses hit
        value = used[at(experts[at(i)])]
        used[at(experts[at(i)])] = value | IN_USE
        hits[at(num_hits)] = i
        misses[at(num_misses)] = i
        num_hits += value != 0
        num_misses += value == 0
    view.hits = hits[:num_hits]
    view.misses = misses[:num_misses]
    num_out = view.num_out
    num_out[ADMIT] = 0
    num_out[EVICT] = 0
    num_out[PREFETCH] = 0


@inlined
def close_request(view, where):
    """Apply the answer and take the marks away; return 0, or the number of the broken rule.

    ``where`` int64 [5] gets the place of a broken rule. Residency is then left as far as it was applied.
    """
    num_out, layer, experts = view.num_out, view.layer, view.experts
    used = view.resident[at(layer)]
    num_admit, num_evict, num_prefetch = num_out[ADMIT], num_out[EVICT], num_out[PREFETCH]
    rule = 0
    if num_admit != 0 or num_evict != 0 or num_prefetch != 0 or view.flags & FLAG_OVERFLOW:
        rule = _apply(view, num_admit, num_evict, num_prefetch, where)
    for i in range(len(experts)):
        used[at(experts[at(i)])] &= ~IN_USE
    return rule


@compiled
def _apply(view, num_admit, num_evict, num_prefetch, where):
    """Evict, admit, prefetch; return 0 or the broken rule with its place in ``where``."""
    resident, pinned, expert_bytes = view.resident, view.pinned, view.expert_bytes
    free_slots, free_bytes, layer = view.free_slots, view.free_bytes, view.layer
    admit, evict, prefetch = view.admit, view.evict, view.prefetch
    num_layers, num_experts = resident.shape
    num_tiers, num_pools = free_slots.shape
    pool = pool_of(layer, free_slots)
    gained_slots, gained_bytes = 0, 0  # tier 0 in this request's pool: mostly the only place that changes
    rule = 0
    is_negative = min(num_admit, num_evict, num_prefetch) < 0
    if is_negative or num_admit > len(admit) or num_evict > len(evict) or num_prefetch > len(prefetch):
        rule = 1
    elif num_admit + num_prefetch > view.upload_budget:
        rule = 10
    if rule != 0:
        return _note(where, rule, view.clock, layer, -1, -1, -1)
    for i in range(num_evict):
        of_layer, expert = np.int64(evict[at(i), 0]), np.int64(evict[at(i), 1])
        if of_layer < 0 or of_layer >= num_layers or expert < 0 or expert >= num_experts:
            return _note(where, 9, view.clock, layer, of_layer, expert, -1)
        value = np.int64(resident[at(of_layer), at(expert)])
        if value <= 0 or value >= IN_USE or pinned[at(of_layer), at(expert)]:
            rule = 2 if value & ~IN_USE == 0 else 3 if value >= IN_USE else 4
            return _note(where, rule, view.clock, layer, of_layer, expert, -1)
        resident[at(of_layer), at(expert)] = 0
        of_pool = of_layer if num_pools > 1 else 0
        if of_pool == pool and value == 1:
            gained_slots += 1
            gained_bytes += expert_bytes[1, of_layer]
        else:
            free_slots[value - 1, of_pool] += 1
            free_bytes[value - 1, of_pool] += expert_bytes[value, of_layer]
    for i in range(num_admit):
        expert, tier = np.int64(admit[at(i), 0]), np.int64(admit[at(i), 1])
        if expert < 0 or expert >= num_experts:
            return _note(where, 9, view.clock, layer, layer, expert, tier)
        if tier < 0 or tier >= num_tiers:
            return _note(where, 7, view.clock, layer, layer, expert, tier)
        value = np.int64(resident[at(layer), at(expert)])
        if value != IN_USE:
            rule = 6 if value & ~IN_USE else 5
            return _note(where, rule, view.clock, layer, layer, expert, tier)
        resident[at(layer), at(expert)] = IN_USE | (tier + 1)
        if tier == 0:
            gained_slots -= 1
            gained_bytes -= expert_bytes[1, layer]
        else:
            free_slots[tier, pool] -= 1
            free_bytes[tier, pool] -= expert_bytes[tier + 1, layer]
    if num_tiers > 0:
        free_slots[0, pool] += gained_slots
        free_bytes[0, pool] += gained_bytes
    for i in range(num_prefetch):
        row = prefetch[at(i)]
        of_layer, expert, tier = np.int64(row[0]), np.int64(row[1]), np.int64(row[2])
        if of_layer < 0 or of_layer >= num_layers or expert < 0 or expert >= num_experts:
            return _note(where, 9, view.clock, layer, of_layer, expert, tier)
        if tier < 0 or tier >= num_tiers:
            return _note(where, 7, view.clock, layer, of_layer, expert, tier)
        value = np.int64(resident[at(of_layer), at(expert)])
        if value & ~IN_USE:
            return _note(where, 6, view.clock, layer, of_layer, expert, tier)
        resident[at(of_layer), at(expert)] = value | (tier + 1)
        of_pool = of_layer if num_pools > 1 else 0
        free_slots[tier, of_pool] -= 1
        free_bytes[tier, of_pool] -= expert_bytes[tier + 1, of_layer]
        if of_layer != layer and (free_slots[tier, of_pool] < 0 or free_bytes[tier, of_pool] < 0):
            return _note(where, 8, view.clock, layer, of_layer, expert, tier)
    for each in range(num_tiers):
        if free_slots[each, pool] < 0 or free_bytes[each, pool] < 0:
            if view.flags & FLAG_OVERFLOW and _only_used(each, free_slots, layer, resident, pinned):
                continue
            return _note(where, 8, view.clock, layer, -1, -1, each)
    return 0


@compiled
def _note(where, rule, clock, layer, of_layer, expert, tier):
    """Write down where a rule broke; return the rule."""
    where[0] = clock
    where[1] = layer
    where[2] = of_layer
    where[3] = expert
    where[4] = tier
    return rule


@compiled
def _only_used(tier, free_slots, layer, resident, pinned):
    """Does the overflowing pool of this layer hold nothing but experts of this request (and pinned ones)?"""
    first, last = (layer, layer + 1) if free_slots.shape[1] > 1 else (0, resident.shape[0])
    for of_layer in range(first, last):
        for expert in range(resident.shape[1]):
            if resident[at(of_layer), at(expert)] == tier + 1 and not pinned[at(of_layer), at(expert)]:
                return False
    return True
