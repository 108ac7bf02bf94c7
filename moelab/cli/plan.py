"""``moelab plan TRACE --planner NAME --out PLAN``: find a placement and write it down.

Planners of a fast tier take ``--slots``, planners of NUMA nodes ``--nodes`` and ``--extra-memory`` or ``--node-bytes``,
``joint`` both.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moelab.cli.output import print_json, print_rows
from moelab.cli.plan_certificates import FLAGS as CERTIFICATE_FLAGS
from moelab.cli.plan_certificates import add_certificates, certificates_of, check_certificates, print_certificates
from moelab.cli.trace_arguments import PHASES, add_machine, add_trace, check_phase, load_trace

if TYPE_CHECKING:
    from moelab.domain.plan import Plan

NODE_FLAGS = ("--nodes", "--extra-memory", "--node-bytes", "--node-rates", "--batch", "--steps", "--certificate",
              *CERTIFICATE_FLAGS)  # fmt: skip
HELP = "find a placement for a trace and write the plan"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trace(parser)
    add_machine(parser)
    parser.add_argument(
        "--planner", metavar="NAME", help="default: frequency for --slots, anneal where --nodes or the like is given"
    )
    parser.add_argument("--slots", type=int, nargs="+", metavar="N", help="slots per layer of each fast tier")
    parser.add_argument(
        "--no-keep-home", action="store_true", help="joint: experts on a fast tier give up their copy in RAM"
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="NUMA nodes (default: the machine's, or 2)")
    parser.add_argument(
        "--extra-memory", type=float, metavar="F", help="memory for copies, a fraction of all experts' bytes"
    )
    parser.add_argument(
        "--node-bytes", nargs="+", metavar="SIZE", help="what each node may hold (12GB, 10GiB), instead of extra memory"
    )
    parser.add_argument(
        "--node-rates", type=float, nargs="+", metavar="GB/S", help="read rate of each node (default: the machine's)"
    )
    parser.add_argument("--expert-bytes", metavar="SIZE", help="of one expert, where the trace does not say it")
    parser.add_argument("--batch", type=int, metavar="B", help="requests decoded together that were recorded alone")
    parser.add_argument(
        "--steps", choices=("step", "token"), help="steps as recorded (default), or each token its own (prefill traces)"
    )
    add_certificates(parser)
    parser.add_argument("--phase", choices=PHASES, help="tokens to take (default: decode; for nodes what there is)")
    parser.add_argument(
        "--held-out", type=float, default=0.25, metavar="F", help="share of the requests to score on (default: 0.25)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    parser.add_argument("--out", required=True, metavar="PLAN", help="the plan file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the plan that --out names")


def run(options: argparse.Namespace) -> None:
    from moelab.domain.units import parse_bytes
    from moelab.planner import FAST_TIER_PLANNERS, PLANNERS

    name = options.planner or ("anneal" if _of_nodes(options) and not options.slots else "frequency")
    if name not in PLANNERS:
        raise ValueError(f"planner is {name}, expected one of {', '.join(PLANNERS)}")
    if not Path(options.out).resolve().parent.is_dir():
        raise ValueError(f"--out is {options.out}, but its folder does not exist: create it or choose another path")
    if Path(options.out).exists() and not options.overwrite:
        raise ValueError(f"--out is {options.out}, which is there, expected a new file: --overwrite, or another name")
    _check_budget(options, name, name in FAST_TIER_PLANNERS)
    trace = load_trace(options.trace)
    shared: dict[str, Any] = {"held_out": options.held_out, "seed": options.seed}
    knows_bytes = 0 not in trace.header.expert_bytes
    if options.expert_bytes:
        shared["expert_bytes"], knows_bytes = parse_bytes(options.expert_bytes), True
    check_certificates(options, trace.header.num_layers)
    proof: dict[str, Any] = {}
    printed: dict[str, Any] = {}
    if name in FAST_TIER_PLANNERS:
        from moelab.calibration import resolve_machine

        # A machine that was named is an order; this one, by default, adds a time where there can be one.
        machine = resolve_machine(options.machine) if knows_bytes or options.machine else None
        plan = PLANNERS[name](
            trace, slots_per_layer=options.slots[0], phase=check_phase(trace, options.phase or "decode"),
            machine=machine, **shared,
        )  # fmt: skip
    else:
        shared |= _node_options(options, trace)
        if options.no_keep_home:
            shared["keep_home"] = False
        slots = {"fast_slots": [each * trace.header.num_layers for each in options.slots]} if options.slots else {}
        plan = PLANNERS[name](trace, **slots, **shared)
        if options.certificate:
            proof, printed = certificates_of(trace, plan, shared, options)
    summary = {**plan.summary(), **printed}
    plan = plan.model_copy(update={"prediction": {**plan.prediction, **proof}})
    plan.save(options.out)
    if options.json:
        print_json({"plan": options.out, "planner": plan.planner, **plan.prediction})
    else:
        print_rows(f"plan written to {options.out}", {**summary, **_without_intervals(plan)})
        if "certificates" in proof:
            print_certificates(proof["certificates"])
        if words := _in_words(plan.prediction):
            print(words)
        if not knows_bytes:
            print("bytes and times: unknown, the trace does not say the bytes of an expert: --expert-bytes SIZE")


def _of_nodes(options: argparse.Namespace) -> list[str]:
    """Flags of NUMA nodes that were given."""
    return [flag for flag in NODE_FLAGS if getattr(options, flag[2:].replace("-", "_")) is not None]


def _in_words(prediction: dict[str, Any]) -> str | None:
    """What a placement on nodes is worth, for people; None for a plan that says no such thing."""
    if "heldout_mean_max" not in prediction:
        return None
    ours, others = prediction["heldout_mean_max"], dict(prediction.get("baseline_mean_max") or {})
    claimed = prediction.get("gain_over") or {}
    mirror = others.pop("mirror", None)
    scored = prediction.get("scored_on", "scored")
    words = [f"{scored}: the fullest node reads {ours:.2f} experts a layer-step; {prediction['ideal']:.2f} at best"]
    for name, mean in others.items():  # no gain is claimed over what may cost more than it reads
        gains = claimed.get(name, 0.0) is not None
        words.append(f"{name} {mean:.2f}" + (f", so that ours takes {_beside(ours, mean)}" if gains else ""))
    if mirror is not None:
        words.append(f"with every expert on every node {mirror:.2f}")
    return "; ".join(words)


def _beside(ours: float, theirs: float) -> str:
    part = f"{abs(ours / theirs - 1):.1%}"
    return "as long" if part == "0.0%" else f"{part} {'less' if ours < theirs else 'more'}"


def _without_intervals(plan: Plan) -> dict[str, str]:
    """What stands in place of an interval that there is none of: why."""
    from moelab.analysis.bootstrap import FEWEST_CLUSTERS

    how, prediction = plan.planner, plan.prediction
    one = how.get("num_requests") == 1
    in_time = "its one request was cut in time" if one else "its requests share steps, so that it was cut in time"
    found = {}
    if prediction.get("heldout_mean_max_interval", "") is None:
        why = {"time": f"none: {in_time}", "none": "none: nothing was held out"}
        fewer = f"none: fewer than {FEWEST_CLUSTERS} held-out clusters"
        found["predicted heldout_mean_max_interval"] = why.get(how["split"], fewer)
        found["predicted ties_with"] = "not known without intervals"
    if prediction.get("train_mean_max_interval", "") is None:
        fewer = f"none: fewer than {FEWEST_CLUSTERS} planning clusters"
        found["predicted train_mean_max_interval"] = f"none: {in_time}" if how["split"] == "time" else fewer
    return found


def _check_budget(options: argparse.Namespace, name: str, is_fast: bool) -> None:
    if is_fast:
        if given := _of_nodes(options):
            from moelab.planner import NODE_PLANNERS

            named = ", ".join(NODE_PLANNERS)
            raise ValueError(f"{', '.join(given)}: planner {name} fills a fast tier; expected one of nodes: {named}")
        if not options.slots or len(options.slots) != 1:
            raise ValueError(f"planner {name} fills one fast tier, expected --slots N; got {options.slots or 'none'}")
    elif (name == "joint") != bool(options.slots):
        says = "needs --slots N of each fast tier" if name == "joint" else "places nodes alone: leave --slots out"
        raise ValueError(f"planner {name} {says}")
    if options.no_keep_home and name != "joint":
        raise ValueError(f"--no-keep-home: expected planner joint, whose fast tiers keep what they hold; got {name}")
    check_certificates(options)


def _node_options(options: argparse.Namespace, trace: Any) -> dict[str, Any]:
    """What all node planners take; the machine only where it was named, because nothing of it is needed."""
    from moelab.calibration import resolve_machine
    from moelab.domain.trace import Phase
    from moelab.domain.units import parse_bytes

    phase = options.phase
    if phase is None:
        phase = "decode" if (trace.tokens.phase == Phase.DECODE).any() else "prefill"
    num_nodes = options.nodes
    for given in (options.node_bytes, options.node_rates):
        num_nodes = num_nodes or (len(given) if given else None)
    return {
        "nodes": num_nodes,
        "extra_memory": options.extra_memory or 0.0,
        "node_bytes": [parse_bytes(size) for size in options.node_bytes] if options.node_bytes else None,
        "node_rates": options.node_rates,
        "batch": options.batch,
        "steps": options.steps or "step",
        "phase": check_phase(trace, phase),
        "machine": resolve_machine(options.machine) if options.machine else None,
    }
