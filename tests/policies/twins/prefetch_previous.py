"""Twin of prefetch_previous: the last set of each layer."""

from tests.policies.twins.prefetch_lru import PrefetchLRU


class Twin(PrefetchLRU):
    def start(self):
        super().start()
        self.last = {}

    def predicted(self, request):
        self.last[request.layer] = request.keys
        return self.last.get(request.layer + 1, [])
