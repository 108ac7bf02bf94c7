"""Naive Python twins of the policies, one file each: lists and dicts, from the definitions, no Numba, no tricks."""

from importlib import import_module

from moelab.policies import POLICIES

TWINS = {name: import_module(f"tests.policies.twins.{name.removeprefix('admit_')}").Twin for name in POLICIES}
"""Twin by name of the policy; ``admit_x`` is x with other defaults."""
