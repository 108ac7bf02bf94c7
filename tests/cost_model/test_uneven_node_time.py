"""Time of layer-steps on nodes of unequal speed: against a naive twin, equal nodes to the bit, documents of before."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from moelab.cost_model.node_time import entry_s, layer_steps_s
from moelab.domain.expert_times import BusyNodes, ExpertTimes, NodeTimes
from moelab.domain.machine import Machine, NumaNode

GOLDEN = Path(__file__).parent.parent / "golden" / "machine_v1.json"


def times_of(rng, num_nodes, **changes):
    """Random figures; others slow a node's read, never speed it up."""
    read = float(rng.uniform(5, 50))
    shares = np.sort(rng.uniform(0.3, 1.0, num_nodes - 1))[::-1]
    values = {
        "kernel": "generic/int4_g32/int8", "hidden_size": 64, "intermediate_size": 32, "expert_bytes": 2_000_000,
        "workers_of_node": 1, "layer_s": float(rng.uniform(0, 1e-4)), "token_s": float(rng.uniform(0, 1e-5)),
        "expert_s": {1: float(rng.uniform(1e-4, 1e-3)), 4: 2e-3}, "piece_factor": {2: 1.1, 4: 1.3},
        "read_gb_per_s": read, "sharpness": float(rng.uniform(2, 8)), "residual": 0.0, "num_calls": 1,
        "busy": {n + 2: BusyNodes(read_gb_per_s=read * share, kernel_share=float(rng.uniform(0.8, 1)))
                 for n, share in enumerate(shares)},
    }  # fmt: skip
    return ExpertTimes(**(values | changes))


def nodes_of(rng, times, num_nodes):
    nodes = [NodeTimes(workers=1, factor={1: 1.0}, read_gb_per_s=times.read_gb_per_s)]
    for _ in range(num_nodes - 1):
        factor = {1: float(rng.uniform(0.3, 3)), 4: float(rng.uniform(0.3, 3))}
        nodes.append(NodeTimes(workers=2, factor=factor, read_gb_per_s=float(rng.uniform(5, 50))))
    return tuple(nodes)


def entries_of(rng, num_nodes, num_steps=12, most=20):
    size = int(rng.integers(1, most))
    return {
        "step": rng.integers(0, num_steps, size), "node": rng.integers(0, num_nodes, size),
        "part": rng.choice([1.0, 0.5, 0.25], size), "num_tokens": rng.integers(1, 9, size),
        "tokens_of_step": rng.integers(1, 9, num_steps), "num_nodes": num_nodes,
    }  # fmt: skip


def line(points, x):
    """Straight lines through points, the last beyond."""
    known = sorted(points)
    if x <= known[0]:
        return points[known[0]]
    for a, b in pairwise(known):
        if x <= b:
            return points[a] + (points[b] - points[a]) * (x - a) / (b - a)
    return points[known[-1]]


def twin(times, entries, reads=None, in_turn=False):
    """One layer-step after the other, one node after the other, a clock that jumps to the next end."""
    num_nodes, p = entries["num_nodes"], times.sharpness
    rates = [node.read_gb_per_s for node in times.nodes[:num_nodes]]

    def seconds(node, part, tokens, busy):
        known = sorted(times.expert_s)
        whole = line(times.expert_s, tokens)
        if tokens > known[-1]:
            whole += (tokens - 4) * (times.expert_s[4] - times.expert_s[1]) / 3
        kernel = part * whole * {1.0: 1, 0.5: 1.1, 0.25: 1.3}[part] * line(times.nodes[node].factor, tokens)
        if busy == 1 and 1 not in (reads or {}):
            return kernel
        alone = part * times.expert_bytes / rates[node] / 1e9
        own = min(kernel, alone)
        computing = kernel * (1 - (own / kernel) ** p) ** (1 / p)
        known = times.busy.get(busy)
        if busy in (reads or {}):
            rate = reads[busy] * rates[node] * num_nodes / sum(rates)  # a mean over nodes, shared out as alone
        else:
            rate = known.read_gb_per_s * rates[node] / times.read_gb_per_s
        read = part * times.expert_bytes / rate / 1e9
        if busy > 1:
            read = max(read, alone)
        return (computing**p + (own * read / alone) ** p) ** (1 / p) / (known.kernel_share if known else 1)

    out = []
    for number, tokens in enumerate(entries["tokens_of_step"]):
        mine = [
            (int(n), float(part), int(t))
            for s, n, part, t in zip(*(entries[k] for k in ("step", "node", "part", "num_tokens")), strict=True)
            if s == number
        ]
        todo = {n: [each for each in mine if each[0] == n] for n in {n for n, _, _ in mine}}
        left, spent = dict.fromkeys(todo, 1.0), 0.0
        if in_turn:
            spent = max((sum(seconds(*each, 1) for each in group) for group in todo.values()), default=0.0)
            left = {}
        while left:
            full = {n: sum(seconds(*each, len(left)) for each in todo[n]) for n in left}
            tick = min(left[n] * full[n] for n in left)
            spent += tick
            left = {n: rest for n in left if (rest := left[n] - tick / full[n]) > 1e-9}
        out.append(times.layer_s + times.token_s * float(tokens) + spent)
    return out


@pytest.mark.parametrize("num_nodes", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_against_a_naive_twin(seed, num_nodes):
    rng = np.random.default_rng([seed, num_nodes])
    times = times_of(rng, num_nodes)
    times = times.model_copy(update={"nodes": nodes_of(rng, times, num_nodes)})
    entries = entries_of(rng, num_nodes)
    assert layer_steps_s(times, **entries) == pytest.approx(twin(times, entries), rel=1e-9)
    assert layer_steps_s(times, in_turn=True, **entries) == pytest.approx(twin(times, entries, in_turn=True), rel=1e-9)
    reads = {num_nodes: float(rng.uniform(1, 10))}
    found = layer_steps_s(times, read_gb_per_s=reads, **entries)
    assert found == pytest.approx(twin(times, entries, reads), rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_equal_nodes_change_no_bit(seed):
    """Said to be equal, or scaled by rates that are, or by nobody: one number."""
    rng = np.random.default_rng(seed)
    num_nodes = int(rng.integers(1, 5))
    times = times_of(rng, num_nodes)
    entries = entries_of(rng, num_nodes)
    same = NodeTimes(workers=1, factor={1: 1.0, 4: 1.0}, read_gb_per_s=times.read_gb_per_s)
    rate = {num_nodes: float(rng.uniform(1, 50))}
    for reads in (None, rate):
        plain = layer_steps_s(times, read_gb_per_s=reads, **entries)
        said = layer_steps_s(times.model_copy(update={"nodes": (same,) * num_nodes}), read_gb_per_s=reads, **entries)
        np.testing.assert_array_equal(plain, said)
    assert times.scaled([7.0] * num_nodes, "nobody") is times
    assert times.scaled([7.0, 7.3], "noise") is times


@pytest.mark.parametrize("seed", range(6))
def test_a_faster_node_is_never_slower(seed):
    """Where one node alone gets faster no layer-step takes longer, and those without work there take as long."""
    rng = np.random.default_rng(seed)
    times = times_of(rng, 3)
    nodes = nodes_of(rng, times, 3)
    entries = entries_of(rng, 3)
    before = layer_steps_s(times.model_copy(update={"nodes": nodes}), **entries)
    faster = nodes[2].model_copy(update={"factor": {n: 0.5 * f for n, f in nodes[2].factor.items()}})
    after = layer_steps_s(times.model_copy(update={"nodes": (*nodes[:2], faster)}), in_turn=False, **entries)
    idle = ~np.isin(np.arange(12), entries["step"][entries["node"] == 2])
    np.testing.assert_array_equal(before[idle], after[idle])
    alone = {"in_turn": True, **entries}
    assert (
        layer_steps_s(times.model_copy(update={"nodes": (*nodes[:2], faster)}), **alone)
        <= layer_steps_s(times.model_copy(update={"nodes": nodes}), **alone)
    ).all()


def machine_of(times, rates):
    nodes = tuple(
        NumaNode(name=f"node{n}", cores=(n,), memory_bytes=1, read_gb_per_s={} if rate is None else {1: rate})
        for n, rate in enumerate(rates)
    )
    return Machine(name="paper", source="calibration", nodes=nodes, expert_times=(times,))


def test_times_of_one_node_are_scaled_by_read_rates_and_say_so():
    times = times_of(np.random.default_rng(0), 2)
    scaled = machine_of(times, [30.0, 10.0]).times_of(64, 32)
    assert scaled.name.endswith("nodes scaled by read rates of paper")
    for part, tokens in ((1.0, 1), (0.5, 3)):
        first, second = (float(entry_s(scaled, part, tokens, node=n)) for n in (0, 1))
        assert first == float(entry_s(times, part, tokens))
        assert second == pytest.approx(3 * first)
    for rates in ([30.0, 29.0], [30.0, None]):
        assert machine_of(times, rates).times_of(64, 32) is times
    measured = times.model_copy(update={"nodes": nodes_of(np.random.default_rng(1), times, 2)})
    assert machine_of(measured, [30.0, 10.0]).times_of(64, 32) is measured  # what was measured is not scaled
    assert "scaled" not in measured.name


def test_workers_that_were_measured():
    times = times_of(np.random.default_rng(0), 3)
    assert times.has_workers([1, 1, 1])
    assert not times.has_workers([1, 1, 2])  # before: the first node's alone were asked for
    nodes = nodes_of(np.random.default_rng(0), times, 3)
    assert times.model_copy(update={"nodes": nodes}).has_workers([1, 2, 2])
    assert not times.model_copy(update={"nodes": nodes}).has_workers([1, 1, 1])
    scaled = times.scaled([3.0, 1.0], "rates")
    assert scaled.has_workers([1, 4])
    assert not scaled.has_workers([2, 4])


def test_nodes_without_times_are_refused():
    rng = np.random.default_rng(0)
    times = times_of(rng, 2)
    times = times.model_copy(update={"nodes": nodes_of(rng, times, 2)})
    with pytest.raises(ValueError, match="nodes are 3, expected at most the 2 whose times"):
        layer_steps_s(times, **entries_of(rng, 3))


def test_a_calibration_of_before_loads_for_ever(tmp_path):
    """Figures of the code that wrote it; its nodes differ in rate, so that whoever asks gets them scaled, and told."""
    machine = Machine.load(GOLDEN)
    assert machine.fingerprint() == "89cb2ef05b103d16"
    (times,) = machine.expert_times
    assert (times.nodes, times.scaled_by) == ((), None)
    entries = {
        "step": np.array([0, 0, 0, 1, 1]), "node": np.array([0, 0, 1, 1, 0]), "part": np.array([1, 0.5, 1, 1, 0.5]),
        "num_tokens": np.array([1, 2, 1, 1, 3]), "tokens_of_step": np.array([2, 1]), "num_nodes": 2,
    }  # fmt: skip
    seconds = layer_steps_s(times, **entries)
    assert seconds.tolist() == pytest.approx([0.0012043538586339428, 0.0007170996428959626], rel=1e-13)
    assert (layer_steps_s(machine.times_of(64, 256), **entries) > 1.4 * seconds).any()
    machine.save(tmp_path / "machine.json")
    assert Machine.load(tmp_path / "machine.json") == machine
    measured = times.model_copy(update={"nodes": nodes_of(np.random.default_rng(0), times, 2)})
    other = machine.model_copy(update={"expert_times": (measured,)})
    assert other.fingerprint() != machine.fingerprint()
    other.save(tmp_path / "machine.json")
    assert Machine.load(tmp_path / "machine.json") == other
