"""Twin of prefetch_markov: a dict of transitions between neighbouring layers, halved where a count is full; shares of
eight bits."""

import math
from collections import Counter, defaultdict

import numpy as np

from tests.policies.twins.prefetch_lru import PrefetchLRU


class Twin(PrefetchLRU):
    def start(self):
        super().start()
        self.followers, self.times, self.before = defaultdict(Counter), Counter(), []

    def decide(self, request):
        if request.layer:
            for key in self.before:
                row = self.followers[key]
                row.update(request.keys)
                self.times[key] += 1
                if max(row.values(), default=0) >= self.parameters["largest"]:
                    self.times[key] //= 2
                    for follower in row:
                        row[follower] //= 2
        self.before = request.keys
        return super().decide(request)

    def predicted(self, request):
        score = Counter()
        for key in request.keys:
            total = self.times[key]
            if total:
                factor, exponent = eight_bits(float(np.float32(65535 // len(request.keys)) / np.float32(total)))
                for follower, count in self.followers[key].items():
                    score[follower] += int(count * factor * 2.0**exponent)
        score = {key: value for key, value in score.items() if value > 0}
        return sorted(score, key=lambda k: (-score[k], k)) if request.layer + 1 < self.num_layers else []


def eight_bits(value):
    """(whole number of 128 to 255, exponent): value = number x 2**exponent, cut after eight bits."""
    fraction, exponent = math.frexp(value)
    return int(fraction * 256), exponent - 8
