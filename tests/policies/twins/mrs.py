"""Twin of mrs: S of every expert of every layer, updated as the paper writes it. Exact for powers of two."""

from collections import defaultdict

from tests.policies.twins.by_score import ByScore


class Twin(ByScore):
    def begin(self):
        self.s = defaultdict(float)

    def see(self, request):
        alpha, top_p = self.parameters["alpha"], self.parameters["top_p"]
        for expert in range(self.num_experts):
            self.s[request.layer, expert] *= 1 - alpha
        for row in request.scores:
            best = sorted(range(self.num_experts), key=lambda e: -float(row[e]))[:top_p]  # stable: the lower expert
            for expert in best:
                self.s[request.layer, expert] += alpha * float(row[expert])
        if not request.scores:
            for key in request.keys:
                self.s[key] += alpha * float(request.gate_sums[key])

    def score(self, key, request):
        """As if the layers that this step has not reached had been updated too."""
        return self.s[key] * (1 - self.parameters["alpha"] if key[0] > request.layer else 1)
