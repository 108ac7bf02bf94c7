"""The fit of expert times: calls made from known times, with noise and memory of two speeds, give them back."""

from dataclasses import replace

import numpy as np
import pytest

from moelab.calibration.expert_calls import APART, ON_ONE_NODE, PIECES, TOKENS, TOKENS_AT_ONCE, ExpertCalls
from moelab.calibration.fit import fit, kernel_shares
from moelab.cost_model.node_time import entry_s, layer_steps_s
from moelab.domain.expert_times import BusyNodes, NodeTimes
from moelab.kernels import ExpertLayout
from tests import placement_times

LAYOUT = ExpertLayout(1024, 512, "int4_g32")
LAYER_S, TOKEN_S = 3e-5, 2e-6
EXPERT_S = {1: 4e-4, 2: 5e-4, 3: 6.2e-4, 4: 8e-4, 6: 1.1e-3, 8: 1.4e-3}
FACTORS = {2: 1.02, 4: 1.05, 8: 1.15}


def calls(seed, *, noise, share=0.9, sharpness=6.0, rounds=60, disturbed=0.0, token_s=TOKEN_S, alone=2.5):
    """Two memory states by turns of ten rounds; ``disturbed``: part of the calls that take three times as long;
    ``alone``: GB/s of a node's read while the other rests."""
    rng = np.random.default_rng(seed)

    def taken(seconds):
        out = np.broadcast_to(seconds, rounds) * np.exp(noise * rng.standard_normal(rounds))
        return np.where(rng.random(rounds) < disturbed, 3 * out, out)

    fast = (np.arange(rounds) // 10) % 2 == 0
    read = np.where(fast, 2.0, 1.1)  # GB/s of each of two nodes: about what the kernels ask for, and less
    memory_s = LAYOUT.expert_bytes / read / 1e9
    alone_s = LAYOUT.expert_bytes / alone / 1e9

    def at_once(tokens):
        """Computing is what is left of the time alone without its read; then the read of two nodes takes its place."""
        computing = EXPERT_S[tokens] ** sharpness - alone_s**sharpness
        return (computing + memory_s**sharpness) ** (1 / sharpness) / share

    return ExpertCalls(
        layout=LAYOUT,
        num_nodes=2,
        workers_of_node=1,
        one_node={(e, t): taken(LAYER_S + t * token_s + e * EXPERT_S[t]) for e, t in ON_ONE_NODE},
        apart={t: taken(LAYER_S + t * token_s + t * EXPERT_S[1]) for t in APART},
        pieces={p: taken(LAYER_S + token_s + 2 * EXPERT_S[1] * FACTORS[p]) for p in PIECES},
        beside_pieces={p: taken(LAYER_S + token_s + 2 * EXPERT_S[1]) for p in PIECES},
        busy={(2, t): taken(LAYER_S + t * token_s + 2 * at_once(t)) for t in TOKENS_AT_ONCE},
        reads={1: taken(alone), 2: read * np.exp(noise / 3 * rng.standard_normal(rounds))},
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_known_times_come_back(seed):
    times = fit(calls(seed, noise=0.01), "generic/int4_g32/int8")
    assert times.kernel == "generic/int4_g32/int8"
    assert times.expert_s == pytest.approx(EXPERT_S, rel=0.03)
    assert times.layer_s == pytest.approx(LAYER_S, rel=0.5)
    assert times.piece_factor == pytest.approx(FACTORS, rel=0.02)
    assert times.busy[2].kernel_share == pytest.approx(0.9, rel=0.03)
    assert 4 <= times.sharpness <= 12
    assert times.residual < 0.01
    assert times.num_calls == 60 * (len(ON_ONE_NODE) + len(APART) + len(PIECES) + len(TOKENS_AT_ONCE))


def with_nodes(made, slower, rate, *, noise=0.01, workers=(1, 1)):
    """Beside ``calls`` each node alone: the second takes ``slower`` [tokens] times as long, and reads at ``rate``."""
    rng = np.random.default_rng(11)
    of_nodes, beside, reads = {}, {}, {}
    drift = 1 + 0.5 * (np.arange(60) % 2 == 0)  # moments of the machine, which calls beside each other share
    for node in (0, 1):
        reads[node] = (rate if node else 2.5) / drift
        for tokens, factor in slower.items():
            seconds = 2 * EXPERT_S[tokens] * (factor if node else 1.0) * np.exp(noise * rng.standard_normal(60))
            of_nodes[node, tokens] = LAYER_S + tokens * TOKEN_S + seconds * drift
            beside[node, tokens] = LAYER_S + tokens * TOKEN_S + 2 * EXPERT_S[tokens] * drift
    return replace(made, of_nodes=of_nodes, beside_nodes=beside, reads_of_nodes=reads, workers=workers)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_are_compared_with_what_ran_beside_them(seed):
    """A machine that is half the time a third slower, in few rounds: other calls of a round say nothing of a call."""
    rng = np.random.default_rng(seed)
    made = calls(seed, noise=0.01, rounds=20)
    for pieces in PIECES:
        slow = np.where(rng.random(20) < 0.5, 1.35, 1.0)
        made.pieces[pieces][:] *= slow
        made.beside_pieces[pieces][:] *= slow
    assert fit(made, "generic/int4_g32/int8").piece_factor == pytest.approx(FACTORS, rel=0.02)


@pytest.mark.parametrize("slower", [{1: 3.0, 4: 2.0}, {1: 0.5, 4: 0.8}])
def test_nodes_that_differ_come_back_node_by_node(slower):
    rate = 2.5 / slower[1]
    times = fit(with_nodes(calls(0, noise=0.01), slower, rate, workers=(2, 1)), "generic/int4_g32/int8")
    first, second = times.nodes
    assert first.factor == {1: 1.0, 4: 1.0}
    assert (first.workers, second.workers) == (2, 1)
    assert second.factor == pytest.approx(slower, rel=0.02)
    assert second.read_gb_per_s == pytest.approx(rate, rel=0.02)
    for tokens, factor in slower.items():
        here, there = (float(entry_s(times, 1.0, tokens, node=node)) for node in (0, 1))
        assert there / here == pytest.approx(factor, rel=0.02)


def test_two_nodes_at_once_that_differ():
    """Nodes that share nothing, the second half as fast: the pair takes what the second takes, so the share is 1."""
    made = calls(0, noise=0.0)
    for (_, tokens), seconds in made.busy.items():
        seconds[:] = LAYER_S + tokens * TOKEN_S + 2 * 2 * EXPERT_S[tokens]
    made = replace(made, reads={1: np.full(60, 2.5), 2: np.full(60, 1.25)})  # the slower one's
    times = fit(with_nodes(made, {1: 2.0, 4: 2.0}, 1.25, noise=0.0), "generic/int4_g32/int8")
    assert times.busy[2].kernel_share == pytest.approx(1.0, rel=0.01)
    assert times.busy[2].read_gb_per_s == pytest.approx(2.5)  # of the first, which nobody slows


@pytest.mark.parametrize("share", [0.6, 0.9, 1.1])
@pytest.mark.parametrize("slower", [1.4, 3.0])
def test_share_of_nodes_that_differ_is_of_what_they_share(share, slower):
    """The second node takes longer: until the first is done both are slowed down, by hand, then it goes on alone."""
    made = calls(0, noise=0.0, sharpness=4.0)
    for (_, tokens), seconds in made.busy.items():
        alone = [2 * EXPERT_S[tokens], 2 * slower * EXPERT_S[tokens]]
        both_s = alone[0] / share  # reads have enough for both
        seconds[:] = LAYER_S + tokens * TOKEN_S + both_s + (1 - both_s * share / alone[1]) * alone[1]
    made = replace(made, reads={1: np.full(60, 2.5), 2: np.full(60, 2.5 / slower)})
    times = fit(with_nodes(made, {1: slower, 4: slower}, 2.5 / slower, noise=0.0), "generic/int4_g32/int8")
    assert times.busy[2].kernel_share == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("busy", [2, 3])
def test_calls_that_a_share_predicts_give_it_back(busy, seed):
    """Nodes of any speeds, one after the other done: what was put into a prediction comes out of its seconds."""
    rng, slower = np.random.default_rng(seed), np.array([1.0, 1.7, 0.6])
    nodes = tuple(NodeTimes(workers=1, factor={1: 1.2 * s, 4: s}, read_gb_per_s=10 / s) for s in slower)
    shares = {
        number: BusyNodes(read_gb_per_s=rng.uniform(3, 9), kernel_share=rng.uniform(0.6, 1.1)) for number in (2, 3)
    }
    times = placement_times.times(nodes=nodes, busy=shares, expert_s={1: 1e-5, 2: 1.3e-5, 4: 2e-5})
    node, tokens = np.repeat(np.arange(busy), 2), int(rng.choice([1, 2, 4]))
    seconds = layer_steps_s(
        times, step=np.zeros(2 * busy, int), node=node, part=np.ones(2 * busy), num_tokens=np.full(2 * busy, tokens),
        tokens_of_step=np.array([tokens]), num_nodes=3,
    )  # fmt: skip
    rates = np.array([shares[busy].read_gb_per_s])
    known = times.model_copy(update={"busy": {number: shares[number] for number in range(2, busy)}})
    assert kernel_shares(known, busy, tokens, seconds, rates) == pytest.approx(shares[busy].kernel_share)
    broken = kernel_shares(known, busy, tokens, seconds / 10, rates)
    assert (broken > shares[busy].kernel_share).all()
    assert np.isfinite(broken).all()


def test_nodes_alike_within_noise_are_one():
    plain = fit(calls(0, noise=0.01), "generic/int4_g32/int8")
    beside = fit(with_nodes(calls(0, noise=0.01), {1: 1.02, 4: 0.98}, 2.45), "generic/int4_g32/int8")
    assert {(n.workers, n.factor[1], len(n.factor), n.read_gb_per_s) for n in beside.nodes} == {
        (1, 1.0, 1, beside.read_gb_per_s)
    }
    assert beside.model_copy(update={"num_calls": plain.num_calls, "nodes": ()}) == plain
    assert beside.scaled([3.0, 1.0], "reads that were disturbed") is beside
    apart = fit(with_nodes(calls(0, noise=0.01), {1: 1.0, 4: 1.0}, 2.5, workers=(2, 1)), "generic/int4_g32/int8")
    assert [node.workers for node in apart.nodes] == [2, 1]


def test_without_noise_exactly():
    times = fit(calls(0, noise=0.0), "generic/int4_g32/int8")
    assert times.expert_s == pytest.approx(EXPERT_S, rel=1e-6)
    assert (times.layer_s, times.token_s) == pytest.approx((LAYER_S, TOKEN_S), rel=1e-4)
    assert times.sharpness == 6.0
    sharper = fit(calls(0, noise=0.0, sharpness=3.0), "generic/int4_g32/int8")
    assert (sharper.sharpness, sharper.busy[2].kernel_share) == (3.0, pytest.approx(0.9, rel=1e-6))
    assert times.busy[2].kernel_share == pytest.approx(0.9, rel=1e-6)
    assert times.residual < 1e-6


def test_a_calibration_in_one_state_of_the_memory_holds_in_the_other():
    """Slow memory throughout the calls; two nodes in fast memory, which has enough for both, take what one takes."""
    slow = calls(7, noise=0.0, share=1.0, sharpness=4.0)
    late = (np.arange(60) // 10) % 2 == 1
    slow = replace(
        slow,
        busy={key: seconds[late] for key, seconds in slow.busy.items()},
        reads={1: slow.reads[1], 2: slow.reads[2][late]},
    )
    times = fit(slow, "generic/int4_g32/int8")
    assert times.sharpness == 4.0
    for tokens, alone_s in EXPERT_S.items():
        assert entry_s(times, 1.0, tokens, busy=2, read_gb_per_s=2.5) == pytest.approx(alone_s, rel=1e-6)


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_few_noisy_rounds_do_not_tell_the_usual_order_from_another(noise):
    """Twenty calibrations of kernels of the usual order: the rounds that told 2 or 20 by luck take it back."""
    found = [fit(calls(seed, noise=noise, sharpness=4.0, rounds=30), "k").sharpness for seed in range(20)]
    assert found.count(4.0) >= 15
    assert min(found) >= 3.0
    assert max(found) <= 6.0


def test_memory_that_has_enough_for_all_says_nothing_about_sharpness():
    """No read is slower for two nodes: every order agrees, and the usual one is taken."""
    even = replace(calls(8, noise=0.003), reads={1: np.full(60, 2.5), 2: np.full(60, 2.5)})
    for (_, tokens), seconds in even.busy.items():
        seconds[:] = LAYER_S + tokens * TOKEN_S + 2 * EXPERT_S[tokens]
    times = fit(even, "generic/int4_g32/int8")
    assert times.sharpness == 4.0
    assert times.busy[2].kernel_share == pytest.approx(1.0, rel=0.02)


def test_an_overhead_that_others_made_leaves_ratios_of_calls():
    """Beside a busy program most calls may end within the fitted overhead: then ratios are of whole calls, neither
    nothing nor a million."""
    made = with_nodes(calls(0, noise=0.01), {1: 1.5, 4: 1.5}, 2.5)
    for group in (made.of_nodes, made.beside_nodes, made.pieces, made.beside_pieces):
        for seconds in group.values():
            seconds *= 0.02
    times = fit(made, "generic/int4_g32/int8")
    whole = {key: float(np.median(made.of_nodes[key] / made.beside_nodes[key])) for key in ((1, 1), (1, 4))}
    assert times.nodes[1].factor == pytest.approx({1: whole[1, 1], 4: whole[1, 4]})
    for pieces in PIECES:
        of_calls = np.median(made.pieces[pieces] / made.beside_pieces[pieces])
        assert times.piece_factor[pieces] == pytest.approx(of_calls)


@pytest.mark.parametrize("token_s", [0.0, 1e-4, 5e-4])
def test_pieces_are_dearer_by_their_factor_whatever_a_token_costs(token_s):
    """A token that costs as much as an expert is the same for pieces and wholes: nothing of it is in their ratio (up
    to three quarters of a call)."""
    times = fit(calls(6, noise=0.0, token_s=token_s), "generic/int4_g32/int8")
    assert times.token_s == pytest.approx(token_s, rel=1e-3, abs=1e-8)
    assert times.piece_factor == pytest.approx(FACTORS, rel=1e-3)


def test_rounds_of_a_machine_that_slows_down_are_its_spread():
    """All calls of a round at one speed, which falls by a fifth from beginning to end; noise of single calls beside it
    is far smaller in the rounds."""
    made, slower = calls(9, noise=0.05), np.linspace(1, 1.25, 60)
    for group in (made.one_node, made.apart, made.pieces):
        for seconds in group.values():
            seconds *= slower
    found = fit(made, "generic/int4_g32/int8")
    spread = found.expert_s_spread
    assert spread.num_rounds == 60
    assert spread.middle == pytest.approx(found.expert_s[1])
    assert spread.low == pytest.approx(np.percentile(slower, 25) / np.median(slower) * spread.middle, rel=0.02)
    assert spread.high == pytest.approx(np.percentile(slower, 75) / np.median(slower) * spread.middle, rel=0.02)
    assert spread.drift == pytest.approx(np.median(slower[-20:]) / np.median(slower[:20]) - 1, abs=0.03)
    steady = fit(calls(9, noise=0.05), "generic/int4_g32/int8").expert_s_spread
    assert steady.width < 0.04 < 0.1 < spread.width
    assert abs(steady.drift) < 0.03


def test_disturbed_rounds_do_not_count():
    """A third of all calls three times as long, at random: medians hardly move."""
    times = fit(calls(3, noise=0.01, disturbed=0.3), "generic/int4_g32/int8")
    assert times.expert_s == pytest.approx(EXPERT_S, rel=0.08)
    assert times.busy[2].kernel_share == pytest.approx(0.9, rel=0.1)


def test_negative_times_do_not_come_out():
    """Calls on one node that get cheaper with their tokens: the fit stays at zero or more, and never falls."""
    odd = calls(4, noise=0.0)
    for (experts, tokens), seconds in odd.one_node.items():
        seconds /= 1 + tokens * experts
    times = fit(odd, "generic/int4_g32/int8")
    values = [times.layer_s, times.token_s, *times.expert_s.values()]
    assert min(values) >= 0
    assert list(times.expert_s) == list(TOKENS)
    assert (np.diff(list(times.expert_s.values())) >= 0).all()


def test_no_time_is_refused():
    broken = calls(5, noise=0.0)
    broken.one_node[1, 1][:] = 0
    with pytest.raises(ValueError, match="expected more than 0"):
        fit(broken, "generic/int4_g32/int8")
