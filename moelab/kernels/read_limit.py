"""The read limit: how fast the same workers can read the same bytes and do nothing else.

Best of several loops (order, unrolling, vector width), so that a slow loop cannot flatter a kernel. Meant
to be interleaved with ``forward`` calls in one process: absolute bandwidth drifts between processes and by
the minute, the ratio of neighbouring steps does not.

With several nodes the limit of a node is what its own workers read of its own bytes while all other nodes read theirs:
nodes share links, virtual ones even the memory. Floor 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from moelab.kernels.job import ACTIVATION_CODE, Activation
from moelab.kernels.native import library, require_library
from moelab.kernels.pool import Pool
from moelab.kernels.scratch import aligned

# Blocks that a worker reads in one go, in bytes: long enough for the prefetchers of four streams; one core reads 2%
# more with 4 than with 1 MB, two the same (docs/log.md, 2026-11-27, read loops).
BLOCK_BYTES = 4 << 20
PEAK_ITERATIONS = 4_000_000


@dataclass(frozen=True)
class ReadLimit:
    """``gb_per_s`` (1e9 bytes) of ``loop``, the best of ``gb_per_s_of_loop`` (medians over rounds).

    ``gb_per_s_of_node``: what each node read with that loop, all at once (0 for one without bytes).
    """

    gb_per_s: float
    loop: int
    loop_name: str
    gb_per_s_of_loop: dict[str, float]
    num_workers: int
    num_bytes: int
    gb_per_s_of_node: tuple[float, ...]


def loop_names() -> tuple[str, ...]:
    """The read loops of this machine, by number."""
    native, _ = library()
    if native is None:
        from moelab.kernels.jit.read import LOOP_NAMES

        return LOOP_NAMES
    return tuple(native.moelab_read_loop_name(loop).decode() for loop in range(native.moelab_num_read_loops()))


def read_once(addresses: np.ndarray, num_bytes: int, loop: int, pool: Pool | None = None) -> float:
    """Seconds of one pass of ``loop`` over ``num_bytes`` (a multiple of 8) at each address, on all workers."""
    if num_bytes % 8 != 0:
        raise ValueError(f"num_bytes: expected a multiple of 8; got {num_bytes}")
    native, _ = library()
    if native is None:
        return _read_once_numba(addresses, num_bytes, loop, pool)
    addresses = np.ascontiguousarray(addresses, np.int64)
    arguments = (loop, addresses.ctypes.data, len(addresses), num_bytes, BLOCK_BYTES)
    started = time.perf_counter()
    if pool is None:
        native.moelab_read_all(None, *arguments)
    else:
        pool.call(native.moelab_read_all, *arguments)
    return time.perf_counter() - started


def read_nodes(addresses: np.ndarray, node_of_address: np.ndarray, num_bytes: int, loop: int, pool: Pool) -> np.ndarray:
    """Seconds [N] until the last worker of each node had read its node's addresses, all nodes at once.

    0 for a node without addresses. Raises ``ValueError`` for a node that has addresses and no worker.
    """
    if num_bytes % 8 != 0:
        raise ValueError(f"num_bytes: expected a multiple of 8; got {num_bytes}")
    if pool.num_nodes == 1:
        return np.array([read_once(addresses, num_bytes, loop, pool)])
    order = np.argsort(node_of_address, kind="stable")
    addresses = np.ascontiguousarray(np.asarray(addresses, np.int64)[order])
    count_of_node = np.bincount(node_of_address, minlength=pool.num_nodes).astype(np.int64)
    ns_of_node = np.zeros(len(count_of_node), np.uint64)
    read = pool.call(
        require_library().moelab_read_nodes, loop, addresses.ctypes.data, count_of_node.ctypes.data,
        len(count_of_node), num_bytes, BLOCK_BYTES, ns_of_node.ctypes.data,
    )  # fmt: skip
    if not ns_of_node.any() and read == 0 and len(addresses):
        raise ValueError(
            f"node_of_address: expected nodes 0..{pool.num_nodes - 1} of the pool; got "
            f"{sorted(set(np.asarray(node_of_address).tolist()))}"
        )
    return ns_of_node / 1e9


def _read_once_numba(addresses: np.ndarray, num_bytes: int, loop: int, pool: Pool | None) -> float:
    from moelab.kernels.jit.read import read_shared

    counter = aligned(64).view(np.int64)
    work = partial(_work, read_shared, loop, addresses, num_bytes, int(counter.ctypes.data))
    started = time.perf_counter()
    if pool is None:
        work(0, 1)
    else:
        pool.run(work)
    return time.perf_counter() - started


def _work(
    read_shared: Callable[..., object], loop: int, addresses: np.ndarray, num_bytes: int, counter: int, worker: int,
    num_workers: int,
) -> None:  # fmt: skip
    read_shared(loop, addresses, num_bytes, BLOCK_BYTES, counter)


def read_limit(
    addresses: np.ndarray, num_bytes: int, pool: Pool | None = None, rounds: int = 5,
    node_of_address: np.ndarray | None = None,
) -> ReadLimit:  # fmt: skip
    """Best loop over ``num_bytes`` at each of ``addresses`` (int64 [N]): median of ``rounds`` interleaved passes.

    The bytes should be far more than the last-level cache, or it is a limit of the cache. With ``node_of_address``
    [N] each node's workers read their own (see the module).
    """
    addresses = np.ascontiguousarray(addresses, np.int64)
    if len(addresses) == 0 or num_bytes <= 0 or rounds < 1:
        raise ValueError(
            f"read_limit: expected addresses, bytes and rounds; got {len(addresses)}, {num_bytes}, {rounds}"
        )
    names = loop_names()
    read_once(addresses[:1], min(num_bytes, 4096), 0, pool)  # compile before the clock starts
    if pool is None or pool.num_nodes == 1:
        node_of_address = None

    def seconds_of_node(loop: int) -> np.ndarray:
        if node_of_address is None or pool is None:
            return np.array([read_once(addresses, num_bytes, loop, pool)])
        return read_nodes(addresses, node_of_address, num_bytes, loop, pool)

    seconds = np.median([[seconds_of_node(loop) for loop in range(len(names))] for _ in range(rounds)], axis=0)
    rates = len(addresses) * num_bytes / seconds.max(axis=1) / 1e9
    best = int(np.argmax(rates))
    nodes = np.zeros(len(addresses), np.int64) if node_of_address is None else node_of_address
    bytes_of_node = num_bytes * np.bincount(nodes, minlength=seconds.shape[1])
    of_node = np.divide(bytes_of_node, 1e9 * seconds[best], out=np.zeros(seconds.shape[1]), where=seconds[best] > 0)
    return ReadLimit(
        gb_per_s=float(rates[best]),
        loop=best,
        loop_name=names[best],
        gb_per_s_of_loop={name: float(rate) for name, rate in zip(names, rates, strict=True)},
        num_workers=1 if pool is None else pool.num_workers,
        num_bytes=len(addresses) * num_bytes,
        gb_per_s_of_node=tuple(of_node.tolist()),
    )


def peak_gflops(isa: str, activation: Activation, pool: Pool | None = None) -> float | None:
    """GFLOP/s (2 a product) of a register-only loop of the ISA's dot-product instruction; ``None`` without one."""
    native, _ = library()
    if native is None:
        return None
    arguments = (isa.encode(), ACTIVATION_CODE[activation], PEAK_ITERATIONS)
    started = time.perf_counter()
    operations = native.moelab_peak(None, *arguments) if pool is None else pool.call(native.moelab_peak, *arguments)
    return operations / (time.perf_counter() - started) / 1e9 or None
