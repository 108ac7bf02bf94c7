"""Twin of prefetch_stale_gate."""

from tests.policies.twins.prefetch_lru import PrefetchLRU


class Twin(PrefetchLRU):
    def predicted(self, request):
        return [(request.layer + 1, expert) for expert in request.stale]
