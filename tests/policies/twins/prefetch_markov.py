"""Twin of prefetch_markov: a dict of transitions between neighbouring layers, halved where a count is full."""

from collections import Counter, defaultdict

import numpy as np

from tests.policies.twins.prefetch_lru import PrefetchLRU


class Twin(PrefetchLRU):
    def start(self):
        super().start()
        self.followers, self.before = defaultdict(Counter), []

    def decide(self, request):
        if request.layer:
            for key in self.before:
                row = self.followers[key]
                row.update(request.keys)
                if max(row.values(), default=0) >= self.parameters["largest"]:
                    for follower in row:
                        row[follower] //= 2
        self.before = request.keys
        return super().decide(request)

    def predicted(self, request):
        score = Counter()
        for key in request.keys:
            share = np.float32(1) / np.float32(max(self.followers[key].total(), 1))
            for follower, count in self.followers[key].items():
                score[follower] = np.float32(score[follower]) + np.float32(count) * share
        score = {key: value for key, value in score.items() if value > 0}
        return sorted(score, key=lambda k: (-score[k], k)) if request.layer + 1 < self.num_layers else []
