"""Twin of lru: a list, oldest first."""

from tests.policies.twins.cache import DemandFill


class Twin(DemandFill):
    def start(self):
        self.order = self.initial()

    def victim(self, candidates, request):
        return next(k for k in self.order if k in candidates)

    def evict(self, key):
        self.order.remove(key)

    def decide(self, request):
        answer = super().decide(request)
        for key in request.keys:
            if (key in self.residents or key in answer[0]) and key not in self.pinned:
                self.order = [k for k in self.order if k != key] + [key]
        return answer
