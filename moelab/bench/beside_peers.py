"""Our expert layer and a peer's by turns in one process, each step between two reads: who is faster, by how much.

W1 of ``kernels`` at several batch sizes, in ``rounds``. The peer gets the numbers of our int4 weights as float32 and
quantises them as it likes; its pool may spin after a step, and ours before it, so there is a pause on both sides of
its step. Floor 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from tqdm.auto import tqdm

from moelab.bench.kernel_row import KernelRow
from moelab.bench.kernels import (
    FLOPS_PER_PAIR,
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    TOP_K,
    generated_experts,
    random_step,
)
from moelab.bench.peers import PEERS
from moelab.bench.peers.peer import Peer
from moelab.bench.read_reference import Read, ReadReference, experts_beside
from moelab.bench.rounds import Side, Step, take_rounds
from moelab.kernels import ExpertArena, NodeArenas, Pool, RoutedExperts, bf16_to_float32
from moelab.kernels.reference import relative_error

NUM_EXPERTS = 24  # 0.6 GB of int4, 2.1 GB of bf16: many times any last-level cache
BATCHES = (1, 4, 16, 128)
# Workers that spin after their work take a core from what follows: a peer's after its step, ours (0.2 ms) before it.
PAUSE_S, OUR_PAUSE_S = 0.08, 0.002


def float_expert(arena: ExpertArena | NodeArenas, expert: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """gate, up, down as float32 of one packed int4 expert."""
    gate, up, down = (
        _floats(packed, scale, columns)
        for (packed, scale), (_, columns) in zip(
            arena.layout.unpack_expert(arena[expert]), arena.layout.shapes, strict=True
        )
    )
    return gate, up, down


def _floats(packed: np.ndarray, scale: np.ndarray, columns: int) -> np.ndarray:
    nibbles = packed.view(np.uint8)  # little endian: byte b of a word has columns 2 b and 2 b + 1
    numbers = np.empty((len(packed), columns), np.float32)
    numbers[:, 0::2] = nibbles & 15
    numbers[:, 1::2] = nibbles >> 4
    numbers -= 8
    numbers.reshape(len(packed), -1, 32)[...] *= bf16_to_float32(scale)[:, :, None]
    return numbers


def rows_beside_peers(seconds: float) -> Iterator[KernelRow]:
    """One row for each peer, thread count and batch; a peer that is not there has one row that says so."""
    with (
        generated_experts("int4_g32", NUM_EXPERTS) as arena,
        Pool() as pool,
        tqdm(PEERS.items(), desc="peers", unit="peer") as bar,
    ):
        for name, kind in bar:
            bar.set_postfix_str(name)
            reason = kind.available()
            if reason is not None:
                yield KernelRow("absent", name=name, reason=reason)
                continue
            # kt-kernel's caller spins beside its workers: fewer of them may be faster.
            for threads in sorted({1, pool.num_workers}) if name.startswith("kt") else [pool.num_workers]:
                experts = partial(float_expert, arena)
                peer = kind(experts, NUM_EXPERTS, HIDDEN_SIZE, INTERMEDIATE_SIZE, threads)
                try:
                    for batch in BATCHES:
                        yield _row(arena, pool, peer, batch, threads, seconds)
                finally:
                    peer.close()


def _row(
    arena: ExpertArena | NodeArenas, pool: Pool, peer: Peer, batch: int, threads: int, seconds: float
) -> KernelRow:
    layout, rng = arena.layout, np.random.default_rng(batch)
    ours = RoutedExperts(layout, arena.addresses, activation="int8", pool=pool, owner=arena)
    reference = ReadReference(
        arena.addresses, arena.layout.expert_bytes, np.zeros(len(arena), np.int64), pool, placed=False
    )
    reference.choose(np.sort(rng.permutation(len(arena))[: 2 * TOP_K]))
    out = np.empty((batch, HIDDEN_SIZE), np.float32)

    def step() -> Step:
        return random_step(rng, batch, len(arena))

    def read(done: np.ndarray, coming: np.ndarray) -> Read:
        return reference.read(experts_beside(rng, len(arena), done, coming, TOP_K))

    x, ids, gates = step()
    error = relative_error(peer.forward(x, ids, gates), ours.forward(x, ids, gates, out))
    sides = Side(peer.forward, OUR_PAUSE_S, PAUSE_S), Side(lambda x, ids, gates: ours.forward(x, ids, gates, out))
    rounds = take_rounds(sides, step, read, seconds)
    peer_s = rounds.seconds[0]
    rates = rounds.num_distinct[0] * peer.weight_bytes_per_expert / peer_s / 1e9
    middle, low, high = np.percentile(rounds.ratios(), (50, 25, 75)).tolist()
    flops, median = batch * TOP_K * FLOPS_PER_PAIR, float(np.median(peer_s))
    return KernelRow(
        kind="peer", name=peer.name, version=peer.version(), weights="its own", activation="its own",
        carried="its own", batch=batch, threads=threads,
        ms_median=1e3 * median, ms_min=1e3 * float(peer_s.min()), ms_max=1e3 * float(peer_s.max()),
        gb_per_s=float(np.median(rates)), read_loop=reference.most_used(rounds.reads),
        gflops=flops / median / 1e9, relative_error=error, num_steps=len(peer_s),
        times_ours=middle, times_ours_quartiles=(low, high), **rounds.beside_reads(0, rates),
    )  # fmt: skip
