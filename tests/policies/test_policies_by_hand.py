"""Hand-worked traces, one for each policy; each also runs against its twin."""

from tests.policies.test_policies_equal_twins import assert_equal_to_twin, decisions
from tests.seeded_traces import trace_of_sets


def moves(sets, policy, *, num_experts=8, **options):
    """{request: "-evicted +admitted >prefetched"} of a run over one layer, and the run."""
    trace = trace_of_sets(sets, num_experts=num_experts)
    result = assert_equal_to_twin(trace, policy, **options)
    signs = {
        clock: " ".join([f"-{e}" for _, e in evicted] + [f"+{e}" for _, e in admitted] + [f">{e}" for _, e in ahead])
        for clock, (admitted, evicted, ahead) in decisions(result).items()
    }
    return signs, result


def test_lru():
    """{0,1}: both miss, both admitted, order 0 1. {2}: miss, 0 goes. {1,2}: both hit. {0}: miss, 1 goes
    (1 is older than 2). {0,3}: 0 hits, 3 misses, 2 goes.
    """
    made, result = moves([[0, 1], [2], [1, 2], [0], [0, 3]], "lru", slots_per_layer=2)
    assert made == {0: "+0 +1", 1: "-0 +2", 3: "-1 +0", 4: "-2 +3"}
    assert (result.hits, result.misses, result.uploads, result.evictions) == (3, 5, 5, 3)
    assert result.hit_rate_per_request == 3 / 8
    assert result.reads_per_layer_step == (5 + 5) / 5


def test_lru_bypasses_what_pins_leave_no_room_for():
    """One slot, set {0,1}: 0 is admitted, 1 bypassed; then {1,0}: 0 hits and is pinned, 1 bypassed again."""
    made, _ = moves([[0, 1], [1, 0], [1]], "lru", slots_per_layer=1)
    assert made == {0: "+0", 2: "-0 +1"}


def test_lru_overflow_holds_the_whole_set_until_the_next():
    """One slot with overflow: {0,1} both stay; {1} hits and 0 goes after the request."""
    made, _ = moves([[0, 1], [1], [0]], "lru", slots_per_layer=1, overflow=True)
    assert made == {0: "+0 +1", 1: "-0", 2: "-1 +0"}


def test_min_bypass():
    """One slot: keeps 0 over 1 at request 1 (0 returns sooner), swaps at request 3, never admits 2.

    0 admitted; 1 bypassed (3 > 2); 0 hits, never returns but is pinned; 1 replaces it; 1 hits; 2 bypassed.
    """
    made, result = moves([[0], [1], [0], [1], [1], [2]], "min_bypass", slots_per_layer=1)
    assert made == {0: "+0", 3: "-0 +1"}
    assert result.hits == 2


def test_static():
    made, result = moves([[0, 1], [1, 2], [1]], "static", slots_per_layer=1, resident=[(0, 1)])
    assert made == {}
    assert (result.hits, result.misses, result.uploads) == (3, 2, 0)
    assert result.hit_rate_per_request == 3 / 5


def test_fifo():
    """A hit does not save 0: it was admitted first. {0,3}: 2 goes, for 1 has gone and 0 is in use."""
    made, _ = moves([[0, 1], [0], [2], [0], [0, 3]], "fifo", slots_per_layer=2)
    assert made == {0: "+0 +1", 2: "-0 +2", 3: "-1 +0", 4: "-2 +3"}


def test_random():
    """Seed 0: x is 1, then 48271 (odd: place 1 of two goes), then 182605794 (even: place 0)."""
    made, _ = moves([[0, 1], [2], [3]], "random", slots_per_layer=2)
    assert 48271 * 48271 % (2**31 - 1) == 182605794
    assert made == {0: "+0 +1", 1: "-1 +2", 2: "-0 +3"}


def test_clock():
    """0 was used since it came: it goes to the back and 1 goes. Then 0 (bit taken) before 2."""
    made, _ = moves([[0, 1], [0], [2], [3]], "clock", slots_per_layer=2)
    assert made == {0: "+0 +1", 2: "-1 +2", 3: "-0 +3"}


def test_sieve():
    """Queue 0 1 2, used 0 1. {3}: the hand clears 0 and 1, takes 2, falls off. {4}: from the old end, 0 is unused now.
    Then the hand stands on 1: {0} takes 1, though 3 and 4 are newer and 1 was used once.
    """
    made, _ = moves([[0], [1], [2], [0, 1], [3], [4], [0]], "sieve", slots_per_layer=3)
    assert made == {0: "+0", 1: "+1", 2: "+2", 4: "-2 +3", 5: "-0 +4", 6: "-1 +0"}
