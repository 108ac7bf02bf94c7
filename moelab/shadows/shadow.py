"""shadow: `with moelab.shadow(engine, policies=..., slots_per_layer=...) as result:` - candidates watch, nothing moves.

The candidates see the routing as it happens, through the same session as a live tier, so each makes the decisions that
`simulate` makes on the recorded trace of the run; no trace is kept. Each starts from the residents of its plan when the
block begins. Costs a few microseconds for each candidate and layer, after the step. Floor 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from moelab.analysis.bootstrap import NUM_SAMPLES
from moelab.domain.plan import Plan
from moelab.engine import Engine
from moelab.engine.token_rows import TokenRows
from moelab.planner import empty
from moelab.policies.signature import FLAG_REQUEST_ENDED
from moelab.shadows.candidate import Candidate
from moelab.shadows.result import ShadowResult


@contextmanager
def shadow(
    engine: Engine,
    plans: Mapping[str, Plan] | None = None,
    *,
    policies: Iterable[str] = (),
    slots_per_layer: Iterable[int] | int = (),
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    keep_log: bool = False,
) -> Iterator[ShadowResult]:
    """Watch everything that `engine` routes inside the block.

    Candidates: `plans` by name, and every policy of `policies` at every capacity of `slots_per_layer`, empty at first.
    `num_samples`, `seed`: of the bootstrap over requests. `keep_log` keeps the counts of every step.
    ValueError for no candidate, an oracle, a policy that does not exist, or a plan for another model.
    """
    sizes = [slots_per_layer] if isinstance(slots_per_layer, int) else list(slots_per_layer)
    policies = list(policies)
    if bool(policies) != bool(sizes):
        given, lacks = ("policies", "slots_per_layer") if policies else ("slots_per_layer", "policies")
        raise ValueError(f"shadow got {given} without {lacks}: give both, or plans alone")
    header = engine.trace_header()
    named = dict(plans or {})
    for policy in policies:
        named |= {f"{policy}, {size} slots": empty(header, slots_per_layer=size, policy=policy) for size in sizes}
    if not named:
        raise ValueError("shadow got no candidate: give plans, or policies and slots_per_layer")
    for plan in named.values():
        plan.check_matches(
            what="engine", model=header.model, num_layers=header.num_layers, num_experts=header.num_experts,
            top_k=header.top_k, fingerprint=header.model_fingerprint,
        )  # fmt: skip
    candidates = [Candidate(name, plan, keep_log=keep_log) for name, plan in named.items()]
    extras_read = {name for candidate in candidates for name in candidate.session.policy.reads}
    result = ShadowResult(header.model, candidates, num_samples, seed)

    def observe(_: int, rows: TokenRows, expert_ids: np.ndarray, gate_weights: np.ndarray) -> None:
        ids = np.ascontiguousarray(expert_ids.transpose(1, 0, 2), np.uint16)
        gates = np.ascontiguousarray(gate_weights.transpose(1, 0, 2), np.float16)
        requests, num_tokens = np.unique(rows.request, return_counts=True)
        extras = {
            name: np.ascontiguousarray(array.transpose(1, 0, 2))
            for name in extras_read
            if (array := getattr(rows, name)) is not None
        }
        shares = dict(zip(requests.tolist(), (num_tokens / len(ids)).tolist(), strict=True))
        result.join(requests.tolist())
        # A request that ended before the block began was none of its own.
        flags = rows.flags if result.num_steps else rows.flags & ~FLAG_REQUEST_ENDED
        for candidate in candidates:
            candidate.see(ids, gates, rows.phase, flags, result.num_steps, shares, extras)
        result.num_steps += 1

    with engine.asking(extras_read):
        engine.observers.append(observe)
        try:
            yield result
        finally:
            engine.observers.remove(observe)
