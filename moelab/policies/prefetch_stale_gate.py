"""prefetch_stale_gate: LRU, and copying ahead what the next layer's gate chooses on this layer's hidden state.

Reference: speculative loading of mixtral-offloading (Eliseev and Mazur 2023, arXiv 2312.17238, section 3.2). Only where
the trace has ``stale_gate_experts`` (else it is ``lru``). Where we differ: at most ``width`` experts, those that
the tokens named first; serving, room and accounting: ``prefetch_lru``. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.domain.trace import STALE_GATE
from moelab.policies.compiled import compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.prefetch_lru import copy_ahead, new_lists, serve_lru


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """The lists of ``prefetch_lru``."""
    return np.zeros(0, np.float64), new_lists(setup)


@compiled
def decide(view):
    """Serve, then copy the named ones."""
    if len(view.free_slots) == 0:
        return
    serve_lru(view)
    copy_ahead(view, view.layer + 1, view.stale_experts, min(len(view.stale_experts), view.int_parameters[0]))


POLICY = Policy(
    name="prefetch_stale_gate",
    decide=decide,
    reference="Eliseev and Mazur 2023, arXiv 2312.17238",
    parameters={"width": 8},
    new_state=new_state,
    prefetches=True,
    reads=(STALE_GATE,),
    without_reads="lru",
)
