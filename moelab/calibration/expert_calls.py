"""Expert-shaped kernels by turns: whole and in pieces on one node, each node alone, several at once, reads. Floor 3.

Reads and calls on nodes are ``dealt_calls``'s, so that others can make them again; what is on the first node alone, in
other numbers or in pieces, is made like them. Knows which calls there are and runs them in rounds; what they mean is
``fit``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from moelab.calibration.dealt_calls import (
    EXPERTS_OF_NODE,
    READ_OF_NODE,
    TOKENS_AT_ONCE,
    TOKENS_OF_NODES,
    DealtCalls,
    behind_one_s,
)
from moelab.calibration.rounds import in_rounds
from moelab.calibration.shelf import Shelf, pieces_on, touch
from moelab.domain.free_memory import free_memory_bytes
from moelab.domain.plan_copies import whole_on
from moelab.kernels import Activation, ExpertLayout, NodePlacement, Pool, RoutedExperts
from moelab.kernels.pieces import num_units

_SHELF_BYTES = 400_000_000
TOKENS = (1, 2, 3, 4, 6, 8)
PIECES = (2, 4, 8)
ON_ONE_NODE = tuple(
    [(experts, 1) for experts in (1, 2, 4)] + [(2, tokens) for tokens in TOKENS[1:]] + [(1, 4), (4, 2), (1, 8)]
)
"""(distinct experts, tokens of each)."""
APART = (2, 4)
"""Tokens that each have an expert of their own."""


@dataclass(frozen=True)
class ExpertCalls:
    """Seconds by call, float64 [rounds]; ``reads`` GB/s of each node, the slowest, by number of busy nodes.

    ``of_nodes`` by (node, tokens), ``reads_of_nodes`` GB/s by node: each of several nodes alone; ``workers`` [N].
    Kernel calls that are compared have the other just before and after it, for a round is longer than a machine stays
    the same: ``beside_pieces`` the same number of whole experts, ``beside_nodes`` the first node's call; the mean of
    the two.
    """

    layout: ExpertLayout
    num_nodes: int
    workers_of_node: int
    one_node: dict[tuple[int, int], np.ndarray]
    apart: dict[int, np.ndarray]
    pieces: dict[int, np.ndarray]
    beside_pieces: dict[int, np.ndarray]
    busy: dict[tuple[int, int], np.ndarray]
    reads: dict[int, np.ndarray]
    of_nodes: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    beside_nodes: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    reads_of_nodes: dict[int, np.ndarray] = field(default_factory=dict)
    workers: tuple[int, ...] = ()


def measure(
    layout: ExpertLayout, pool: Pool, *, isa: str, activation: Activation, loop: int, seconds: float,
    on_round: Callable[[float], object], seed: int = 0,
) -> ExpertCalls:  # fmt: skip
    """All calls in rounds for about ``seconds``; raises ``MemoryError`` where not even eight experts fit, or those that
    are read at once."""
    num_nodes, units = pool.num_nodes, num_units(layout)
    cuts = [pieces for pieces in PIECES if units % pieces == 0]
    forms = 1 + len(cuts) + (num_nodes - 1)
    memory = min(forms * _SHELF_BYTES, free_memory_bytes() // 3)
    fewest = max(2 * max(APART), READ_OF_NODE * num_nodes)
    num_experts = min(memory // (forms * layout.expert_bytes), max(64, fewest)) // num_nodes * num_nodes
    if num_experts < fewest:
        raise MemoryError(
            f"calibrating needs {fewest} experts of {layout.expert_bytes / 1e6:.1f} MB in {forms} "
            f"forms, free are {free_memory_bytes() / 1e9:.1f} GB: take a smaller --expert-shape"
        )
    rng = np.random.default_rng(seed)
    shelf = Shelf(layout, num_experts, pool)

    def layer(copies: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> RoutedExperts:
        placed = shelf.placement(copies)
        return RoutedExperts(layout, placed.addresses, isa, activation, pool, owner=placed, placement=placed)

    zeros = np.zeros(num_experts, np.int64)
    whole = layer(whole_on(zeros, units))
    spread = layer(whole_on(np.arange(num_experts) % num_nodes, units)) if num_nodes > 1 else whole
    cut = {pieces: layer(pieces_on(num_experts, units, [0] * pieces)) for pieces in cuts}
    for other in (spread, *cut.values()):
        other.share_scratch(whole)
    inputs = rng.standard_normal((max(TOKENS), layout.hidden_size)).astype(np.float32)
    dealt = DealtCalls(spread, loop=loop, rng=rng)

    def together(of: RoutedExperts, experts: int, tokens: int) -> Callable[[], float]:
        return lambda: behind_one_s(of, inputs, np.tile(rng.permutation(num_experts)[:experts], (tokens, 1)), rng)

    def apart(tokens: int) -> Callable[[], float]:
        return lambda: behind_one_s(whole, inputs, rng.permutation(num_experts)[:tokens, None], rng)

    noted: dict[str, list[float]] = {}

    def beside(
        name: str, first: Callable[[], float], call: Callable[[], float], *placed: NodePlacement | None
    ) -> Callable[[], float]:
        def run() -> float:
            for each in placed:
                if each is not None:
                    touch(each)
            if placed:
                call()  # what comes first after touching has cold caches of its own
            before, seconds = first(), call()
            noted.setdefault(name, []).append((before + first()) / 2)
            return seconds

        return run

    cases: dict[str, Callable[[], float]] = {}
    for experts, tokens in ON_ONE_NODE:
        cases[f"one {experts} {tokens}"] = together(whole, experts, tokens)
    for tokens in APART:
        cases[f"apart {tokens}"] = apart(tokens)
    for pieces in cuts:
        name = f"pieces {pieces}"
        cases[name] = beside(
            name, together(whole, EXPERTS_OF_NODE, 1), together(cut[pieces], EXPERTS_OF_NODE, 1),
            whole.placement, cut[pieces].placement,
        )  # fmt: skip
    for busy in range(1, num_nodes + 1):
        cases[f"read {busy}"] = partial(dealt.read_gb_per_s, range(busy))
        for tokens in TOKENS_AT_ONCE if busy > 1 else ():
            cases[f"busy {busy} {tokens}"] = partial(dealt.call_s, range(busy), tokens)
    nodes = range(num_nodes if num_nodes > 1 else 0)
    for node in nodes:
        cases[f"read of {node}"] = partial(dealt.read_gb_per_s, [node])
        for tokens in TOKENS_OF_NODES:
            name, call = f"node {node} {tokens}", partial(dealt.call_s, [node], tokens)
            cases[name] = beside(name, partial(dealt.call_s, [0], tokens), call) if node else call
    values = in_rounds(cases, seconds=seconds, seed=seed, on_round=on_round)
    noted_s = {name: np.array(each[1:]) for name, each in noted.items()}  # the first round warms up
    return ExpertCalls(
        layout=layout,
        num_nodes=num_nodes,
        workers_of_node=pool.node_of_worker.count(0),
        one_node={key: values[f"one {key[0]} {key[1]}"] for key in ON_ONE_NODE},
        apart={tokens: values[f"apart {tokens}"] for tokens in APART},
        pieces={pieces: values[f"pieces {pieces}"] for pieces in cuts},
        beside_pieces={pieces: noted_s[f"pieces {pieces}"] for pieces in cuts},
        busy={(b, t): values[f"busy {b} {t}"] for b in range(2, num_nodes + 1) for t in TOKENS_AT_ONCE},
        reads={busy: values[f"read {busy}"] for busy in range(1, num_nodes + 1)},
        of_nodes={(n, t): values[f"node {n} {t}"] for n in nodes for t in TOKENS_OF_NODES},
        beside_nodes={(n, t): noted_s[f"node {n} {t}"] for n in nodes[1:] for t in TOKENS_OF_NODES},
        reads_of_nodes={n: values[f"read of {n}"] for n in nodes},
        workers=tuple(pool.node_of_worker.count(node) for node in range(num_nodes)),
    )
