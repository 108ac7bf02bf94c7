"""branch_and_bound: jobs of unequal sizes to tiers, exact or the best found until the search is cut off.  Floor 1.

First LPT (Graham 1969: the largest job first, each to the tier that it leaves least loaded among those with a copy),
then depth first in the same order of jobs, cutting branches whose maximum, or whose average with everything that is
still to come, does not beat the best so far. The problem is NP-hard, so after ``MOST_VISITS`` the best found stands
and the answer says ``BOUNDED``. Does not know experts, layers or time.
"""

from __future__ import annotations

from moelab.dispatch.signature import BOUNDED, EXACT, compiled

MOST_VISITS = 100_000
"""Visits of the search after which it stops: about a millisecond."""

_MARGIN = 1 - 1e-12  # what is better by less is a rounding of float64 sums, not a better assignment


@compiled()
def search_unequal(masks, sizes, slowness, tier_of, load_bytes, order, next_tier, best_tier, rest_bytes, twins):
    """Assign every job whose ``tier_of`` is -1; returns ``EXACT`` or ``BOUNDED``.

    ``load_bytes`` int64 [N] holds the bytes of jobs that had no choice, and all bytes afterwards. Scratch, int64:
    ``order``, ``next_tier``, ``best_tier`` [M], ``rest_bytes`` [M + 1], ``twins`` [N].
    """
    num_tiers, num_free = len(slowness), 0
    for job in range(len(masks)):
        if tier_of[job] < 0:
            place = num_free
            while place > 0 and sizes[order[place - 1]] < sizes[job]:  # insertion sort, stable
                order[place] = order[place - 1]
                place -= 1
            order[place] = job
            num_free += 1
    rest_bytes[num_free] = 0
    for depth in range(num_free - 1, -1, -1):
        rest_bytes[depth] = rest_bytes[depth + 1] + sizes[order[depth]]
    rate, held = 0.0, 0
    for tier in range(num_tiers):
        rate += 1 / slowness[tier]
        held += load_bytes[tier]
    floor = (held + rest_bytes[0]) / rate  # no assignment has a maximum below the average
    best = _longest_first(masks, sizes, slowness, load_bytes, order, num_free, best_tier)
    _find_twins(masks, slowness, order, num_free, twins)
    depth, visits, answer = 0, 0, EXACT
    next_tier[0] = 0
    while depth >= 0 and best * _MARGIN > floor:
        if depth == num_free:
            best = _maximum(slowness, load_bytes)
            for place in range(num_free):
                best_tier[place] = tier_of[order[place]]
            depth -= 1
            continue
        job = order[depth]
        if tier_of[job] >= 0:  # coming back: take the job off again
            load_bytes[tier_of[job]] -= sizes[job]
            tier_of[job] = -1
        tier = next_tier[depth]
        while tier < num_tiers and (
            not masks[job] >> tier & 1
            or (load_bytes[tier] + sizes[job]) * slowness[tier] >= best * _MARGIN
            or _has_equal_twin(tier, load_bytes, twins)
        ):
            tier += 1
        if tier == num_tiers or not _fits(masks, sizes, slowness, load_bytes, order, depth, num_free, best):
            depth -= 1
            continue
        visits += 1
        if visits > MOST_VISITS:
            answer = BOUNDED
            break
        next_tier[depth] = tier + 1
        tier_of[job] = tier
        load_bytes[tier] += sizes[job]
        depth += 1
        if depth < num_free:
            next_tier[depth] = 0
    for place in range(num_free):
        job = order[place]
        if tier_of[job] >= 0:
            load_bytes[tier_of[job]] -= sizes[job]
        tier_of[job] = best_tier[place]
        load_bytes[tier_of[job]] += sizes[job]
    return answer


@compiled()
def _find_twins(masks, slowness, order, num_free, twins):
    """``twins[v]``: the lower tiers of v's rate that every free job can use exactly where it can use v."""
    for tier in range(len(slowness)):
        twins[tier] = 0
        for lower in range(tier):
            is_twin = slowness[lower] == slowness[tier]
            for place in range(num_free):
                mask = masks[order[place]]
                is_twin &= mask >> lower & 1 == mask >> tier & 1
            twins[tier] |= is_twin << lower


@compiled()
def _has_equal_twin(tier, load_bytes, twins):
    """Is a lower twin loaded alike? Then this tier's branch mirrors one that was searched."""
    found = False
    for lower in range(tier):
        found |= twins[tier] >> lower & 1 and load_bytes[lower] == load_bytes[tier]
    return found


@compiled()
def _longest_first(masks, sizes, slowness, load_bytes, order, num_free, best_tier):
    """Maximum of LPT; its tiers in ``best_tier``; ``load_bytes`` is left as it was."""
    for place in range(num_free):
        job = order[place]
        chosen, least = -1, 0.0
        for tier in range(len(slowness)):
            if masks[job] >> tier & 1:
                time = (load_bytes[tier] + sizes[job]) * slowness[tier]
                if chosen < 0 or time < least:
                    chosen, least = tier, time
        best_tier[place] = chosen
        load_bytes[chosen] += sizes[job]
    best = _maximum(slowness, load_bytes)
    for place in range(num_free):
        load_bytes[best_tier[place]] -= sizes[order[place]]
    return best


@compiled()
def _maximum(slowness, load_bytes):
    most = 0.0
    for tier in range(len(slowness)):
        most = max(most, load_bytes[tier] * slowness[tier])
    return most


@compiled()
def _fits(masks, sizes, slowness, load_bytes, order, depth, num_free, best):
    """Has the job at ``depth`` and each after it a tier where it alone stays below ``best``?"""
    for place in range(depth, num_free):
        job, has_room = order[place], False
        for tier in range(len(slowness)):
            if masks[job] >> tier & 1 and (load_bytes[tier] + sizes[job]) * slowness[tier] < best * _MARGIN:
                has_room = True
                break
        if not has_room:
            return False
    return True
