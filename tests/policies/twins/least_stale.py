"""Twin of least_stale: a list by last use, and the step of each."""

from tests.policies.twins.cache import DemandFill


class Twin(DemandFill):
    def start(self):
        self.order, self.step = self.initial(), {}

    def victim(self, candidates, request):
        listed = [k for k in self.order if k in candidates]
        stale = [k for k in listed if self.step.get(k) != request.step]
        return stale[0] if stale else listed[-1]

    def evict(self, key):
        self.order.remove(key)

    def decide(self, request):
        answer = super().decide(request)
        for key in request.keys:
            if (key in self.residents or key in answer[0]) and key not in self.pinned:
                self.order = [k for k in self.order if k != key] + [key]
                self.step[key] = request.step
        return answer
