"""Cache-aware routing on a trace: which experts the tokens would have used, the scores being those that were recorded.

Open loop: with other experts the model would have had other hidden states, and so other scores in the layers and tokens
that follow; here they stay. It says about how much less would be read; the cost in NLL and the closed loop are the
engine's (``moelab bench nll``, ``Engine.use_lossy``). Groups of a router are not known to a trace: any expert may be
chosen. Gate weights stay with their ranks. The policy runs beside through ``PolicySession``, so that ``simulate`` of
the result makes the same decisions. Floor 2.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moelab.domain.lossy import Lossy
from moelab.domain.plan import Plan
from moelab.domain.trace import CANDIDATE_SCORES, STALE_GATE, Trace
from moelab.policies import Policy
from moelab.policies.cache_aware import CacheAwareRouting
from moelab.policies.requests import Requests
from moelab.policies.session import PolicySession
from moelab.policies.signature import FLAG_DECODE, FLAG_PREFILL


def reroute(
    trace: Trace, plan: Plan, lossy: Lossy, *, policy: Policy | None = None, requests: Requests | None = None,
    progress: bool = True,
) -> Trace:  # fmt: skip
    """The trace with the experts that cache-aware routing chooses under the plan; its header says so.

    ``requests``: those of ``trace``, where they were built before. ``ValueError`` for a trace without candidate scores
    and for deferral, which reads the same experts as before.
    """
    from tqdm.auto import tqdm

    header = trace.header
    lossy.check_top_k(header.top_k)
    if lossy.num_deferred:
        raise ValueError(
            f"num_deferred is {lossy.num_deferred}; expected 0: deferred experts are read all the same, so that a "
            "trace has nothing to say of it; run the engine with it, its time is `cost_model.deferral`'s"
        )
    if CANDIDATE_SCORES not in trace.extras:
        found = ", ".join(trace.extras) or "no optional arrays"
        raise ValueError(f"trace has {found}; cache-aware routing needs {CANDIDATE_SCORES}: record with scores=True")
    session, requests = PolicySession(plan, policy), requests or Requests.of_trace(trace)
    routing = CacheAwareRouting(lossy, header.num_layers, header.num_experts)
    reads, scores, stale = session.policy.reads, trace.extras[CANDIDATE_SCORES], trace.extras.get(STALE_GATE)
    experts = trace.experts.copy()
    gates = np.ascontiguousarray(trace.gate_weights)
    bounds = requests.first_token
    for step in tqdm(range(requests.num_steps), desc="cache-aware routing", delay=1, disable=not progress):
        rows = slice(bounds[step], bounds[step + 1])
        flags = int(requests.flags[step])
        acts = lossy.prefill or flags & (FLAG_PREFILL | FLAG_DECODE) == FLAG_DECODE
        for layer in range(header.num_layers):
            if acts:
                chosen = experts[rows, layer].astype(np.int32)
                routing.choose(layer, scores[rows, layer].astype(np.float32), session.state.resident[layer], chosen)
                experts[rows, layer] = chosen
            named = stale is not None and STALE_GATE in reads and layer + 1 < header.num_layers
            session.ask(
                experts[rows], gates[rows], layer=layer, step=int(requests.step[step]), flags=flags, place=layer,
                candidate_scores=scores[rows, layer] if CANDIDATE_SCORES in reads else None,
                stale_experts=stale[rows, layer + 1] if named and stale is not None else None,
            )  # fmt: skip
    said = header.model_copy(update={"engine": f"{header.engine}; rerouted on the trace, open loop: {lossy}"})
    return replace(trace, header=said, experts=experts)
