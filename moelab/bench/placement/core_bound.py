"""Judgement (a), core-bound: the generic kernels, so that each virtual node is a server of its own.  Floor 6.

Two virtual nodes of one core each share their memory, but the unmodified ``generic`` kernels compute more slowly than
memory delivers: what a node has to do decides, as on real nodes. That this holds is measured (``scaling``: the time of
the same experts on one node over that on two). Plans are made on half of the requests, predicted on steps of the other
half from what was calibrated before, and then run by turns. Weights are generated, at a real expert shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from moelab.bench.placement.lockstep import ids_of_steps, lockstep
from moelab.bench.placement.placed import PlacedLayers, counted_bytes
from moelab.bench.placement.rank import Ranking, ranking
from moelab.bench.placement.same_experts import SameExperts
from moelab.calibration.rounds import in_rounds
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.free_memory import free_memory_bytes
from moelab.domain.machine import Machine
from moelab.domain.plan import Plan
from moelab.domain.trace import Phase, Trace
from moelab.kernels import ExpertLayout, Pool
from moelab.planner import NODE_PLANNERS
from moelab.planner.node_plan import masks_of_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.node_score import node_score
from moelab.planner.static_plan import of_phase, split
from moelab.source_stamp import stamp_of_room

NUM_NODES = 2
HELD_OUT = 0.5
MOST_BYTES = 4_000_000_000
ROUNDS = 9
PLANNING_STEPS = 400
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


@dataclass(frozen=True, eq=False)
class PlanRow:
    """One plan. Milliseconds of one step through the layers that ran: ``beforehand_ms`` predicted on the planning half,
    ``measured_ms`` [rounds] at one speed, ``raw_ms`` as they were; objective and gap on all held-out layer-steps."""

    planner: str
    extra_memory: float
    heldout_ratio_to_ideal: float
    gap: float
    predicted_ms: float
    beforehand_ms: float
    measured_ms: np.ndarray
    raw_ms: np.ndarray

    @property
    def measured(self) -> tuple[float, float, float]:
        """(median, lower, upper quartile) over rounds."""
        low, middle, high = np.percentile(self.measured_ms, (25, 50, 75))
        return float(middle), float(low), float(high)


@dataclass(frozen=True, eq=False)
class CoreBound:
    """``scaling`` [rounds], ``scaling_of_one`` with one expert of each node in a step, the shortest call; ``kernel``
    and shape that ran; ``steps``: what a step is. ``ranking`` by what is predicted of the steps that run, ``raw`` the
    same over times as they were, ``beforehand`` by what the planning half says, on which the plans were made."""

    trace: str
    steps: str
    kernel: str
    num_layers: int
    num_steps: int
    num_rounds: int
    scaling: np.ndarray
    scaling_of_one: np.ndarray
    rows: list[PlanRow]
    ranking: Ranking
    raw: Ranking
    beforehand: Ranking


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
        scores[name, share] = (score.ratio, score.mean / _bound(problem, masks) - 1)
    return Planned(made, scores, planning, held_out, steps_name(shared))


def _bound(problem: Any, masks: np.ndarray) -> float:
    from moelab.planner.node_plan import bound

    return bound(problem, masks)


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
        steps = ids_of_steps(lockstep(planned.held_out, 1, num_steps, seed=seed), num_layers)
        layers = {key: placed.of(plan) for key, plan in planned.plans.items()}
        entries = {key: placed.entries(of_plan, steps) for key, of_plan in layers.items()}
        predicted = {key: 1e3 * each.seconds(times) / num_steps for key, each in entries.items()}
        known = ids_of_steps(lockstep(planned.planning, 1, PLANNING_STEPS, seed=seed), num_layers)
        beforehand = {
            key: 1e3 * placed.entries(of_plan, known).seconds(times) / len(known) for key, of_plan in layers.items()
        }
        tell(f"{name}: {len(layers)} plans predicted, {num_layers} layers, {num_steps} steps")
        before = {key: counted_bytes(of_plan) for key, of_plan in layers.items()}
        names = {f"{planner} {share}": (planner, share) for planner, share in layers}
        same = SameExperts(placed, seed=seed)
        cases: dict[str, Callable[[], float]] = {
            text: partial(same.beside, text, partial(placed.run, layers[key], steps)) for text, key in names.items()
        }
        cases |= {"scaling": same.scaling, "scaling of one": partial(same.scaling, 1)}
        values = in_rounds(cases, seconds=seconds, seed=seed)
        runs = len(values["scaling"]) + 1
        for key, of_plan in layers.items():
            if not np.array_equal(counted_bytes(of_plan) - before[key], runs * entries[key].bytes_of_node):
                raise RuntimeError(
                    f"kernels read {counted_bytes(of_plan) - before[key]} bytes under {key}, expected "
                    f"{runs * entries[key].bytes_of_node}: a bug of moelab, please report it"
                )
    rows = [
        PlanRow(
            planner, share, *planned.scores[planner, share], predicted[planner, share], beforehand[planner, share],
            1e3 * same.at_one_speed(text, values[text]) / num_steps, 1e3 * values[text] / num_steps,
        )
        for text, (planner, share) in names.items()
    ]  # fmt: skip
    measured = np.stack([row.measured_ms for row in rows])
    return CoreBound(
        trace=name,
        steps=planned.steps,
        kernel=times.name,
        num_layers=num_layers,
        num_steps=num_steps,
        num_rounds=runs - 1,
        scaling=values["scaling"],
        scaling_of_one=values["scaling of one"],
        rows=rows,
        ranking=ranking(np.array([row.predicted_ms for row in rows]), measured),
        raw=ranking(np.array([row.predicted_ms for row in rows]), np.stack([row.raw_ms for row in rows])),
        beforehand=ranking(np.array([row.beforehand_ms for row in rows]), measured),
    )


def _fitting_steps(planned: Planned, times: ExpertTimes, num_layers: int, seconds: float) -> int:
    step_s = num_layers * planned.held_out.header.top_k / NUM_NODES * 1.2 * times.expert_s[1]
    of_plan_s = seconds / ROUNDS / len(planned.plans) - SameExperts.experts_beside * times.expert_s[1]
    return int(np.clip(of_plan_s / step_s, FEWEST_STEPS, MOST_STEPS))
