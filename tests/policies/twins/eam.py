"""Twin of eam: the running request's tokens and all uses, by key."""

from collections import Counter

from tests.policies.twins.by_score import ByScore


class Twin(ByScore):
    def begin(self):
        self.tokens, self.uses = Counter(), Counter()

    def see(self, request):
        if request.layer == 0 and request.flags & 4:
            self.tokens.clear()
        self.tokens.update(request.counts)
        self.uses.update(request.keys)

    def score(self, key, request):
        tokens = sum(n for (layer, _), n in self.tokens.items() if layer == key[0])
        uses = sum(n for (layer, _), n in self.uses.items() if layer == key[0])
        decay = 1 - key[0] / self.num_layers
        return decay * (self.tokens[key] / max(1, tokens)) * (self.uses[key] / max(1, uses))
