"""packed_counts: what a layer-step holds in one integer: a move is an addition, the maximum some shifts.  Floor 3.

Two tiers: four counts of 16 bits: experts on tier 0 alone, on tier 1 alone, on both, cut. Three and four nodes of one
rate: a count of 8 or 4 bits for every mask; by Hall's theorem the maximum is that over sets U of nodes of the experts
whose copies all lie in U, over the size of U, rounded up, and the sums over subsets take one shift and one addition for
each node, all sets at once. Anything else is not packed. Does not know moves.
"""

from __future__ import annotations

import numpy as np

from moelab.planner.compiled import compiled
from moelab.planner.step_maximum import CUT, TierTimes, two_maximum

FIELD_OF_TWO = 16
_FIELD_OF_NODES = {3: 8, 4: 4}
NOT_PACKED = 0


def field_bits(masks: np.ndarray, times: TierTimes, largest: int) -> int:
    """Bits of a count for layer-steps of up to ``largest`` experts, ``NOT_PACKED`` where they do not fit."""
    num_tiers = times.num_tiers
    if num_tiers == 2:
        return FIELD_OF_TWO if largest < 1 << FIELD_OF_TWO - 1 else NOT_PACKED
    field = _FIELD_OF_NODES.get(num_tiers, NOT_PACKED)
    is_plain = times.num_nodes == num_tiers and np.ptp(times.slowness) == 0 and not (masks == CUT).any()
    return field if is_plain and largest < 1 << field else NOT_PACKED


def hall_tables(num_tiers: int, field: int) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [N]: fields whose mask lacks the tier; float64 [2**N, 2**field]: count over the size of a set, up)."""
    if num_tiers == 2 or field == NOT_PACKED:
        return np.zeros(1, np.int64), np.zeros((1, 1))
    low, sets = (1 << field) - 1, 1 << num_tiers
    keep = [sum(low << field * mask for mask in range(sets) if not mask >> tier & 1) for tier in range(num_tiers)]
    sizes = np.maximum(np.bitwise_count(np.arange(sets)), 1)
    return np.array(keep, np.uint64).view(np.int64), np.ceil(np.arange(low + 1) / sizes[:, None])


@compiled
def unit_of(mask, field):
    """What one expert of this mask adds."""
    return 1 << FIELD_OF_TWO * ((mask - 1) & 3) if field == FIELD_OF_TWO else 1 << field * mask


@compiled
def hall_maximum(packed, field, keep, ceil_of):
    """Experts on the fullest node, every replica chosen best."""
    num_tiers, low = len(keep), (1 << field) - 1
    for tier in range(num_tiers):
        packed += (packed & keep[tier]) << (field << tier)
    most = 0.0
    for union in range(1, 1 << num_tiers):
        most = max(most, ceil_of[union, packed >> field * union & low])
    return most


@compiled
def two_even_maximum(packed, piece):
    """Two equal nodes: single copies, or half of all rounded up; ``piece`` of an expert for each that is cut."""
    low = (1 << FIELD_OF_TWO) - 1
    on_0, on_1 = packed & low, packed >> FIELD_OF_TWO & low
    on_both, num_cut = packed >> 2 * FIELD_OF_TWO & low, packed >> 3 * FIELD_OF_TWO
    return max(max(on_0, on_1), (on_0 + on_1 + on_both + 1) >> 1) + piece * num_cut


@compiled
def two_uneven_maximum(packed, piece_sizes, slowness, barrier):
    """Any two tiers, in the unit of ``step_maxima``."""
    low = (1 << FIELD_OF_TWO) - 1
    return two_maximum(
        packed & low, packed >> FIELD_OF_TWO & low, packed >> 2 * FIELD_OF_TWO & low, packed >> 3 * FIELD_OF_TWO,
        piece_sizes, slowness, barrier,
    )  # fmt: skip
