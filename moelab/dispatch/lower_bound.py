"""lower_bound: what no assignment of a layer-step goes below, for those whose search was cut off.  Floor 1.

Jobs whose copies all lie in a set U of tiers keep U busy for their bytes over U's rate (Hall's theorem), and every job
takes its time on the fastest of its tiers. All sets up to ``MOST_SETS_OF`` tiers, beyond that single tiers and all
together. Does not know the best assignment, which may lie above.
"""

from __future__ import annotations

from moelab.dispatch.signature import compiled

MOST_SETS_OF = 8


@compiled()
def lower_bound(masks, sizes, slowness):
    """float64, in the unit of ``dispatch``'s loads; arguments as there."""
    num_tiers, best = len(slowness), 0.0
    for job in range(len(masks)):
        least = -1.0
        for tier in range(num_tiers):
            if masks[job] >> tier & 1 and (least < 0 or sizes[job] * slowness[tier] < least):
                least = sizes[job] * slowness[tier]
        best = max(best, least)
    everywhere = (1 << num_tiers) - 1
    is_small = num_tiers <= MOST_SETS_OF
    for index in range(1, everywhere + 1 if is_small else num_tiers + 2):
        union = index if is_small else (everywhere if index > num_tiers else 1 << (index - 1))
        inside, rate = 0, 0.0
        for tier in range(num_tiers):
            if union >> tier & 1:
                rate += 1 / slowness[tier]
        for job in range(len(masks)):
            if not masks[job] & ~union:
                inside += sizes[job]
        best = max(best, inside / rate)
    return best
