"""Twin of gdsf: worth, uses since admission, and the floor of each pool."""

from collections import Counter, defaultdict

from tests.policies.twins.by_score import ByScore


class Twin(ByScore):
    def begin(self):
        self.worth, self.uses, self.floor = defaultdict(float), Counter(), Counter()

    def weigh(self, key):
        self.worth[key] = self.floor[self.pool(key)] + self.uses[key]

    def see(self, request):
        self.uses.update(request.keys)
        for key in request.keys:
            self.weigh(key)

    def score(self, key, request):
        return self.worth[key]

    def after(self, request, admitted, evicted):
        for key in evicted:
            self.floor[self.pool(key)] = max(self.floor[self.pool(key)], self.worth[key])
            del self.uses[key]
        if not self.parameters["floor_before"]:
            for key in admitted:
                self.weigh(key)
        else:
            limit = min(self.budget, self.parameters["max_uploads"])
            misses = sorted((k for k in request.keys if k not in self.residents), key=lambda k: -self.worth[k])[:limit]
            if len(admitted) < len(misses):
                pool, worth = self.pool(misses[0]), self.worth[misses[len(admitted)]]
                self.floor[pool] = max(self.floor[pool], worth)
        for key in request.keys:
            if (key not in admitted and key not in self.residents) or key in self.pinned:
                del self.uses[key]
