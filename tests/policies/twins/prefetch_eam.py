"""Twin of prefetch_eam: dicts of counts; every cosine computed from the beginning."""

from collections import Counter
from math import sqrt

from tests.policies.twins.prefetch_lru import PrefetchLRU


class Twin(PrefetchLRU):
    def start(self):
        super().start()
        self.matrix, self.rows, self.num_matches = Counter(), [], []

    def decide(self, request):
        if request.layer == 0 and request.flags & 4:
            if self.matrix:
                if len(self.rows) < self.parameters["rows"]:
                    self.rows.append(self.matrix)
                    self.num_matches.append(1)
                else:
                    least = self.num_matches.index(min(self.num_matches))
                    self.rows[least], self.num_matches[least] = self.matrix, 1
            self.matrix = Counter()
        answer = super().decide(request)
        self.matrix.update(request.counts)
        return answer

    def cosine(self, row, layer):
        def of_layer(matrix):
            return {key: n for key, n in matrix.items() if key[0] == layer}

        a, b = of_layer(self.matrix), of_layer(row)
        dot = sum(n * b.get(key, 0) for key, n in a.items())
        norms = [sqrt(sum(n * n for n in each.values())) for each in (a, b)]
        return dot / (norms[0] * norms[1]) if dot else 0.0

    def ahead(self, request):
        similarity = []
        for row in self.rows:
            total = 0.0
            for layer in range(self.num_layers - 1, request.layer, -1):
                total += self.cosine(row, layer)
            similarity.append(total)
        if not similarity or max(similarity) == 0:
            return []
        best = similarity.index(max(similarity))
        self.num_matches[best] += 1
        last = min(self.num_layers - 1, request.layer + self.parameters["depth"])
        used = [
            sorted((k for k in self.rows[best] if k[0] == layer), key=lambda k: (-self.rows[best][k], k))
            for layer in range(request.layer + 1, last + 1)
        ]
        return [keys[: self.parameters["width"]] for keys in used]
