"""Twin of lfru: uses and the step of the last use."""

from collections import Counter

from tests.policies.twins.by_score import ByScore


class Twin(ByScore):
    def begin(self):
        self.uses, self.step = Counter(), {}

    def see(self, request):
        self.uses.update(request.keys)
        for key in request.keys:
            self.step[key] = request.clock // self.num_layers

    def score(self, key, request):
        return self.uses[key] / (1 + request.clock // self.num_layers - self.step.get(key, 0))
