"""Judgement (a), core-bound: the generic kernels, so that each virtual node is a server of its own.  Floor 6.

Two virtual nodes of one core each share their memory, but the unmodified ``generic`` kernels compute more slowly than
memory delivers: what a node has to do decides, as on real nodes. That this holds is measured (``scaling``: the time of
the same experts on either node over that on both). Plans are made on half of the requests, predicted on steps of the
other half from what was calibrated before, and then run by turns. Weights are generated, at a real expert shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from moelab.bench.placement.lockstep import ids_of_steps, single_tokens
from moelab.bench.placement.placed import PlacedLayers, counted_bytes
from moelab.bench.placement.rank import Ranking, ranking
from moelab.bench.placement.same_experts import SameExperts, Scaling, scaling
from moelab.bench.placement.step_times import StepTimes, by_turns
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.free_memory import free_memory_bytes
from moelab.domain.machine import Machine
from moelab.domain.plan import Plan
from moelab.domain.trace import Phase, Trace
from moelab.kernels import ExpertLayout, Pool
from moelab.planner import NODE_PLANNERS
from moelab.planner.node_plan import bound, masks_of_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.node_score import node_score
from moelab.planner.static_plan import of_phase, split
from moelab.source_stamp import stamp_of_room

NUM_NODES = 2
HELD_OUT = 0.5
MOST_BYTES = 4_000_000_000
ROUNDS = 15
PLANNING_STEPS = 2000
FEWEST_STEPS, MOST_STEPS = 8, 60
PLANS = (
    ("round_robin", 0.0), ("random_nodes", 0.0), ("random_nodes", 0.1), ("random_nodes", 0.25),
    ("eplb", 0.0), ("eplb", 0.1), ("eplb", 0.25), ("coact", 0.0), ("coact", 0.1), ("coact", 0.25),
    ("replicate", 0.1), ("replicate", 0.25), ("anneal", 0.0), ("anneal", 0.1), ("anneal", 0.25),
    ("split_some", 0.0), ("split_some", 0.1), ("row_split", 0.0), ("mirror", 1.0),
)  # fmt: skip
_FEWER_VISITS: dict[str, dict[str, Any]] = {
    "anneal": {"most_visits": 400_000_000},
    "split_some": {"moves_per_expert": 200.0},
}


@dataclass(frozen=True)
class PlanRow:
    """One plan. Milliseconds of one step through the layers that ran: ``beforehand_ms`` predicted on the planning half,
    ``measured_ms`` at one speed with its interval of 95%; objective and gap on all held-out layer-steps."""

    planner: str
    extra_memory: float
    heldout_ratio_to_ideal: float
    gap: float
    predicted_ms: float
    beforehand_ms: float
    measured_ms: float
    measured_ms_interval: tuple[float, float]


@dataclass(frozen=True, eq=False)
class CoreBound:
    """``scaling``, ``scaling_of_one`` with one expert of each node in a step, the shortest call; ``kernel``
    and shape that ran; ``steps``: what a step is; ``times`` of the plans in the order of ``rows``, as they were.
    ``ranking`` by what is predicted of the steps that run, ``raw`` the same over times as they were, ``beforehand`` by
    what the planning half says, on which the plans were made; ``within`` among plans of the same extra memory."""

    trace: str
    steps: str
    kernel: str
    num_layers: int
    num_steps: int
    num_requests: int
    times: StepTimes
    scaling: Scaling
    scaling_of_one: Scaling
    rows: list[PlanRow]
    ranking: Ranking
    raw: Ranking
    beforehand: Ranking
    within: dict[float, Ranking]


@dataclass(frozen=True, eq=False)
class Planned:
    """Plans of one trace, made on ``planning``; ``held_out`` is the other half of the same split."""

    plans: dict[tuple[str, float], Plan]
    scores: dict[tuple[str, float], tuple[float, float]]
    planning: Trace
    held_out: Trace
    steps: str


def halves(trace: Trace, seed: int = 0) -> tuple[Trace, Trace, dict[str, Any]]:
    """(planning half, held-out half, the options that let ``node_problem`` part ``trace`` the same way).

    The phase is taken first and split then, as planners do it: decode steps where there are any, else prefill with
    each token its own step.
    """
    has_decode = bool((trace.tokens.phase == Phase.DECODE).any())
    shared: dict[str, Any] = {
        "held_out": HELD_OUT, "seed": seed, "steps": "step" if has_decode else "token",
        "phase": "decode" if has_decode else "prefill",
    }  # fmt: skip
    planning, held_out, _ = split(of_phase(trace, shared["phase"]), held_out=HELD_OUT, seed=seed, steps=shared["steps"])
    return planning, held_out, shared


def steps_name(shared: dict[str, Any]) -> str:
    """What a step is, for tables."""
    return "each token its own step" if shared["steps"] == "token" else "decode"


def made_by(seed: int = 0) -> dict[str, Any]:
    """What decides the plans of ``make_plans`` beside the trace, as JSON has it: options, and sources of the rooms."""
    return {
        "sources": "-".join(stamp_of_room(room) for room in ("domain", "cost_model", "dispatch", "planner")),
        "options": {"nodes": NUM_NODES, "held_out": HELD_OUT, "seed": seed, **_FEWER_VISITS},
    }


def make_plans(trace: Trace, *, machine: Machine | None = None, seed: int = 0, plans: Any = PLANS) -> Planned:
    """Every planner, with (held-out ratio to K/N, gap to its bound)."""
    planning, held_out, shared = halves(trace, seed)
    shared["nodes"] = NUM_NODES
    problem = node_problem(trace, **shared)
    made, scores = {}, {}
    for name, share in plans:
        if name == "eplb" and trace.header.num_experts % NUM_NODES:
            continue
        memory = {} if name in ("mirror", "row_split", "round_robin") else {"extra_memory": share}
        plan = NODE_PLANNERS[name](
            trace, machine=machine, score=False, **memory, **shared, **_FEWER_VISITS.get(name, {})
        )
        masks = masks_of_plan(plan)
        score = node_score(problem.test, masks, problem.times, problem.layer_weight)
        made[name, share] = plan
        scores[name, share] = (score.ratio, score.mean / bound(problem, masks) - 1)
    return Planned(made, scores, planning, held_out, steps_name(shared))


def fitting_layers(layout: ExpertLayout, num_experts: int, most: int, forms: int = 3) -> int:
    """Layers whose experts fit in ``forms`` copies: at least one."""
    memory = min(MOST_BYTES, free_memory_bytes() // 3)
    return int(max(1, min(most, memory // (forms * num_experts * layout.expert_bytes))))


def core_bound(
    name: str, planned: Planned, times: ExpertTimes, *, seconds: float = 30.0, num_steps: int | None = None,
    seed: int = 0, tell: Callable[[str], None] = lambda text: None,
) -> CoreBound:  # fmt: skip
    """Predict each plan from ``times``, then run all by turns: ``num_steps`` steps, by default so many that about
    ``ROUNDS`` rounds fit into ``seconds``. Raises ``RuntimeError`` where other bytes were read."""
    isa, weight_format, activation = times.kernel.split("/")
    layout = ExpertLayout(times.hidden_size, times.intermediate_size, weight_format)  # type: ignore[arg-type]
    header = planned.held_out.header
    with Pool(NUM_NODES, virtual_nodes=NUM_NODES) as pool:
        num_layers = fitting_layers(layout, header.num_experts, min(2, header.num_layers))
        placed = PlacedLayers(
            layout, num_layers, header.num_experts, pool, isa=isa, activation=activation  # type: ignore[arg-type]
        )  # fmt: skip
        num_steps = num_steps or _fitting_steps(planned, times, num_layers, seconds)
        held_out = single_tokens(planned.held_out, num_steps, seed=seed)
        steps, num_steps = ids_of_steps(held_out, num_layers), held_out.num_tokens
        layers = {key: placed.of(plan) for key, plan in planned.plans.items()}
        entries = {key: placed.entries(of_plan, steps) for key, of_plan in layers.items()}
        predicted = {key: 1e3 * each.seconds(times) / num_steps for key, each in entries.items()}
        known = ids_of_steps(single_tokens(planned.planning, PLANNING_STEPS, seed=seed), num_layers)
        beforehand = {
            key: 1e3 * placed.entries(of_plan, known).seconds(times) / len(known) for key, of_plan in layers.items()
        }
        tell(f"{name}: {len(layers)} plans predicted, {num_layers} layers, {num_steps} steps")
        before = {key: counted_bytes(of_plan) for key, of_plan in layers.items()}
        same = SameExperts(placed, seed=seed)
        same_s: list[tuple[np.ndarray, np.ndarray]] = []
        keys = list(layers)
        timed = by_turns(
            lambda plan, step: placed.run(layers[keys[plan]], [steps[step]]), len(keys), num_steps,
            seconds=seconds, seed=seed, after_round=lambda: same_s.append((same.times(), same.times(1))),
        )  # fmt: skip
        for key, of_plan in layers.items():
            read, expected = counted_bytes(of_plan) - before[key], (timed.num_rounds + 1) * entries[key].bytes_of_node
            if not np.array_equal(read, expected):
                raise RuntimeError(
                    f"kernels read {read} bytes under {key}, expected {expected}: a bug of moelab, please report it"
                )
    measured = timed.at_one_speed()
    low, high = 1e3 * np.quantile(measured.drawn_mean_s, (0.025, 0.975), axis=0)
    rows = [
        PlanRow(
            *key, *planned.scores[key], predicted[key], beforehand[key],
            float(1e3 * measured.mean_s[n]), (float(low[n]), float(high[n])),
        )
        for n, key in enumerate(keys)
    ]  # fmt: skip
    of_two, of_one = (scaling(rounds) for rounds in zip(*same_s[1:], strict=True))
    told = np.array([row.predicted_ms for row in rows])
    return CoreBound(
        trace=name, steps=planned.steps, kernel=times.name, num_layers=num_layers, num_steps=num_steps,
        num_requests=len(np.unique(held_out.tokens.request)), times=timed, scaling=of_two, scaling_of_one=of_one,
        rows=rows,
        ranking=ranking(told, measured), raw=ranking(told, timed),
        beforehand=ranking(np.array([row.beforehand_ms for row in rows]), measured),
        within={
            share: ranking(told[of_share], measured.of(of_share))
            for share in sorted({share for _, share in keys})
            if len(of_share := np.flatnonzero([share == each for _, each in keys])) > 1
        },
    )  # fmt: skip


def _fitting_steps(planned: Planned, times: ExpertTimes, num_layers: int, seconds: float) -> int:
    step_s = num_layers * planned.held_out.header.top_k / NUM_NODES * 1.2 * times.expert_s[1]
    fewest = max(FEWEST_STEPS, len(planned.plans))  # so that no two plans are at one step in a turn
    return int(np.clip(seconds / ROUNDS / len(planned.plans) / step_s, fewest, MOST_STEPS))
