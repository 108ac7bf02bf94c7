"""Naive Python twins of the policies, one file each: lists and dicts, from the definitions, no Numba, no tricks."""

from tests.policies.twins import clock, fifo, lru, min_bypass, random, sieve, static

TWINS = {
    module.__name__.rsplit(".", 1)[1]: module.Twin for module in (clock, fifo, lru, min_bypass, random, sieve, static)
}
