"""Twin of lfu: a dict of counts."""

from collections import Counter

from tests.policies.twins.by_score import ByScore


class Twin(ByScore):
    def begin(self):
        self.count = Counter()

    def see(self, request):
        self.count.update(request.keys)

    def score(self, key, request):
        return self.count[key]

    def after(self, request, admitted, evicted):
        if self.parameters.get("forget"):
            for key in evicted:
                del self.count[key]
