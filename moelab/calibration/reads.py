"""Read rates of nodes: by thread count, from other nodes' memory, and of all nodes at once. Floor 3.

Pure reads by the best loop of this machine, from buffers several times the last-level cache. Virtual nodes share one
memory, so that other nodes' memory is the own one and is left out. Does not know kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from moelab.calibration.rounds import in_rounds
from moelab.domain.free_memory import free_memory_bytes
from moelab.domain.spread import Spread
from moelab.kernels import Pool, read_limit, read_nodes
from moelab.kernels.pages import map_pages

_CHUNK_BYTES = 16_000_000
_CACHES = 4  # a buffer is so many times the last-level cache


@dataclass(frozen=True)
class NodeReads:
    """GB/s. ``by_threads`` [node]: of its own memory, alone; ``remote`` [node]: by number of the node that owns it;
    ``at_once``: of each node (their mean) while so many read. ``spread``: middle half over the median, the widest;
    ``spread_of_node``: over the rounds, of its own memory by the best number of threads."""

    by_threads: list[dict[int, float]]
    remote: list[dict[int, float]]
    at_once: dict[int, float]
    loop: int
    spread: float
    spread_of_node: list[Spread]


def node_reads(
    *, virtual_nodes: int | None, cache_bytes: int, seconds: float, on_round: Callable[[float], object]
) -> NodeReads:
    """Measure; the buffers are freed afterwards."""
    with ExitStack() as stack:
        full = stack.enter_context(Pool(virtual_nodes=virtual_nodes))
        num_nodes = full.num_nodes
        most_threads = max(full.node_of_worker.count(node) for node in range(num_nodes))
        counts = sorted({1, *(2**i for i in range(1, 10) if 2**i < most_threads), most_threads})
        pools = {most_threads: full}
        for threads in counts[:-1]:
            pools[threads] = stack.enter_context(Pool(threads * num_nodes, virtual_nodes=virtual_nodes))
        size = min(_CACHES * max(cache_bytes, 32 << 20), free_memory_bytes() // (4 * num_nodes))
        num_chunks = max(2, size // _CHUNK_BYTES)
        memory = [map_pages(num_chunks * _CHUNK_BYTES, node).memory for node in full.memory_node_of_node]

        def touch(worker: int, num_workers: int) -> None:
            for each in memory[worker::num_workers]:
                each[...] = 1

        full.run(touch)
        chunks = [each.ctypes.data + _CHUNK_BYTES * np.arange(num_chunks) for each in memory]
        loop = read_limit(chunks[0], _CHUNK_BYTES, full, rounds=2, node_of_address=np.zeros(num_chunks, int)).loop

        def rate(pool: Pool, readers: list[int], owners: list[int]) -> Callable[[], float]:
            addresses = np.concatenate([chunks[owner] for owner in owners])
            node = np.repeat(readers, num_chunks)
            total = num_chunks * _CHUNK_BYTES * len(readers)

            def once() -> float:
                return total / read_nodes(addresses, node, _CHUNK_BYTES, loop, pool).max() / len(readers) / 1e9

            return once

        cases: dict[str, Callable[[], float]] = {}
        for node in range(num_nodes):
            for threads, pool in pools.items():
                cases[f"own {node} {threads}"] = rate(pool, [node], [node])
            for other in range(num_nodes) if virtual_nodes is None else ():
                if other != node:
                    cases[f"from {node} {other}"] = rate(full, [node], [other])
        for busy in range(2, num_nodes + 1):
            cases[f"busy {busy}"] = rate(full, list(range(busy)), list(range(busy)))
        values = in_rounds(cases, seconds=seconds, on_round=on_round)
    median = {name: float(np.median(each)) for name, each in values.items()}
    quartiles = [np.percentile(each, (25, 75)) for each in values.values()]
    by_threads = [{t: median[f"own {n} {t}"] for t in counts if f"own {n} {t}" in median} for n in range(num_nodes)]
    return NodeReads(
        by_threads=by_threads,
        remote=[
            {other: median[f"from {n} {other}"] for other in range(num_nodes) if f"from {n} {other}" in median}
            for n in range(num_nodes)
        ],
        at_once={busy: median[f"busy {busy}"] for busy in range(2, num_nodes + 1)},
        loop=loop,
        spread=float(max((high - low) / value for (low, high), value in zip(quartiles, median.values(), strict=True))),
        spread_of_node=[
            Spread.of(values[f"own {node} {max(rates, key=rates.__getitem__)}"])
            for node, rates in enumerate(by_threads)
        ],
    )
