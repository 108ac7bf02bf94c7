"""Twin of ema_lfu: (worth, step) of the last use; worths fade when looked at. Exact for powers of two."""

from tests.policies.twins.by_score import ByScore


class Twin(ByScore):
    def begin(self):
        self.worth = {}

    def see(self, request):
        for key in request.keys:
            self.worth[key] = (self.score(key, request) + 1, request.clock // self.num_layers)

    def score(self, key, request):
        worth, step = self.worth.get(key, (0.0, 0))
        return worth * self.parameters["decay"] ** (request.clock // self.num_layers - step)
