"""The divider against lists and loops: hits, late copies, unrouted slots, batches."""

import numpy as np
import pytest

from moelab.domain.trace import NO_EXPERT
from moelab.engine.fast_tier.divider import Divider


class Tickets:
    """Of a copy thread: a copy is late until somebody waits for it."""

    def __init__(self, draw, num_slots):
        self.asked = draw.integers(1, 5, num_slots)
        self.arrived = np.where(draw.random(num_slots) < 0.6, self.asked, self.asked - 1)

    def wait(self, slot):
        assert self.arrived[slot] != self.asked[slot], "nothing to wait for"
        self.arrived[slot] = self.asked[slot]


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_is_what_loops_find(seed, wait):
    draw = np.random.default_rng(seed)
    num_experts, tokens, top_k = int(draw.integers(3, 40)), int(draw.integers(1, 7)), 3
    divider = Divider(num_experts)
    for _ in range(3):  # its buffers are used again
        ids = np.argsort(draw.random((tokens, num_experts)), axis=1)[:, :top_k].astype(np.int32)
        ids[draw.random(ids.shape) < 0.2] = NO_EXPERT
        slots = draw.permutation(num_experts)
        slot_of_expert = np.where(draw.random(num_experts) < 0.5, slots, -1).astype(np.int32)
        tickets = Tickets(draw, num_experts)
        used = draw.permutation(np.unique(ids[ids != NO_EXPERT])).astype(np.int32)
        late = [e for e in used if slot_of_expert[e] >= 0 and tickets.arrived[slots[e]] != tickets.asked[slots[e]]]
        held = [e for e in used if slot_of_expert[e] >= 0]
        served = sorted(held if wait else set(held) - set(late))
        got = divider.divide(used, slot_of_expert, tickets, ids, wait=wait)
        assert got.experts == served
        assert got.slots == [slots[e] for e in served]
        assert (got.num_held, got.num_late) == (len(held), len(late))
        assert got.num_routings == (ids != NO_EXPERT).sum()
        assert got.num_routed_hits == np.isin(ids, held).sum()
        np.testing.assert_array_equal(got.home_ids, np.where(np.isin(ids, served), NO_EXPERT, ids))
