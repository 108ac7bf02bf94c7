"""Fits ``ExpertTimes`` to measured calls by non-negative least squares of relative errors. Floor 3.

    call on one node = layer_s + tokens x token_s + distinct experts x expert_s[tokens of each]

over the medians of all kinds of calls. Pieces are ratios to as many whole experts that run beside them, nodes ratios
to the first node beside them; nodes that are within ``SAME_RATE`` of it in everything count as its equals. What is
left of calls on several nodes is one share for each number of nodes, over the read rate of its round, so that a
machine that changes its memory's speed meanwhile changes nothing. Lawson and Hanson (1974) by SciPy.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from moelab.calibration.expert_calls import TOKENS, ExpertCalls
from moelab.cost_model.node_time import entry_s, fluid, read_shares
from moelab.domain.expert_times import SAME_RATE, BusyNodes, ExpertTimes, NodeTimes
from moelab.domain.spread import Spread

SHARPNESSES = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0)
USUAL_SHARPNESS = 4.0  # what kernels want where rounds tell: docs/log.md
_AS_GOOD = 1e-3  # errors of rounds that differ by less say nothing
_LEAST_OF_WHOLE = 0.5  # that pieces take, whatever a disturbed round says
_MOST_OVERHEAD = 0.75  # of a call
_LEAST_SHARED = 0.01  # of a call, where the nodes it is on work together
_NOISE = 2.0  # nor by less than so many times what a median error of n calls is uncertain by, of the error: 1 / sqrt(n)


def fit(calls: ExpertCalls, kernel: str) -> ExpertTimes:
    """Raises ``ValueError`` where a call took no time."""
    rows, measured = _rows(calls)
    if not (measured > 0).all():
        raise ValueError(f"a call of {kernel} took {measured.min()} s, expected more than 0: measure again")
    solution, _ = nnls(rows / measured[:, None], np.ones(len(measured)))
    layer_s, token_s, *expert_s = solution.tolist()
    errors = np.abs(rows @ solution / measured - 1)
    times = ExpertTimes(
        kernel=kernel,
        hidden_size=calls.layout.hidden_size,
        intermediate_size=calls.layout.intermediate_size,
        expert_bytes=calls.layout.expert_bytes,
        workers_of_node=calls.workers_of_node,
        layer_s=layer_s,
        token_s=token_s,
        expert_s=dict(zip(TOKENS, np.maximum.accumulate(expert_s).tolist(), strict=True)),
        piece_factor={
            pieces: max(_ratio(seconds, calls.beside_pieces[pieces], layer_s + token_s), _LEAST_OF_WHOLE)
            for pieces, seconds in calls.pieces.items()
        },
        read_gb_per_s=float(np.median(calls.reads[1])),
        residual=float(np.median(errors)),
        expert_s_spread=_spread(calls, expert_s[0]),
        num_calls=sum(
            len(each)
            for group in (calls.one_node, calls.apart, calls.pieces, calls.busy, calls.of_nodes)
            for each in group.values()
        ),
    )
    times = times.model_copy(update={"nodes": _nodes(calls, times)})
    sharpness = _sharpness(calls, times)
    times = times.model_copy(update={"sharpness": sharpness})
    for busy in range(2, calls.num_nodes + 1):
        times = times.model_copy(update={"busy": times.busy | {busy: _busy(calls, times, busy)}})
    return times


def _rows(calls: ExpertCalls) -> tuple[np.ndarray, np.ndarray]:
    """(features [M, 2 + tokens], seconds [M]) of the medians of the calls on one node."""
    rows, measured = [], []
    kinds = [(tokens, experts, tokens, seconds) for (experts, tokens), seconds in calls.one_node.items()]
    kinds += [(tokens, tokens, 1, seconds) for tokens, seconds in calls.apart.items()]
    for tokens, experts, of_each, seconds in kinds:
        row = np.zeros(2 + len(TOKENS))
        row[0], row[1], row[2 + TOKENS.index(of_each)] = 1, tokens, experts
        rows.append(row)
        measured.append(np.median(seconds))
    return np.array(rows), np.array(measured)


def _spread(calls: ExpertCalls, expert_s: float) -> Spread | None:
    """Of an expert of one token: the rounds' speeds, each the median over calls on the first node alone of what they
    took over what they take. Single calls are noisier than what is predicted of many. None where it takes no time."""
    groups = (calls.one_node, calls.apart, calls.pieces)
    slower = np.median([seconds / np.median(seconds) for group in groups for seconds in group.values()], axis=0)
    return Spread.of(slower).scaled(expert_s / float(np.median(slower))) if expert_s else None


def _ratio(seconds: np.ndarray, beside: np.ndarray, overhead_s: float) -> float:
    """Median over rounds of calls less ``overhead_s`` over those beside them less the same.

    Where others hold the cores, the fitted overhead can be longer than whole calls. What is left of them would be
    noise or nothing, so from ``_MOST_OVERHEAD`` of the shorter calls on it is not taken off: the ratio is of whole
    calls then, nearer to 1 than what they work is.
    """
    shorter = np.minimum(seconds, beside)
    if overhead_s > _MOST_OVERHEAD * np.median(shorter):
        overhead_s = 0.0
    overhead = np.minimum(overhead_s, _MOST_OVERHEAD * shorter)  # of single short calls
    return float(np.median((seconds - overhead) / (beside - overhead)))


def _nodes(calls: ExpertCalls, times: ExpertTimes) -> tuple[NodeTimes, ...]:
    """Every node against the first, medians over rounds; exactly as the first where all are alike."""
    nodes = []
    for node, rates in calls.reads_of_nodes.items():
        factor = {}
        for number, tokens in calls.of_nodes:
            if number != node:
                continue
            if node == 0:
                factor[tokens] = 1.0
                continue
            both = (calls.of_nodes[node, tokens], calls.beside_nodes[node, tokens])
            factor[tokens] = _ratio(*both, times.layer_s + tokens * times.token_s)
        rate = times.read_gb_per_s * float(np.median(rates / calls.reads_of_nodes[0]))
        nodes.append(NodeTimes(workers=calls.workers[node], factor=factor, read_gb_per_s=rate))
    figures = [value for each in nodes for value in (*each.factor.values(), each.read_gb_per_s / times.read_gb_per_s)]
    alike = all(abs(value - 1) <= SAME_RATE for value in figures) and len({each.workers for each in nodes}) < 2
    if alike:
        same = {"factor": {1: 1.0}, "read_gb_per_s": times.read_gb_per_s}
        return tuple(each.model_copy(update=same) for each in nodes)
    return tuple(nodes)


def first_node_rates(times: ExpertTimes, busy: int, slowest: np.ndarray) -> np.ndarray:
    """GB/s [rounds] that the first node has while so many read: the slowest one's, by what it reads alone."""
    return slowest / read_shares(times)[:busy].min() if times.nodes else slowest


def _two_each_s(times: ExpertTimes, tokens: int, busy: int, rate: float) -> tuple[float, float]:
    """Two experts on each of so many nodes: (seconds while all of them work, seconds from when the first is done).

    Unequal nodes are done one after the other. How much is left of each then does not depend on how fast all are.
    """
    if not times.nodes:
        return 2 * float(entry_s(times, 1.0, tokens, busy=busy, read_gb_per_s=rate)), 0.0
    node, one = np.arange(busy), np.ones(busy)
    rates = {busy: rate}
    work = [
        2 * entry_s(times, one, tokens, busy=number, read_gb_per_s=rates.get(number), node=node)
        for number in range(1, busy + 1)
    ]
    all_at_work_s = float(work[-1].min())
    return all_at_work_s, float(fluid(np.array(work)[:, None, :])[0]) - all_at_work_s


def kernel_shares(times: ExpertTimes, busy: int, tokens: int, seconds: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """[rounds]: what the kernels alone and the read rate of the round allow over what calls of two experts on each of
    ``busy`` nodes took, of the part in which all of these work. ``rates``: GB/s of the first node while so many read.
    """
    as_allowed = BusyNodes(read_gb_per_s=1.0, kernel_share=1.0)
    unit = times.model_copy(update={"busy": times.busy | {busy: as_allowed}})
    experts = seconds - np.minimum(times.layer_s + tokens * times.token_s, _MOST_OVERHEAD * seconds)
    shared, rest = np.array([_two_each_s(unit, tokens, busy, rate) for rate in rates]).T
    return shared / np.maximum(experts - rest, _LEAST_SHARED * experts)  # a disturbed round may say that none is left


def _allowed(calls: ExpertCalls, times: ExpertTimes, busy: int) -> dict[int, np.ndarray]:
    """``kernel_shares`` by tokens."""
    rates = first_node_rates(times, busy, calls.reads[busy])
    return {
        tokens: kernel_shares(times, busy, tokens, seconds, rates)
        for (number, tokens), seconds in calls.busy.items()
        if number == busy
    }


def _sharpness(calls: ExpertCalls, times: ExpertTimes) -> float:
    """Of ``SHARPNESSES`` the one under which rounds of fast and of slow memory, few tokens and many, agree best.

    Where nodes hardly slow each other's reads, or memory kept one speed, they agree about alike: then the usual one, or
    what is next to it among those that so few rounds do not tell from the best.
    """
    errors, num_calls = {}, 1
    for sharpness in SHARPNESSES if calls.num_nodes > 1 else ():
        tried = times.model_copy(update={"sharpness": sharpness})
        ratios = np.concatenate(list(_allowed(calls, tried, 2).values()))
        errors[sharpness], num_calls = float(np.median(np.abs(ratios / np.median(ratios) - 1))), len(ratios)
    most = min(errors.values(), default=0.0) * (1 + _NOISE / np.sqrt(num_calls)) + _AS_GOOD
    as_good = [each for each, error in errors.items() if error <= most] or [USUAL_SHARPNESS]
    return min(as_good, key=lambda each: abs(np.log(each / USUAL_SHARPNESS)))


def _busy(calls: ExpertCalls, times: ExpertTimes, busy: int) -> BusyNodes:
    """Share of what kernels and reads allow: medians over rounds, then over the numbers of tokens."""
    shares = [float(np.median(ratios)) for ratios in _allowed(calls, times, busy).values()]
    rates = first_node_rates(times, busy, calls.reads[busy])
    return BusyNodes(read_gb_per_s=float(np.median(rates)), kernel_share=float(np.median(shares)))
