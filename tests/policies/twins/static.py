"""Twin of static."""

from tests.policies.twins.cache import NaiveCache


class Twin(NaiveCache):
    def decide(self, request):
        return [], [], []
