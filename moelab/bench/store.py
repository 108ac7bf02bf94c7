"""Size and speed of the trace store on 200,000 tokens x 60 layers x 8 slots: ``moelab bench store``.

Synthetic routing (labelled so in the header and the table): Zipf 0.9 over 256 experts with its own
ranking of the experts for each layer and domain, K distinct experts a token, float16 gate weights
normalised and scaled by 2.5. Does not know peers' formats (``docs/log.md`` has them). Floor 6.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moelab.bench.result import BenchResult
from moelab.domain.trace import Phase, TokenTable, Trace, TraceHeader
from moelab.store import open_trace, save_trace, verify
from moelab.store.writer import TraceWriter

ZIPF, NUM_EXPERTS, NUM_DOMAINS, REQUEST_TOKENS = 0.9, 256, 4, 200


def header(num_layers: int, top_k: int, seed: int) -> TraceHeader:
    """Header of the synthetic trace."""
    return TraceHeader(
        model=f"synthetic {num_layers} x {NUM_EXPERTS}", model_type="synthetic", num_layers=num_layers,
        num_experts=NUM_EXPERTS, top_k=top_k, model_layer_of_layer=tuple(range(num_layers)),
        expert_bytes=(0,) * num_layers, gate_weight_kind="normalised_scaled", engine="none", quantization="none",
        licence="Apache-2.0", provenance=f"moelab.bench.store seed {seed}, Zipf {ZIPF} by layer and domain",
        synthetic=True, domains=tuple(f"domain{i}" for i in range(NUM_DOMAINS)),
    )  # fmt: skip


def batches(num_tokens: int, head: TraceHeader, batch_tokens: int, seed: int) -> Iterator[Trace]:
    """The trace in batches of decode tokens; memory holds one batch and a table of rankings."""
    rng = np.random.default_rng(seed)
    num_layers, top_k = head.num_layers, head.top_k
    log_chance = -ZIPF * np.log(np.arange(1, NUM_EXPERTS + 1, dtype=np.float32))
    expert_of_rank = np.argsort(rng.random((num_layers, NUM_DOMAINS, NUM_EXPERTS)), axis=-1).astype(np.uint16)
    for start in range(0, num_tokens, batch_tokens):
        row = np.arange(start, min(num_tokens, start + batch_tokens))
        # Gumbel top-k draws K distinct ranks; layers see the same draws in other orders of the tokens.
        keys = log_chance + rng.gumbel(size=(len(row), NUM_EXPERTS)).astype(np.float32)
        ranks = np.argsort(-keys, axis=1)[:, :top_k]
        domain = row // REQUEST_TOKENS % NUM_DOMAINS
        experts = np.empty((len(row), num_layers, top_k), np.uint16)
        for layer in range(num_layers):
            experts[:, layer] = expert_of_rank[layer][domain[:, None], ranks[rng.permutation(len(row))]]
        gates = -np.sort(-rng.gamma(2.0, size=experts.shape).astype(np.float32), axis=-1)
        gates *= 2.5 / gates.sum(-1, keepdims=True)
        tokens = TokenTable.build(
            step=row, request=row // REQUEST_TOKENS, position=row % REQUEST_TOKENS, phase=Phase.DECODE, domain=domain,
            token_id=rng.integers(0, 160_000, len(row)),
        )  # fmt: skip
        yield Trace(head, experts, gates.astype(np.float16), tokens)


def timed(action: Callable[[], Any]) -> tuple[float, float, Any]:
    """(wall seconds, CPU seconds of this process, result)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far; where the system keeps no peak, the present one."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)
    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(folder: Path, num_tokens: int, num_layers: int, top_k: int, batch_tokens: int, seed: int) -> dict[str, Any]:
    """One run; times are wall / CPU seconds. Writing excludes making the synthetic batches."""
    head = header(num_layers, top_k, seed)
    write_wall = write_cpu = 0.0
    with TraceWriter(folder / "batches", head) as writer:
        for batch in batches(num_tokens, head, batch_tokens, seed):
            wall, cpu, _ = timed(partial(writer.append, batch.experts, batch.gate_weights, batch.tokens))
            write_wall, write_cpu = write_wall + wall, write_cpu + cpu
        wall, cpu, _ = timed(writer.close)
    sizes = [path.stat().st_size for path in (folder / "batches").iterdir()]
    open_wall, _, stored = timed(lambda: open_trace(folder / "batches"))
    load_wall, load_cpu, loaded = timed(stored.load)
    bulk_wall, bulk_cpu, _ = timed(partial(save_trace, loaded, folder / "bulk"))
    pairs = zip(stored.iter_chunks(), open_trace(folder / "bulk").iter_chunks(), strict=True)
    equal = all(
        np.array_equal(a.experts, b.experts) and np.array_equal(a.gate_weights, b.gate_weights) for a, b in pairs
    )
    loaded = None
    layer_wall, layer_cpu, _ = timed(lambda: open_trace(folder / "batches").load(layers=[num_layers // 2]))
    verify_wall, verify_cpu, report = timed(lambda: verify(folder / "batches"))
    raw_bytes = num_tokens * num_layers * top_k * 4
    return {
        "tokens": num_tokens, "layers": num_layers, "top_k": top_k, "synthetic": True, "raw_mb": raw_bytes / 1e6,
        "stored_mb": sum(sizes) / 1e6, "files": len(sizes), "batch_tokens": batch_tokens,
        "write_s": write_wall + wall, "write_cpu_s": write_cpu + cpu,
        "bulk_write_s": bulk_wall, "bulk_write_cpu_s": bulk_cpu,
        "open_s": open_wall, "full_read_s": load_wall, "full_read_cpu_s": load_cpu, "one_layer_s": layer_wall,
        "one_layer_cpu_s": layer_cpu, "verify_s": verify_wall, "verify_cpu_s": verify_cpu,
        "read_back_equal": equal and report.ok, "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "peak_memory_mb": peak_memory_bytes() / 1e6,
    }  # fmt: skip


def run(seconds: float = 0.0, num_tokens: int = 200_000) -> BenchResult:
    """``moelab bench store``: ``num_tokens`` x 60 x 8, synthetic; takes about a minute whatever ``seconds`` says."""
    with tempfile.TemporaryDirectory(prefix="moelab-bench-store-") as folder:
        row = measure(Path(folder), num_tokens, num_layers=60, top_k=8, batch_tokens=1024, seed=0)
    return BenchResult("trace store, synthetic routing", [row])
