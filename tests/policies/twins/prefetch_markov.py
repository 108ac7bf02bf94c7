"""Twin of prefetch_markov: a dict of transitions between neighbouring layers."""

from collections import Counter, defaultdict

from tests.policies.twins.prefetch_lru import PrefetchLRU


class Twin(PrefetchLRU):
    def start(self):
        super().start()
        self.followers, self.before = defaultdict(Counter), []

    def decide(self, request):
        if request.layer:
            for key in self.before:
                self.followers[key].update(request.keys)
        self.before = request.keys
        return super().decide(request)

    def predicted(self, request):
        score = Counter()
        for key in request.keys:
            for follower, count in self.followers[key].items():
                score[follower] += count / self.followers[key].total()
        return sorted(score, key=lambda k: (-score[k], k)) if request.layer + 1 < self.num_layers else []
