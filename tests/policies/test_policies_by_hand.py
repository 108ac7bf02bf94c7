"""Hand-worked traces, one for each policy; each also runs against its twin."""

import numpy as np

from moelab.domain.trace import Phase, TokenTable, Trace
from moelab.policies import POLICIES
from tests.policies.test_policies_equal_twins import assert_equal_to_twin, decisions
from tests.seeded_traces import trace_of_sets


def moves(sets, policy, *, num_layers=1, num_prefill=0, stale=None, request=None, **options):
    """{request: "-evicted +admitted >prefetched"} of a run, and the run.

    The first sets are tokens of one prefill step.
    """
    trace = trace_of_sets(sets, num_layers=num_layers, num_experts=8)
    if num_prefill:
        step = np.maximum(0, np.arange(len(sets)) - num_prefill + 1)
        phase = np.where(np.arange(len(sets)) < num_prefill, Phase.PREFILL, Phase.DECODE)
        table = TokenTable.build(step=step, request=0, position=np.arange(len(sets)), phase=phase)
        trace = Trace(trace.header, trace.experts, trace.gate_weights, table)
    if request is not None:  # number of each token's request
        at = np.arange(len(request))
        table = TokenTable.build(step=at, request=np.array(request), position=at, phase=Phase.DECODE)
        trace = Trace(trace.header, trace.experts, trace.gate_weights, table)
    if stale is not None:  # [T][L] one expert each
        trace.extras["stale_gate_experts"] = np.array(stale, np.uint16)[:, :, None]
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


def test_min_demand():
    """One slot: every miss comes in, whoever returns. {0,1}: of the two that miss, 1 returns sooner and fits.

    {1,2}: 1 hits and is pinned, 2 stays outside. {0}: 1 goes although it returns sooner.
    """
    made, result = moves([[0, 1], [1, 2], [0], [1], [0]], "min_demand", slots_per_layer=1)
    assert made == {0: "+1", 2: "-1 +0", 3: "-0 +1", 4: "-1 +0"}
    assert (result.hits, result.misses, result.uploads) == (1, 6, 4)


def test_min_demand_evicts_the_farthest():
    """Two slots: 2 comes in for 1 (returns at 5, 0 at 3); at 4 the 2 that never returns goes, at 5 the 3."""
    made, result = moves([[0], [1], [2], [0], [3], [1]], "min_demand", slots_per_layer=2)
    assert made == {0: "+0", 1: "+1", 2: "-1 +2", 4: "-2 +3", 5: "-3 +1"}
    assert result.hits == 1


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


def test_slru():
    """Protected holds 1 of 3. Request 2 protects 0; {3} takes 1 from probation; {2} protects 2, which pushes 0 back
    behind 3 on probation; {4} takes 3.
    """
    made, _ = moves([[0], [1], [0], [2], [3], [2], [4]], "slru", slots_per_layer=3, parameters={"protected": 0.5})
    assert made == {0: "+0", 1: "+1", 3: "+2", 4: "-1 +3", 6: "-3 +4"}


def test_s3_fifo():
    """Small holds 2 of 4: 0 1 in small, then 2 3 in main. {0} uses 0. {4}: 0 moves to main, 1 becomes a ghost. {1}: the
    ghost goes to main, which is over its share: its oldest, 2, leaves.
    """
    parameters = {"small": 0.5, "ghosts": 0.5, "promote_after": 1}
    made, _ = moves([[0], [1], [2], [3], [0], [4], [1]], "s3_fifo", slots_per_layer=4, parameters=parameters)
    assert made == {0: "+0", 1: "+1", 2: "+2", 3: "+3", 5: "-1 +4", 6: "-2 +1"}


def test_arc():
    """0 is used again: T2. {2} takes 1 from T1 (1 > p = 0), a ghost. {1} is that ghost: p = 1.

    So T1 keeps 2 and T2's 0 goes.
    """
    made, _ = moves([[0], [1], [0], [2], [1]], "arc", slots_per_layer=2)
    assert made == {0: "+0", 1: "+1", 3: "-1 +2", 4: "-0 +1"}


def test_w_tinylfu():
    """Window 1, protected 1. Full with 2 in the window, 1 on probation, 0 protected. {3}.

    2 (used once) does not beat 1 and goes; {2}: 3 goes likewise; {4}: 2, used twice by now, beats 1.
    """
    made, _ = moves([[0], [1], [0], [2], [3], [2], [4]], "w_tinylfu", slots_per_layer=3)
    assert made == {0: "+0", 1: "+1", 3: "+2", 4: "-2 +3", 5: "-3 +2", 6: "-1 +4"}


def test_lfu():
    """{2}: 1 was used once like 2, but 0 twice. {1}: its count went on (2), 2 has 1."""
    made, _ = moves([[0, 1], [0], [2], [1]], "lfu", slots_per_layer=2)
    assert made == {0: "+0 +1", 2: "-1 +2", 3: "-2 +1"}


def test_ema_lfu():
    """0 used in passes 0, 1, 2 is worth 1.75, 0.22 in pass 5; 1 used in 3 and 4 is worth 0.75 then.

    0 goes, against LFU.
    """
    sets = [[0], [0], [0], [1], [1], [2]]
    made, _ = moves(sets, "ema_lfu", slots_per_layer=2, parameters={"decay": 0.5})
    assert made == {0: "+0", 3: "+1", 5: "-0 +2"}
    assert moves(sets, "lfu", slots_per_layer=2)[0] == {0: "+0", 3: "+1", 5: "-1 +2"}


def test_lfru():
    """In pass 5: 0 is worth 3 / (1 + 3), 1 is worth 2 / (1 + 1)."""
    made, _ = moves([[0], [0], [0], [1], [1], [2]], "lfru", slots_per_layer=2)
    assert made == {0: "+0", 3: "+1", 5: "-0 +2"}


def test_gdsf():
    """0 is worth 2, 1 is worth 1: 1 goes and the floor is 1, so 2 is worth 2. {3}: 0 and 2 are equal.

    0 was used longer ago.
    """
    made, _ = moves([[0], [0], [1], [2], [3]], "gdsf", slots_per_layer=2)
    assert made == {0: "+0", 2: "+1", 3: "-1 +2", 4: "-0 +3"}


def test_gdsf_as_libcachesim_has_it():
    """One slot: 0 is worth 2. {1} is worth 1, less: it is turned away, and the floor is 1. {1} is worth 2, as 0, and
    younger: 0 goes, the floor is 2. {2} is worth 3, above 1.
    """
    parameters = {"floor_before": 1, "hysteresis": -1e-9}
    made, _ = moves([[0], [0], [1], [1], [2]], "gdsf", slots_per_layer=1, parameters=parameters)
    assert made == {0: "+0", 3: "-0 +1", 4: "-1 +2"}


def test_mrs():
    """Gate weights are 1. {2}: S is 0.375, 0.125, 0.5: 1 goes. {1}: 0.1875, 0.5625, 0.25: 0 goes."""
    made, _ = moves([[0, 1], [0], [2], [1]], "mrs", slots_per_layer=2)
    assert made == {0: "+0 +1", 2: "-1 +2", 3: "-0 +1"}


def test_eam():
    """A new request forgets 0, used three times: it is worth 0 when {2} comes, 1 is worth 1/2 x 1/5. LFU takes 1.

    Two layers, one pool: in pass 2 expert 0 of layer 0 is worth 1 x 2/3 x 2/3, expert 1 of layer 1 1/2 x 1 x 1.
    """
    sets = [[0], [0], [0], [1], [2]]
    made, _ = moves(sets, "eam", slots_per_layer=2, request=[0, 0, 0, 1, 1])
    assert made == {0: "+0", 3: "+1", 4: "-0 +2"}
    assert moves(sets, "eam", slots_per_layer=2)[0] == {0: "+0", 3: "+1", 4: "-1 +2"}  # one request
    made, _ = moves([[0], [1], [0], [1], [2], [1]], "eam", num_layers=2, slots=2)
    assert made == {0: "+0", 1: "+1", 4: "-0 +2"}


def test_least_stale():
    """Two slots for three layers: at layer 2 nobody is stale, and layer 1, just passed.

    Is needed last. So layer 0 hits.
    """
    made, result = moves([[0], [1], [2], [0], [3], [4]], "least_stale", num_layers=3, slots=2)
    assert made == {0: "+0", 1: "+1", 2: "-1 +2", 4: "-2 +3", 5: "-3 +4"}
    assert result.hits == 1
    assert moves([[0], [1], [2], [0], [3], [4]], "lru", num_layers=3, slots=2)[1].hits == 0


def test_second_touch():
    """Window 2: 0 comes in at its second use, two passes after the first. 1 is too late at request 4, not at 5."""
    made, _ = moves([[0], [1], [0], [0], [1], [1]], "second_touch", slots_per_layer=1, parameters={"window": 2})
    assert made == {2: "+0", 5: "-0 +1"}


def test_kt_dynamic():
    """The prefill routes 1 three times, 2 twice, 0 once: {1, 2} shall replace {0, 3}. 3 is in use at request 1."""
    sets = [[0, 1], [1, 2], [1, 2], [3], [1]]
    made, _ = moves(sets, "kt_dynamic", num_prefill=3, slots_per_layer=2, resident=[(0, 0), (0, 3)])
    assert made == {1: "-0 >1", 2: "-3 >2"}


def test_admit_ema_lfu():
    """h = 0.2: at request 1 expert 1 is worth 1, not above 1.2 x 0.99; at request 2 it is worth 1.99."""
    made, _ = moves([[0], [1], [1]], "admit_ema_lfu", slots_per_layer=1)
    assert made == {0: "+0", 2: "-0 +1"}


def test_admit_lfru():
    """Pass 3: 1 against 1.2 x 3 / 2. Pass 4: 2 against 1.2 x 3 / 3."""
    made, _ = moves([[0], [0], [0], [1], [1]], "admit_lfru", slots_per_layer=1)
    assert made == {0: "+0", 4: "-0 +1"}


def test_admit_mrs():
    """Pass 3: 0.5 against 1.2 x 0.4375. Pass 4: 0.75 against 1.2 x 0.21875."""
    made, _ = moves([[0], [0], [0], [1], [1]], "admit_mrs", slots_per_layer=1)
    assert made == {0: "+0", 4: "-0 +1"}


def test_prefetch_previous():
    """The budget lets only 1 of {1, 2} in; a pass later 2 is copied while layer 0 runs, and both hit."""
    sets = [[0], [1, 2], [0], [1, 2]]
    made, result = moves(sets, "prefetch_previous", num_layers=2, slots_per_layer=2, upload_budget=1)
    assert made == {0: "+0", 1: "+1", 2: ">2"}
    assert (result.hits, result.uploads, result.prefetches) == (3, 2, 1)
    assert result.reads_per_layer_step == (3 + 2 + 1) / 4


def test_prefetch_stale_gate():
    """The gate names 1, then 2, for layer 1, rightly: only the first use of 0 misses."""
    made, result = moves(
        [[0], [1], [0], [2]], "prefetch_stale_gate", num_layers=2, slots_per_layer=1, stale=[[7, 1], [7, 2]]
    )
    assert made == {0: "+0 >1", 2: "-1 >2"}
    assert result.misses == 1


def test_prefetch_markov():
    """0 was followed by 1 and by 2: equal scores, the lower expert is copied, and hits."""
    made, result = moves(
        [[0], [1], [0], [2], [0], [1]], "prefetch_markov", num_layers=2, slots_per_layer=1, parameters={"width": 1}
    )
    assert made == {0: "+0", 1: "+1", 3: "-1 +2", 4: "-2 >1"}
    assert result.hits == 3


def test_prefetch_eam():
    """Requests A and B used 1 and 2 in layer 1. C's first token knows nothing; at its second C looks like B, whose 2 is
    in already. D begins with 1 and looks like A: 1 is in. After 3 has taken its place D still looks like A (cosine
    1 / sqrt 2; B and C: 0): 1 is copied back while layer 0 runs, and hits.
    """
    sets = [[0], [1], [0], [2], [0], [2], [0], [2], [0], [1], [0], [3], [0], [1]]
    request = [0, 1, 2, 2, 3, 3, 3]
    made, result = moves(
        sets, "prefetch_eam", num_layers=2, slots_per_layer=1, request=request, parameters={"width": 1}
    )
    assert made == {0: "+0", 1: "+1", 3: "-1 +2", 9: "-2 +1", 11: "-1 +3", 12: "-3 >1"}
    assert (result.prefetches, result.misses) == (1, 5)


def test_every_policy_has_a_trace_here():
    assert {f"test_{name}" for name in POLICIES} <= set(globals())
