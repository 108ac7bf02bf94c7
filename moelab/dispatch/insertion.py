"""insertion: optimal assignment of jobs of one size to the tiers that hold copies of them.  Floor 1.

Jobs are inserted one by one, each on the least loaded of its tiers. Where that would raise the maximum, earlier jobs
move on to other copies (an augmenting path) so that the least loaded tier that can be reached takes one more. If even
that raises the maximum, all tiers in reach are full up to it with jobs that have no copy elsewhere, so no assignment
does better (Hall's theorem; optimal semi-matchings: Harvey, Ladner, Lovasz and Tamir 2003, here with unequal rates and
loads that stand before). Ties go to the tier with the lower number, a direct copy before a path. Does not know experts,
layers or time.
"""

from __future__ import annotations

from moelab.dispatch.signature import compiled


@compiled()
def insert_equal(masks, size, slowness, tier_of, load_bytes, reach, parent, via):
    """Assign every job whose ``tier_of`` is -1; all of them have ``size`` bytes and copies on two tiers or more.

    ``load_bytes`` int64 [N] holds the bytes of the jobs that had no choice, and all bytes afterwards. ``reach``,
    ``parent``, ``via`` int64 [N] are scratch: ``reach[v]`` is the union of the masks of movable jobs on tier v.
    """
    num_tiers = len(slowness)
    reach[:num_tiers] = 0
    most = 0.0
    for tier in range(num_tiers):
        most = max(most, load_bytes[tier] * slowness[tier])
    for job in range(len(masks)):
        if tier_of[job] >= 0:
            continue
        mask = masks[job]
        direct, least = _lightest(mask, size, slowness, load_bytes)
        target = direct
        if least > most:
            within = _closure(mask, reach, num_tiers)
            if within != mask:
                beyond, load = _lightest(within, size, slowness, load_bytes)
                if load < least:
                    target, least = beyond, load
            most = max(most, least)
        load_bytes[target] += size
        if target == direct:
            tier_of[job] = direct
            reach[direct] |= mask
        else:
            _find_path(masks, tier_of, mask, target, parent, via)
            tier_of[job] = _last_of_path(target, mask, parent)
            _move_jobs(tier_of, target, mask, parent, via)
            reach[:num_tiers] = 0
            for other in range(len(masks)):
                if tier_of[other] >= 0 and masks[other] & (masks[other] - 1):
                    reach[tier_of[other]] |= masks[other]


@compiled()
def _lightest(mask, size, slowness, load_bytes):
    """(tier of ``mask`` with the least time after one more job, that time)."""
    best, least = -1, 0.0
    for tier in range(len(slowness)):
        if mask >> tier & 1:
            time = (load_bytes[tier] + size) * slowness[tier]
            if best < 0 or time < least:
                best, least = tier, time
    return best, least


@compiled()
def _closure(mask, reach, num_tiers):
    """All tiers that can be reached from ``mask`` over movable jobs."""
    before = 0
    while mask != before:
        before = mask
        for tier in range(num_tiers):
            if mask >> tier & 1:
                mask |= reach[tier]
    return mask


@compiled()
def _find_path(masks, tier_of, start, target, parent, via):
    """Breadth first from the tiers of ``start`` to ``target``: ``via[w]`` is the job that moves from ``parent[w]``."""
    seen, frontier = start, start
    while not seen >> target & 1:
        following = 0
        for job in range(len(masks)):
            tier = tier_of[job]
            if tier < 0 or not frontier >> tier & 1 or not masks[job] & (masks[job] - 1):
                continue
            fresh = masks[job] & ~seen
            if fresh:
                for other in range(len(parent)):
                    if fresh >> other & 1:
                        parent[other], via[other] = tier, job
                seen |= fresh
                following |= fresh
        frontier = following


@compiled()
def _last_of_path(target, start, parent):
    """The tier of ``start`` from which the path begins."""
    tier = target
    while not start >> tier & 1:
        tier = parent[tier]
    return tier


@compiled()
def _move_jobs(tier_of, target, start, parent, via):
    """Every job of the path moves one tier on."""
    tier = target
    while not start >> tier & 1:
        tier_of[via[tier]] = tier
        tier = parent[tier]
