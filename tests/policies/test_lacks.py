"""A policy that looks at optional arrays says what it does without them."""

from __future__ import annotations

from moelab.policies import POLICIES


def test_every_policy_that_reads_says_what_it_does_without():
    readers = {name: policy for name, policy in POLICIES.items() if policy.reads}
    assert set(readers) >= {"mrs", "admit_mrs", "prefetch_stale_gate"}
    for policy in readers.values():
        assert policy.without_reads
        lacks = policy.lacks(())
        assert all(name in lacks for name in policy.reads)
        assert lacks.endswith(policy.without_reads)
        assert policy.lacks(policy.reads) is None
    assert all(policy.lacks(()) is None for name, policy in POLICIES.items() if name not in readers)
