"""Cell: one policy at one capacity; its key, its plan and its row.  Floor 4.

A row is a function of the cell, the trace (``Trace.digest``) and the code, so its key is the sha256 of these three.
Dynamic policies start from an empty fast tier. Two cannot: ``static`` takes the hottest experts of the
very requests that it is scored on, and says "in sample"; ``kt_dynamic`` replaces what lies there and starts from
``uniform``, which looks at no routing. Does not know files, threads or clusters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from moelab.domain.plan import Plan, PolicyChoice
from moelab.domain.trace import Trace, fingerprint_of
from moelab.planner import PLANNERS, empty
from moelab.policies import POLICIES
from moelab.policies.requests import PHASES, Requests
from moelab.simulator.result import SimResult
from moelab.simulator.simulate import simulate
from moelab.source_stamp import stamp_of_room

ROOMS = ("domain", "policies", "cost_model", "simulator", "planner", "sweeps")
"""Rooms whose sources decide a row."""

_START_OF_POLICY = {"static": "frequency", "kt_dynamic": "uniform"}
_SCORED_ON = {
    "empty": "every request; the fast tier was empty at first",
    "uniform": "every request; the plan looked at no routing",
    "frequency": "every request, in sample: the plan has seen them",
}


@cache
def code_version() -> str:
    """Checksums of the rooms that decide a row."""
    return "-".join(stamp_of_room(room) for room in ROOMS)


@dataclass(frozen=True)
class Cell:
    """``slots`` in each layer (``scope`` ``layer``) or over all layers (``global``); ``label`` names the policy."""

    policy: PolicyChoice
    slots: int
    scope: str

    @property
    def label(self) -> str:
        """The policy's name, with what differs from its defaults."""
        known = POLICIES[self.policy.name].chosen(PolicyChoice(name=self.policy.name))
        changed = {k: v for k, v in self.parameters.items() if v != known[k]}
        return self.policy.name + (f"({', '.join(f'{k}={v:g}' for k, v in changed.items())})" if changed else "")

    @property
    def parameters(self) -> Mapping[str, float | int]:
        """All parameters of the policy, defaults too, so that a row survives no change of a default."""
        return POLICIES[self.policy.name].chosen(self.policy)

    @property
    def start(self) -> str:
        """Planner of the initial residents."""
        return _START_OF_POLICY.get(self.policy.name, "empty")

    @property
    def oracle(self) -> str | None:
        """What bounds it: the oracles start empty, so nothing bounds a cell that starts with residents."""
        return POLICIES[self.policy.name].oracle(self.policy) if self.start == "empty" else None

    def key(self, digest: str) -> str:
        """32 hexadecimal digits of (trace, policy, parameters, capacity, start, code)."""
        document = {
            "trace": digest, "code": code_version(), "policy": self.policy.name, "parameters": dict(self.parameters),
            "slots": self.slots, "scope": self.scope, "start": self.start,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]

    def plan(self, trace: Trace) -> Plan:
        """The plan that this cell simulates."""
        per_layer, in_all = (self.slots, None) if self.scope == "layer" else (None, self.slots)
        if self.start == "empty":
            plan = empty(trace, slots_per_layer=per_layer, slots=in_all)
        else:
            plan = PLANNERS[self.start](trace, slots_per_layer=per_layer, slots=in_all, held_out=0.0, score=False)
        return plan.model_copy(update={"policy": self.policy, "prediction": {}})

    def row(self, trace: Trace, requests: Requests, digest: str) -> dict[str, Any]:
        """Simulate; plain values, the figures by phase (``all`` and those that occur)."""
        header, plan = trace.header, self.plan(trace)
        result = simulate(trace, plan, requests=requests, by_step=False, progress=False)
        of_phase = {"all": figures(result)}
        for phase in PHASES:
            if (part := result.of_phase(phase)).num_layer_steps:
                of_phase[phase] = figures(part)
        num_places = header.num_experts * (header.num_layers if self.scope == "global" else 1)
        return {
            "key": self.key(digest),
            "trace": fingerprint_of(digest),
            "model": header.model,
            "routing": "synthetic" if header.synthetic else "recorded",
            "policy": self.label,
            "policy_lacks": result.policy_lacks,
            "is_oracle": POLICIES[self.policy.name].needs_next_use,
            "oracle": self.oracle,
            "scope": self.scope,
            "slots": self.slots,
            "share_of_experts": self.slots / num_places,
            "num_layers": header.num_layers,
            "num_experts": header.num_experts,
            "top_k": header.top_k,
            "scored_on": _SCORED_ON[self.start],
            "plan": plan.fingerprint(),
            "of_phase": of_phase,
        }


def figures(result: SimResult) -> dict[str, Any]:
    """Counts, rates and bytes of the selected phase; bytes are ``None`` where no expert bytes are known."""
    knows_bytes = bool(result.node_bytes.any())
    return {
        "tokens": result.num_tokens,
        "layer_steps": result.num_layer_steps,
        "distinct_hits": result.hits,
        "distinct_misses": result.misses,
        "uploads": result.uploads,
        "prefetches": result.prefetches,
        "evictions": result.evictions,
        "hit_rate_per_routing": result.hit_rate_per_routing,
        "hit_rate_per_request": result.hit_rate_per_request,
        "misses_per_layer_step": result.misses_per_layer_step,
        "reads_per_layer_step": result.reads_per_layer_step,
        "uploads_per_layer_step": result.uploads_per_layer_step,
        "node_read_bytes": sum(result.bytes_of_node.values()) if knows_bytes else None,
        "link_copy_bytes": sum(result.bytes_of_link.values()) if knows_bytes else None,
    }
