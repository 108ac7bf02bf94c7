"""simulate(trace, plan, machine): replay a trace's routing under a plan and count what moves.  Floor 2.

Initial residents come from the plan's placements, capacity from its fast tiers, the policy from
``plan.policy``; without a fast tier every use is a read at home. Bytes: a miss reads the expert at home;
an upload or prefetch reads it at home too (format of the home) and crosses the link in the fast
tier's format. On several nodes ``dispatch`` chooses the copy that serves, in each layer-step, as replay and engine
ask it (``node_reads``, and ``moving_reads`` where a policy moves experts). Of several fast tiers a policy moves experts
in and out of the first; the others keep what the plan placed there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moelab.cost_model.remote_slowdown import remote_slowdown
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.lossy import Lossy
from moelab.domain.machine import Machine
from moelab.domain.node_slowness import node_slowness
from moelab.domain.plan import Plan
from moelab.domain.trace import CANDIDATE_SCORES, STALE_GATE, Trace, TraceHeader
from moelab.kernels.measured_share import KernelShare, kernel_share
from moelab.policies import POLICIES, Policy
from moelab.policies.contract import contract_error
from moelab.policies.counts import NUM_COLUMNS
from moelab.policies.policy import PolicyState
from moelab.policies.requests import FLOAT_OF_HALF, PHASES, Requests
from moelab.policies.signature import FLAG_OVERFLOW
from moelab.simulator.cache_aware import reroute
from moelab.simulator.home_bytes import home_bytes
from moelab.simulator.loop import run
from moelab.simulator.moving_reads import moving_reads
from moelab.simulator.node_reads import node_reads
from moelab.simulator.node_seconds import calibrated_seconds, seconds_by_rate
from moelab.simulator.predicted import Deferral, predict
from moelab.simulator.result import SimResult
from moelab.store.lossy_costs import LossyRun, tier_of, with_cost

_CHUNK = 2**18  # requests between two looks at the progress bar
_SMALL_CHUNK = 2**15  # where somebody wants to know
_LOG_ROWS = 2**16  # decisions that the log holds beyond the longest single answer


def simulate(
    trace: Trace,
    plan: Plan,
    machine: Machine | str | None = None,
    *,
    phase: str | None = None,
    efficiency: float | None = None,
    log: bool = False,
    by_step: bool = True,
    requests: Requests | None = None,
    policy: Policy | None = None,
    lossy: Lossy | None = None,
    progress: bool = True,
    on_progress: Callable[[float], None] | None = None,
) -> SimResult:
    """Replay the whole trace; rates cover ``phase`` (``prefill``, ``decode``, ``mixed``) or everything.

    ``machine`` (a preset's name will do) adds ``prediction`` (one node: its best read rate times ``efficiency``, kernel
    rate / read rate, by default what the machine measured of the plan's format: ``efficiency_of`` names it; where the
    machine has a fast tier, its link and memory too, with uploads beside the reads; several nodes: ``node_seconds``,
    with ``predicted_by``; of interleaved pages times ``remote_slowdown``). Copies are chosen by the rates that the
    plan was made for, else by the machine's (``slowness_of`` of the result). ``log`` keeps every
    decision, in order of time; without it layers that a policy keeps apart run one after the other, which changes no
    count and no resident, only touch counters within ``state``. ``by_step`` keeps the counts of every step (32 bytes a
    layer-step); sums are always there. ``requests``: the trace's, where they were built before. ``policy``: a record
    that is not in ``POLICIES``, in place of the one the plan names. ``lossy``: cache-aware routing on the recorded
    scores first, an estimate (``cache_aware``), and the time of deferral (``prediction``); the result says so.
    ``on_progress`` is told the part done, 0 to 1, many times a second; what it raises ends the simulation.

    Raises ``ValueError`` where trace, plan and machine do not fit together, and ``PolicyContractError``
    where the policy does what it may not.
    """
    header, machine = trace.header, Machine.given(machine)
    plan.check_matches(what="trace", model=header.model, num_layers=header.num_layers, num_experts=header.num_experts)
    chosen = policy or _policy_of(plan)
    if lossy is not None:
        lossy.check_top_k(header.top_k)
    if lossy is not None and lossy.cache_bias:
        # Deferral reads the same experts, later: it is a matter of time alone.
        routed = replace(lossy, num_deferred=0)
        trace = reroute(trace, plan, routed, policy=policy, requests=requests, progress=progress)
        requests = None
    requests = requests if requests is not None else Requests.of_trace(trace)
    requests.steps_of_phase(phase)  # raises for an unknown name
    state = PolicyState.of_plan(plan, chosen, requests.first_use if chosen.needs_next_use else None)
    sums = np.zeros((len(PHASES), header.num_layers, NUM_COLUMNS + 1), np.int64)
    counts = np.zeros((requests.num_requests if by_step else 0, NUM_COLUMNS), np.int32)
    totals = np.zeros((2, len(PHASES), header.num_layers, header.num_experts), np.int64)
    nodes = tuple(t for t in plan.tiers if t.startswith("node"))
    told = node_slowness(plan, machine, len(nodes))
    slowness = told.of_nodes(len(nodes))
    moving = len(nodes) > 1 and chosen.name != "static"  # then what was resident when is read from the log
    initial = state.resident > 0
    kept = run_requests(
        trace, requests, chosen, state, sums, counts, totals, log=log or moving, progress=progress,
        on_progress=on_progress,
    )  # fmt: skip
    served = excess = copied = None
    if moving and kept is not None:
        served, excess, copied = moving_reads(plan, requests, initial, kept, slowness, header.hidden_size)
    codes = requests.flags & PHASES["mixed"]
    phase_of_step = np.select([codes == code for code in PHASES.values()], range(len(PHASES)), -1).astype(np.int8)
    result = SimResult(
        model=header.model,
        policy=chosen.name,
        plan=plan.fingerprint(),
        synthetic=header.synthetic,
        sums=sums,
        counts=counts.reshape(-1, header.num_layers, NUM_COLUMNS) if by_step else None,
        totals=totals,
        phase_of_step=phase_of_step,
        tokens_of_step=np.diff(requests.first_token),
        node_names=nodes,
        node_bytes=home_bytes(plan, header.hidden_size),
        tier_names=tuple(f.tier for f in plan.fast_tiers),
        link_bytes=state.expert_bytes[1:].copy(),
        state=state,
        phase=phase,
        node_reads=served,
        dispatch_excess=excess,
        node_copies=copied,
        policy_lacks=chosen.lacks(trace.extras),
        log=kept if log else None,
        lossy=None if lossy is None else _said(lossy, plan),
        slowness=told.said,
        slowness_of=told.source,
    )
    if len(nodes) > 1 and chosen.name == "static":
        times = _times(machine, header, plan)
        reads, excess, pieces = node_reads(
            plan, requests, state.resident > 0, slowness, hidden_size=header.hidden_size, keep_pieces=times is not None
        )
        result = replace(result, node_reads=reads, dispatch_excess=excess)
        if times is not None:
            seconds = calibrated_seconds(times, pieces, requests, header.top_k, len(nodes))
            result = replace(result, layer_step_s=seconds, timed_by=times.name)
    if machine is None:
        return result
    share = _share(efficiency, machine, plan)
    if result.node_reads is not None and result.layer_step_s is None:
        result = replace(result, layer_step_s=seconds_by_rate(result, requests, machine, share.share))
    slowdown = {}
    if (factor := _remote_slowdown(plan, machine, len(nodes))) != 1 and result.layer_step_s is not None:
        result = replace(result, layer_step_s=factor * result.layer_step_s)
        slowdown = {"remote_slowdown": factor}
    predicted = predict(result, machine, share.share, _deferral(lossy, header.top_k))
    if "efficiency" in predicted:  # calibrated times have it in them
        predicted["efficiency_of"] = share.kernel
    return replace(result, prediction=predicted | slowdown)


def _share(efficiency: float | None, machine: Machine, plan: Plan) -> KernelShare:
    if efficiency is not None:
        return KernelShare(efficiency, "as given", False)
    home = next(tier for tier in plan.tiers if tier.startswith("node"))
    return kernel_share(machine, plan.format_of_tier[home].weight_format)


def _remote_slowdown(plan: Plan, machine: Machine, num_nodes: int) -> float:
    """1, but for pages that alternate over the nodes: a plan says so by its planner alone, pieces stand for them."""
    if plan.planner.get("name") != "interleave" or num_nodes < 2:
        return 1.0
    factor = remote_slowdown(machine, num_nodes)
    if factor is None:
        raise ValueError(
            f"plan has interleaved pages, which are read from other nodes too; machine {machine.name} has no remote "
            f"read rates of {num_nodes} nodes: calibrate it on its own nodes, or simulate without a machine"
        )
    return factor


def _times(machine: Machine | None, header: TraceHeader, plan: Plan) -> ExpertTimes | None:
    """Calibrated times of the experts' shape on as many nodes as the plan has; ``None`` where nobody measured them."""
    num_nodes = sum(tier.startswith("node") for tier in plan.tiers)
    if machine is None or len(machine.nodes) != num_nodes:
        return None
    return machine.times_of(header.hidden_size, plan.model.moe_intermediate_size or header.moe_intermediate_size)


def run_requests(
    trace: Trace,
    requests: Requests,
    policy: Policy,
    state: PolicyState,
    sums: np.ndarray,
    counts: np.ndarray,
    totals: np.ndarray,
    *,
    log: bool,
    progress: bool,
    on_progress: Callable[[float], None] | None = None,
) -> np.ndarray | None:
    """All requests through the loop: fills ``sums`` [3, L, 9], ``totals`` [2, 3, L, E], changes ``state``.

    ``counts``: [R, 8], or [0, 8] where nobody wants them. Layer by layer where that gives the same (``loop``) and
    no log is kept, whose order is that of the requests. Returns the log of decisions or ``None``. What ``simulate``
    spends beyond this is the plan.
    """
    from tqdm.auto import tqdm

    nothing = np.zeros((0, 0, 0), np.uint16)
    scores, stale = trace.extras.get(CANDIDATE_SCORES), trace.extras.get(STALE_GATE)
    half_scores = nothing if scores is None else np.ascontiguousarray(scores, np.float16).view(np.uint16)
    stale_experts = nothing if stale is None else np.ascontiguousarray(stale, np.uint16)
    num_layers, num_experts = state.resident.shape
    view = state.view()
    buffers = (
        np.zeros(num_experts, np.int32),
        np.zeros(num_experts, np.int32),
        np.zeros(
            (int(np.diff(requests.first_token).max(initial=0)), num_experts) if len(half_scores) else (0, 0), np.float32
        ),
        np.zeros(num_experts, np.int32),
        np.full(num_experts, -1, np.int64),
    )
    longest = num_experts * (2 * num_layers + 1)
    book = np.zeros((longest + _LOG_ROWS if log else 0, 5), np.int64)
    marks = np.zeros(7, np.int64)
    pages: list[np.ndarray] = []
    tally = np.zeros((*totals.shape[1:], 2), np.int32)  # small, so that it stays in the core's cache
    is_by_layer = policy.layers_are_apart and state.free_slots.shape[1] == num_layers and not log
    lying = requests.by_layer() if is_by_layer else requests
    next_use = lying.next_use if policy.needs_next_use else np.zeros(0, np.int64)
    done = 0
    chunk = _CHUNK if on_progress is None else _SMALL_CHUNK
    with tqdm(total=requests.num_requests, desc=f"simulate {policy.name}", delay=1, disable=not progress) as bar:
        while done < requests.num_requests:
            reached = run(
                policy.decide, view, done, min(done + chunk, requests.num_requests), is_by_layer,
                lying.offsets, lying.experts, lying.token_counts, lying.gate_sums, next_use,
                requests.step, requests.first_token, requests.flags, FLAG_OVERFLOW if state.overflow else 0,
                half_scores, stale_experts, FLOAT_OF_HALF, *buffers, counts, sums, tally, book, marks,
            )  # fmt: skip
            if marks[1]:
                raise contract_error(
                    policy.name, int(marks[1]), marks[2:], int(requests.step[marks[2] // requests.num_layers])
                )
            if log:
                pages.append(book[: marks[0]].copy())
                marks[0] = 0
            totals += np.moveaxis(tally, -1, 0)
            tally[:] = 0
            bar.update(reached - done)
            done = reached
            if on_progress is not None:
                on_progress(done / requests.num_requests)
    return np.concatenate([np.zeros((0, 5), np.int64), *pages]) if log else None


def _deferral(lossy: Lossy | None, top_k: int) -> Deferral | None:
    return Deferral(lossy.num_deferred / top_k, lossy.prefill) if lossy is not None and lossy.num_deferred else None


def _said(lossy: Lossy, plan: Plan) -> str:
    run = LossyRun(plan.model.name, plan.model.num_layers, plan.model.num_experts, **tier_of(plan))
    return with_cost(lossy, run) + ("; reads here are an estimate, open loop" if lossy.cache_bias else "")


def _policy_of(plan: Plan) -> Policy:
    if plan.policy.name not in POLICIES:
        raise ValueError(f"plan asks for policy {plan.policy.name}, expected one of {', '.join(POLICIES)}")
    return POLICIES[plan.policy.name]
