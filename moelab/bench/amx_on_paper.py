"""``moelab bench amx_on_paper``: expected time of AMX beside the time to read the weights. Calculated. Floor 6.

One layer of Kimi K2.6 (int4 weights), by batch, on the two presets of Xeon machines, two sockets. Peak bandwidth and
core counts are the presets', clocks are assumed (``CLOCK_GHZ``); what is counted: ``moelab.cost_model.amx_on_paper``.
"""

from __future__ import annotations

from typing import Any, get_args

from moelab.bench.kernels import HIDDEN_SIZE, INTERMEDIATE_SIZE, TOP_K
from moelab.bench.result import BenchResult, Column
from moelab.cost_model.amx_on_paper import Mode, layer_step
from moelab.domain.machine import Machine
from moelab.kernels import ExpertLayout

NUM_EXPERTS = 384
CLOCK_GHZ = {"2x-xeon-gen4-ddr5-4800": 2.0, "2x-xeon-gen6-mrdimm-8800": 2.5}  # all cores under AMX: assumed
COLUMNS = (
    Column("machine", "machine"), Column("activations", "activations"), Column("batch", "batch"),
    Column("tokens of expert", "tokens_per_expert"), Column("read ms", "read_ms"), Column("AMX best ms", "amx_best_ms"),
    Column("worst", "amx_worst_ms"), Column("expected", "amx_expected_ms"),
    Column("AVX-512 expected ms", "avx512_expected_ms"), Column("source", "source"),
)  # fmt: skip
BATCHES = (1, 4, 16, 64, 256, 512, 1024, 2048, 4096)


def run(seconds: float = 0.0) -> BenchResult:
    """Nothing runs: ``seconds`` is not used."""
    rows: list[dict[str, Any]] = []
    expert_bytes = ExpertLayout(HIDDEN_SIZE, INTERMEDIATE_SIZE, "int4_g32").expert_bytes
    for name, clock_ghz in CLOCK_GHZ.items():
        machine = Machine.preset(name)
        for mode in get_args(Mode):
            for batch in BATCHES:
                step = layer_step(
                    batch, hidden_size=HIDDEN_SIZE, intermediate_size=INTERMEDIATE_SIZE, num_experts=NUM_EXPERTS,
                    top_k=TOP_K, expert_bytes=expert_bytes, mode=mode, num_cores=machine.num_cores, clock_ghz=clock_ghz,
                    read_gb_per_s=sum(node.best_read_gb_per_s or 0.0 for node in machine.nodes),
                )  # fmt: skip
                rows.append({
                    "machine": name, "activations": mode, "batch": batch, "tokens_per_expert": step.tokens_per_expert,
                    "read_ms": step.read_ms, "amx_best_ms": step.amx_best_ms, "amx_worst_ms": step.amx_worst_ms,
                    "amx_expected_ms": max(step.read_ms, step.amx_best_ms),
                    "avx512_expected_ms": None if step.avx512_ms is None else max(step.read_ms, step.avx512_ms),
                    "source": "calculated",
                })  # fmt: skip
    title = (
        f"CALCULATED, not measured: one layer of {HIDDEN_SIZE} x {INTERMEDIATE_SIZE}, {TOP_K} of {NUM_EXPERTS}, int4"
    )
    return BenchResult(title, rows, columns=COLUMNS)
