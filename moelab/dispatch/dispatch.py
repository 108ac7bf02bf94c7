"""dispatch: which copy serves which active expert of one layer-step, so that the slowest tier is as fast as possible.

Floor 1. Jobs with one copy are assigned first; then, where all others have one size, ``insertion`` is optimal for any
copies, rates and numbers of tiers; jobs of unequal sizes take LPT and then an exact search that may be cut off.
Deterministic: the same arguments give the same answer. Does not know layers, policies, routing or wall time.
"""

from __future__ import annotations

from moelab.compiled_on_use import on_use
from moelab.dispatch.branch_and_bound import search_unequal
from moelab.dispatch.insertion import insert_equal
from moelab.dispatch.signature import EXACT, NO_COPY, SIGNATURE


def scratch_length(num_jobs: int, num_tiers: int) -> int:
    """Length of the scratch array of ``dispatch``."""
    return 5 * num_tiers + 4 * num_jobs + 1


@on_use(SIGNATURE, _nrt=False)
def dispatch(masks, sizes, slowness, tier_of, loads, scratch):
    """Fill ``tier_of`` and ``loads``; returns ``EXACT``, ``BOUNDED`` or ``NO_COPY``. Fields: ``signature.py``."""
    num_jobs, num_tiers = len(masks), len(slowness)
    load_bytes = scratch[:num_tiers]
    load_bytes[:] = 0
    free_size, num_free, is_equal = 0, 0, True
    for job in range(num_jobs):
        mask = masks[job]
        if mask <= 0 or mask >> num_tiers:
            return NO_COPY
        if mask & (mask - 1):
            tier_of[job] = -1
            is_equal &= num_free == 0 or sizes[job] == free_size
            free_size = sizes[job]
            num_free += 1
        else:
            tier = 0
            while not mask >> tier & 1:
                tier += 1
            tier_of[job] = tier
            load_bytes[tier] += sizes[job]
    answer = EXACT
    if num_free:
        rest = scratch[num_tiers:]
        if is_equal:
            reach, parent = rest[:num_tiers], rest[num_tiers : 2 * num_tiers]
            via = rest[2 * num_tiers : 3 * num_tiers]
            insert_equal(masks, free_size, slowness, tier_of, load_bytes, reach, parent, via)
        else:
            rest_bytes, twins = rest[3 * num_jobs : 4 * num_jobs + 1], rest[4 * num_jobs + 1 :]
            order, next_tier = rest[:num_jobs], rest[num_jobs : 2 * num_jobs]
            best_tier = rest[2 * num_jobs : 3 * num_jobs]
            answer = search_unequal(
                masks, sizes, slowness, tier_of, load_bytes, order, next_tier, best_tier, rest_bytes, twins
            )
    for tier in range(num_tiers):
        loads[tier] = load_bytes[tier] * slowness[tier]
    return answer
