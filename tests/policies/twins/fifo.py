"""Twin of fifo: a list, oldest admission first."""

from tests.policies.twins.cache import DemandFill


class Twin(DemandFill):
    def start(self):
        self.order = self.initial()

    def victim(self, candidates, request):
        return next(k for k in self.order if k in candidates)

    def evict(self, key):
        self.order.remove(key)

    def admit(self, key, request):
        self.order.append(key)
