"""Single-expert streams in one global pool: hit counts equal libcachesim's where the definitions coincide.

They coincide for the policies of ``SAME``. ``lfu`` only with ``forget`` 1: libcachesim forgets an object's uses
when it is evicted, our default goes on counting. ``s3_fifo`` from 20 slots on: libcachesim admits nothing where
the small queue is as small as one object. ``gdsf`` with the two parameters that make it insert before it evicts:
libcachesim weighs a newcomer on the floor before its eviction, and lets it be the victim itself. Not compared,
because the definitions differ: libcachesim's SLRU has four segments (ours two), its W-TinyLFU counts in hashed
sketches (ours exactly), random replacement has another generator.
"""

import numpy as np
import pytest

from moelab.simulator.simulate import simulate
from tests.seeded_traces import plan_for, seeded_trace

SAME = {
    "fifo": ("FIFO", {}),
    "lru": ("LRU", {}),
    "clock": ("Clock", {}),
    "sieve": ("Sieve", {}),
    "arc": ("ARC", {}),
    "s3_fifo": ("S3FIFO", {}),
    "lfu": ("LFU", {"forget": 1}),
    "gdsf": ("GDSF", {"floor_before": 1, "hysteresis": -1e-9}),
}


def stream_of(seed, num_experts, length):
    """Zipf-like draws whose popularity drifts, so that ghosts and second chances matter."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, num_experts + 1) ** 0.8
    parts = [
        rng.permutation(num_experts)[rng.choice(num_experts, length // 4, p=weights / weights.sum())] for _ in range(4)
    ]
    return np.concatenate(parts).astype(np.uint16)


@pytest.mark.parametrize("policy", sorted(SAME))
def test_hit_counts_are_equal(policy):
    lcs = pytest.importorskip("libcachesim", reason="libcachesim is not installed")
    name, parameters = SAME[policy]
    for seed in range(3):
        stream = stream_of(seed, 60, 4000)
        trace = seeded_trace(
            seed, num_layers=1, num_experts=60, top_k=1, num_requests=1, prefill_tokens=0, decode_tokens=4000
        )
        trace.experts[:, 0, 0] = stream
        for slots in (20, 33, 60) if policy == "s3_fifo" else (10, 20, 33, 60):
            cache = getattr(lcs, name)(cache_size=slots)
            hits = 0
            for expert in stream.tolist():
                request = lcs.Request()
                request.obj_id, request.obj_size = expert, 1
                hits += cache.get(request)
            ours = simulate(trace, plan_for(trace, policy, slots=slots, parameters=parameters), progress=False)
            assert ours.hits == hits, f"seed {seed}, {slots} slots"
