"""study(trace): every policy at 5, 10, 20 and 30% of the experts, counted by request.  Floor 5.

Takes whatever is in ``POLICIES`` and can run on this trace. Every dynamic policy starts empty, with its default
parameters, and runs through the whole trace in its order; scored are decode steps where there are any. Prefill-only
traces are passes over whole sequences, in which nearly every expert is used: their tokens are taken as own steps, and
every table says so. Static placements: ``held_out``. Beside them the oracles; and on the first steps, from empty, the
fewest reads that any admissions and evictions reach (``min_cost``, price 1).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.analysis.bootstrap import FEWEST_CLUSTERS
from moelab.domain.plan import PolicyChoice
from moelab.domain.trace import Phase, Trace
from moelab.findings.compare import Bootstrap
from moelab.findings.counted import Counted, cluster_of_step, of_steps
from moelab.findings.held_out import HeldOut
from moelab.policies import POLICIES
from moelab.policies.requests import Requests
from moelab.simulator.min_cost import min_cost
from moelab.simulator.simulate import simulate
from moelab.sweeps.cell import Cell
from moelab.sweeps.in_threads import num_cores

if TYPE_CHECKING:
    import pandas as pd

SHARES = (0.05, 0.1, 0.2, 0.3)
FIRST_STEPS = 192
"""Steps of the table beside ``min_cost``."""


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that the tables of one trace need.

    ``scored`` rows over the scored steps by share; ``on_first`` reads per layer-step on the first steps, by share and
    policy, with ``min_cost``; ``pool`` of policies with one pool for all layers, by (policy, slots). ``source``: where
    the trace comes from.
    """

    name: str
    trace: Trace
    steps: str
    held_out: str
    num_clusters: int
    num_tokens: int
    slots: dict[float, int]
    scored: dict[float, list[Counted]]
    on_first: dict[float, dict[str, float]]
    num_first: int
    pool: dict[tuple[str, int], Counted]
    bootstrap: Bootstrap
    source: str

    def find(self, share: float, policy: str) -> Counted | None:
        return next((one for one in self.scored[share] if one.policy == policy), None)

    def online(self, share: float) -> list[Counted]:
        """Without the oracles, fewest reads first."""
        return sorted((one for one in self.scored[share] if not one.is_oracle), key=lambda one: one.value("reads"))

    def pair(self, share: float, better: str, worse: str, scope: str) -> tuple[Counted, Counted] | None:
        """Two policies at the same capacity, ``None`` where one did not run."""
        if scope == "global":
            slots = self.slots[share] * self.trace.header.num_layers
            found = self.pool.get((better, slots)), self.pool.get((worse, slots))
        else:
            found = self.find(share, better), self.find(share, worse)
        return None if found[0] is None or found[1] is None else (found[0], found[1])

    @property
    def uses_per_layer_step(self) -> float:
        """Reads without a fast tier."""
        one = self.scored[SHARES[0]][0]
        return float((one.column("hits") + one.column("misses")).sum() / one.column("layer_steps").sum())

    def table(self) -> list[dict[str, Any]]:
        """One row for each policy and capacity, with intervals; plain values."""
        return [
            {
                "policy": one.policy, "is_oracle": one.is_oracle, "share": share, "slots": one.slots,
                **{
                    f"{what}_{part}": getattr(self.bootstrap.interval(one, what), part)
                    for what in ("reads", "uploads", "hit_rate")
                    for part in ("value", "low", "high")
                },
            }
            for share, scored in self.scored.items()
            for one in scored
        ]  # fmt: skip

    def to_frame(self) -> pd.DataFrame:
        """``table`` as a frame."""
        import pandas as pd

        return pd.DataFrame(self.table())

    def __repr__(self) -> str:
        return f"Study of {self.name}, {self.num_tokens} tokens\n" + self.to_frame().to_string(index=False)

    def _repr_html_(self) -> str:
        return f"<b>Study</b> of {escape(self.name)}" + self.to_frame().to_html(index=False, float_format="%.3f")


def study(
    name: str,
    trace: Trace,
    *,
    source: str | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
    progress: bool = True,
) -> Study:
    """All simulations of one trace; ``num_samples`` resamples of its requests. Minutes for 100,000 token-layers."""
    from tqdm.auto import tqdm

    phases = set(trace.tokens.phase.tolist())
    steps = "decode steps as recorded"
    if Phase.DECODE not in phases:
        trace, steps = _own_steps(trace), "prefill tokens, each taken as its own step"
    requests = Requests.of_trace(trace)
    requests.next_use  # noqa: B018  cached there, before the threads
    cluster = cluster_of_step(trace)
    is_scored = requests.steps_of_phase("decode" if Phase.DECODE in phases else None)
    if cluster.max() + 1 < FEWEST_CLUSTERS:
        cluster[:] = 0
    is_counted, held_out = is_scored, "static: four folds of the requests"
    if cluster.max() == 0:
        middle = np.flatnonzero(is_scored)[is_scored.sum() // 2]
        late = np.arange(len(is_scored)) >= middle
        is_counted, is_scored, held_out = is_scored & ~late, is_scored & late, "all: the second half in time"
    experts = trace.header.num_experts
    slots = {share: max(1, round(share * experts)) for share in SHARES}
    names = _that_can_run(trace, phases)
    cells = [Cell(PolicyChoice(name=policy), each, "layer") for each in slots.values() for policy in names]
    pools = _pools(trace, slots)
    first = trace.phase(Phase.DECODE) if Phase.DECODE in phases else trace
    first = first.take(np.unique(first.tokens.step, return_inverse=True)[1] < FIRST_STEPS)
    num_from_empty = sum(Cell(PolicyChoice(name=policy), 1, "layer").start == "empty" for policy in names)
    jobs = len(cells) + len(pools) + len(slots) * (num_from_empty + 1)
    on_first: dict[float, dict[str, float]] = {share: {} for share in SHARES}
    with ThreadPoolExecutor(num_cores()) as threads, tqdm(total=jobs, desc=name, disable=not progress) as bar:

        def done(value):
            bar.update()
            return value

        def count(cell: Cell) -> Counted:
            result = simulate(trace, cell.plan(trace), requests=requests, progress=False)
            assert result.counts is not None  # by_step is the default
            values = of_steps(result.counts, cluster, is_scored)
            oracle = POLICIES[cell.policy.name].needs_next_use
            return done(Counted(cell.policy.name, cell.slots, values, oracle))

        counted = list(threads.map(count, cells))
        in_pool = list(threads.map(count, pools))
        first_requests = Requests.of_trace(first)
        for share, each in slots.items():
            best = min_cost(first, slots_per_layer=each, requests=first_requests)
            on_first[share]["min_cost"] = done(best.reads_per_layer_step)
            for policy in names:
                cell = Cell(PolicyChoice(name=policy), each, "layer")
                if cell.start != "empty":
                    continue
                result = simulate(first, cell.plan(first), requests=first_requests, progress=False)
                on_first[share][policy] = done(result.reads_per_layer_step or 0.0)
    static = HeldOut(trace, requests, cluster, is_counted, is_scored, seed)
    scored = {
        share: [one for one in counted if one.slots == each] + list(static.score(each)) for share, each in slots.items()
    }
    tokens = np.diff(requests.first_token)[is_scored].sum()
    num_clusters = int(cluster.max()) + 1
    return Study(
        name, trace, steps, held_out, num_clusters, int(tokens), slots, scored, on_first, first_requests.num_steps,
        {(one.policy, one.slots): one for one in in_pool}, Bootstrap(num_clusters, num_samples, seed),
        source or trace.header.provenance,
    )  # fmt: skip


def _own_steps(trace: Trace) -> Trace:
    return Trace(
        trace.header, trace.experts, trace.gate_weights, replace(trace.tokens, step=np.arange(trace.num_tokens))
    )


def _that_can_run(trace: Trace, phases: set[int]) -> list[str]:
    """Without ``static`` (``held_out`` has it), and what needs what the trace lacks."""
    left_out = {"static"}
    if "stale_gate_experts" not in trace.extras:
        left_out.add("prefetch_stale_gate")
    if len(phases) < 2:  # it looks at prefills and acts in decode
        left_out.add("kt_dynamic")
    return [name for name, policy in POLICIES.items() if name not in left_out and not policy.lossy]


def _pools(trace: Trace, slots: dict[float, int]) -> list[Cell]:
    """One pool for all layers: around the cliff and at the shares."""
    layers, top_k = trace.header.num_layers, trace.header.top_k
    sizes = sorted({(layers - 1) * top_k, layers * top_k, *(each * layers for each in slots.values())})
    return [Cell(PolicyChoice(name=policy), each, "global") for policy in ("lru", "least_stale") for each in sizes]
