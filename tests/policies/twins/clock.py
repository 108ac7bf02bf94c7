"""Twin of clock: the first of the list that is not in use goes, or goes to the end without its bit."""

from tests.policies.twins.cache import DemandFill


class Twin(DemandFill):
    def start(self):
        self.order = self.initial()
        self.used = set()

    def see(self, request):
        self.used |= {k for k in request.keys if k in self.residents}

    def victim(self, candidates, request):
        while True:
            first = next(k for k in self.order if k in candidates)
            if first not in self.used:
                return first
            self.used.remove(first)
            self.order.remove(first)
            self.order.append(first)

    def evict(self, key):
        self.order.remove(key)

    def admit(self, key, request):
        self.order.append(key)
