"""warm: machine code of all that a menu offers, loaded or compiled before anybody chooses it.  Floor 4.

A policy's first run reads its machine code from disk, or compiles it for seconds where this machine never did; here
each runs on the first step of the trace. Computes nothing that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from moelab.domain.plan import PolicyChoice
from moelab.exploration.explore import Exploration
from moelab.exploration.settings import Settings, policies
from moelab.policies.requests import Requests
from moelab.simulator.simulate import simulate


def warm(
    exploration: Exploration, names: Iterable[str] | None = None, *, is_wanted: Callable[[], bool] = lambda: True
) -> list[str]:
    """Policies by name that are ready now (default: all that the trace allows); ends early once not ``is_wanted``."""
    trace = exploration.test
    first = trace.take(np.asarray(trace.tokens.step == trace.tokens.step[:1]))
    requests = Requests.of_trace(first)
    plan = exploration.plan(Settings(min(1, trace.header.num_experts), planner="empty"), searched=False)
    done = []
    for name in policies(1, trace.extras) if names is None else names:
        if not is_wanted():
            break
        simulate(first, plan.model_copy(update={"policy": PolicyChoice(name=name)}), requests=requests, progress=False)
        done.append(name)
    return done
