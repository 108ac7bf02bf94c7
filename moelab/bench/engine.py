"""``moelab bench engine``: a decode step of a slice of a large model beside a read of the bytes that it needs.

Real shapes, generated weights: ``layers`` MoE layers with ``experts`` routed experts each, at 1,024 tokens of context,
embedding, router, attention, shared expert, head and greedy sampling inside; linear layers from packed weights on our
kernels. The limit is the time in which the best read loop reads as many bytes, taken before and after each step; steps
during which the memory changed its state are left out and counted (`memory_states`). On several nodes experts are
round-robin, rows of linear layers shared out, and each node reads its own, all at once. Floor 6.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from moelab.bench.memory_states import pair_steps
from moelab.bench.read_reference import Read, ReadReference, experts_beside
from moelab.bench.result import BenchResult, Column
from moelab.domain.model import ModelSpec
from moelab.domain.trace import Phase
from moelab.engine.dense import PACKED_FORMATS, KernelLinear, KernelLinears, KernelMLP
from moelab.engine.device import choose_dense_dtype
from moelab.engine.engine import Engine
from moelab.engine.loader import Loaded
from moelab.engine.names import model_module
from moelab.engine.sampling import Sampling, pick
from moelab.kernels import (
    Bandwidth,
    Counts,
    ExpertArena,
    ExpertLayout,
    NodeArenas,
    Pool,
    RoutedExperts,
    choose_isa,
    round_robin,
)
from moelab.kernels.generated import fill_expert

CONTEXT = 1024
READ_EXPERTS = 16
COLUMNS = (
    Column("linear layers", "dense_weights"), Column("head", "head"), Column("ms/token", "ms_per_token"),
    Column("bytes a token", "bytes_per_token"), Column("limit, GB/s", "read_limit_gb_per_s"),
    Column("ratio (quartiles)", "ratio_to_limit", "ratio_quartiles"), Column("routed ms", "routed_ms"),
    Column("linear", "linear_ms"), Column("attention", "attention_ms"), Column("other", "other_ms"),
    Column("steps", "num_steps"), Column("left out", "num_left_out"), Column("gate", "gate_ratio"),
    Column("within", "within_gate"),
)  # fmt: skip
GATE_CASE = ("int8", True)  # linear layers, head
GATE_RATIO = 1.15
GATE_KEYS = ("ratio_to_limit", "ms_per_token", "bytes_per_token", "read_limit_gb_per_s")


@dataclass(frozen=True)
class EngineRow:
    """Medians over paired steps; ``ratio_to_limit`` is step time over the time of reading ``bytes_per_token``.

    Routed experts, linear layers (shared expert and router among them) and attention are medians of what the library
    counted; ``other_ms`` is what is left of the step: norms, rotation, router's choice, meetings of the workers,
    Python, sampling. ``routed_*_per_node`` and the tail of a layer call are what the kernels counted, over all steps.
    ``*_of_state``: the same steps by the state of the memory, the slower first. ``within_gate``: is the median ratio,
    where there is a gate and reads to judge by? ``num_steps`` counts those left out too.
    """

    dense_weights: str
    head: bool
    ms_per_token: float
    bytes_per_token: int
    read_limit_gb_per_s: float
    ratio_to_limit: float
    ratio_quartiles: tuple[float, float]
    gate_ratio: float | None
    within_gate: bool | None
    routed_ms: float
    linear_ms: float
    attention_ms: float
    other_ms: float
    num_steps: int
    num_left_out: int
    num_steps_of_state: tuple[int, ...]
    read_limit_gb_per_s_of_state: tuple[float, ...]
    ratio_of_state: tuple[float, ...]
    routed_gb_per_s_per_node: tuple[float, ...]
    routed_percent_of_read_limit_per_node: tuple[float, ...]
    routed_tail_us: float | None
    num_nodes: int
    virtual_nodes: bool


class _Slice:
    """An engine of generated weights and what its steps read."""

    def __init__(self, engine: Engine, linears: list[KernelLinear | KernelMLP]) -> None:
        self.engine, self.linears = engine, linears

    def other_bytes(self) -> int:
        """What a step reads besides matrices: the latents of the context."""
        model = self.engine.model
        return len(model.layers) * CONTEXT * model.cache_width * int(model.norm.element_size())


@contextmanager
def slice_of(
    expert_shape: str, layers: int, experts: int, dense_weights: str, virtual_nodes: int | None = None
) -> Iterator[_Slice]:
    """``layers`` MoE layers of a preset, generated; nothing is read from disk. Round-robin where there are nodes."""
    preset = ModelSpec.preset(expert_shape)
    spec = preset.model_copy(
        update={"num_hidden_layers": layers, "first_k_dense_replace": 0, "n_routed_experts": experts}
    )
    text_config = _text_config()
    layout = ExpertLayout(spec.hidden_size, spec.moe_intermediate_size, "int4_g32")
    generator = torch.Generator().manual_seed(0)
    dtype = choose_dense_dtype(None, torch.bfloat16, torch.device("cpu"))
    pool = Pool(virtual_nodes=virtual_nodes)
    with tempfile.TemporaryDirectory() as folder, pool:
        routed = []
        for layer in tqdm(range(layers), desc="experts", unit="layer"):
            node_of_expert = round_robin(1, experts, pool.num_nodes)[0] if pool.num_nodes > 1 else None
            arena = (
                ExpertArena(layout, experts)
                if node_of_expert is None
                else NodeArenas(layout, node_of_expert, pool.memory_node_of_node)
            )

            def fill(
                worker: int, num_workers: int, arena: ExpertArena | NodeArenas = arena, layer: int = layer
            ) -> None:
                for expert in range(worker, experts, num_workers):
                    fill_expert(arena[expert], layout, seed=layer * experts + expert)

            pool.run(fill)
            routed.append(
                RoutedExperts(
                    layout, arena.addresses, activation="int8", pool=pool, owner=arena, node_of_expert=node_of_expert
                )
            )
            routed[-1].share_scratch(routed[0])
        module = model_module(spec.model_type)
        shapes = module.Model.dense_shapes(spec)

        def read(name: str, kind: Literal["dense", "exact", "float32", "mapped"] = "dense") -> torch.Tensor:
            shape = shapes[name]
            if len(shape) == 1:
                return torch.zeros(shape) if "bias" in name else torch.ones(shape, dtype=dtype)
            weight = torch.empty(shape, dtype=torch.float32 if kind == "float32" else torch.bfloat16)
            weight.uniform_(-1, 1, generator=generator).mul_((3 / shape[1]) ** 0.5)
            return weight.to(dtype) if kind == "dense" else weight  # as a checkpoint has it: bf16

        linears = KernelLinears(PACKED_FORMATS[dense_weights], None, pool)
        model = module.Model(spec, text_config, read, routed, torch.device("cpu"), linears)
        loaded = Loaded(
            model=model, spec=spec, configs=[text_config], pool=pool, routed=routed, device=torch.device("cpu"),
            dense_dtype=str(dtype).removeprefix("torch."), dense_weights=dense_weights, isa=choose_isa().isa,
            activation="int8", weight_format="int4_g32", weights_fingerprint="generated", num_skipped_tensors={},
        )  # fmt: skip
        yield _Slice(Engine(Path(folder), loaded), linears.made)


def _nodes_of(layer: RoutedExperts) -> np.ndarray:
    """Of each expert; all on node 0 where there is one."""
    return np.zeros(layer.num_experts, np.int32) if layer.node_of_expert is None else layer.node_of_expert


def _text_config() -> dict[str, Any]:
    """What the model asks of a config beyond the spec: norms and rope without scaling."""
    return {"rms_norm_eps": 1e-6, "rope_theta": 50000.0, "max_position_embeddings": 2 * CONTEXT}


def bench_engine(
    seconds: float, expert_shape: str = "kimi-k2.6", layers: int = 2, experts: int = 64, dense_weights: str = "int8",
    virtual_nodes: int | None = None,
) -> list[EngineRow]:  # fmt: skip
    """Rows with and without the head."""
    with slice_of(expert_shape, layers, experts, dense_weights, virtual_nodes) as part:
        return [_row(part, dense_weights, head, seconds) for head in (True, False)]


def _row(part: _Slice, dense_weights: str, head: bool, seconds: float) -> EngineRow:
    engine = part.engine
    layout, addresses = engine.routed[0].layout, np.concatenate([layer.address_of_expert for layer in engine.routed])
    nodes = np.concatenate([_nodes_of(layer) for layer in engine.routed])
    rng = np.random.default_rng(0)
    reference = ReadReference(addresses, layout.expert_bytes, nodes, engine.pool, placed=engine.pool.num_nodes > 1)
    reference.choose(np.sort(rng.permutation(len(addresses))[:READ_EXPERTS]))
    cache = engine.new_cache(1)
    cache.reserve(CONTEXT + 1)
    for memory in cache.layers:
        memory.normal_()
    greedy = Sampling()
    generator, sequence = greedy.generator(0), engine.new_sequence([1], 1, greedy, ())

    def step(token: int) -> int:
        cache.lengths[0] = CONTEXT  # always the same context
        logits = engine.step(torch.tensor([[token]]), cache, 0, [sequence], Phase.DECODE, "last" if head else "none")
        return 0 if logits is None else pick(logits[0, -1], greedy, generator)

    step_s: list[float] = []
    reads: list[Read] = []
    step_bytes: list[int] = []
    parts: list[tuple[float, float, float]] = []
    program = engine.model.program(1)
    ops = program.ops

    def attention_s() -> float:
        seconds = ops.seconds_of_kind()
        return seconds["attend"] + seconds["merge"]

    token = step(1)
    other_bytes = part.other_bytes()
    counts_before = Counts.of(engine.routed)

    first_of_layer = np.cumsum([0, *(layer.num_experts for layer in engine.routed[:-1])])[:, None, None]

    def read() -> None:
        """Of experts that the step before did not use, all nodes reading their own at once."""
        done = (program.expert_ids + first_of_layer).ravel()
        reads.append(reference.read(experts_beside(rng, len(addresses), done, done, READ_EXPERTS)))

    read()
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(step_s) < 8:
        before, linear_before = engine.counters, sum(linear.seconds for linear in part.linears)
        bytes_before = _bytes_read(part.linears)
        attention_before = attention_s()
        # A random token: what the experts of a constant one read would stay in the cache.
        start = time.perf_counter()
        token = step((token + int(rng.integers(1 << 16))) % engine.spec.vocab_size)
        step_s.append(time.perf_counter() - start)
        after = engine.counters
        linear_bytes = _bytes_read(part.linears) - bytes_before
        step_bytes.append(other_bytes + linear_bytes + after.expert_bytes - before.expert_bytes)
        linear_now = sum(linear.seconds for linear in part.linears)
        parts.append((after.expert_s - before.expert_s, linear_now - linear_before, attention_s() - attention_before))
        read()
    rates = np.array([each.gb_per_s for each in reads])
    paired = pair_steps(rates, np.array([each.choice for each in reads]))
    kept, state = paired.kept, paired.state
    if not kept.any():  # nothing to choose from: said by num_left_out
        kept, state = np.ones(len(kept), bool), None
    beside = (1e-9 / rates[:-1] + 1e-9 / rates[1:])[kept] / 2  # seconds of a byte
    taken = np.array(step_s)[kept]
    ratio = taken / (np.array(step_bytes)[kept] * beside)
    of_state = [np.ones(len(taken), bool)] if state is None else [state == which for which in (0, 1)]
    low, middle, high = np.percentile(ratio, (25, 50, 75))
    routed_ms, linear_ms, attention_ms = (1e3 * float(part) for part in np.median(np.array(parts)[kept], axis=0))
    median = float(np.median(taken))
    read_rate = 1 / float(np.median(beside)) / 1e9
    limits = np.nanmedian(np.array([each.gb_per_s_of_node for each in reads]), axis=0)
    counted = Bandwidth.of(
        "", Counts.of(engine.routed) - counts_before, tuple(limits.tolist()), read_loop=reference.most_used(reads),
        virtual_nodes=engine.pool.virtual,
    ).totals  # fmt: skip
    gate = GATE_RATIO if (dense_weights, head) == GATE_CASE else None
    return EngineRow(
        gate_ratio=gate, within_gate=None if gate is None or not paired.kept.any() else bool(middle <= gate),
        dense_weights=dense_weights, head=head, ms_per_token=1e3 * median, bytes_per_token=int(np.median(step_bytes)),
        read_limit_gb_per_s=read_rate, ratio_to_limit=float(middle),
        ratio_quartiles=(float(low), float(high)), routed_ms=routed_ms, linear_ms=linear_ms, attention_ms=attention_ms,
        other_ms=1e3 * median - routed_ms - linear_ms - attention_ms, num_steps=len(step_s),
        num_left_out=paired.num_left_out,
        num_steps_of_state=tuple(int(mask.sum()) for mask in of_state),
        read_limit_gb_per_s_of_state=tuple(1e-9 / float(np.median(beside[mask])) for mask in of_state),
        ratio_of_state=tuple(float(np.median(ratio[mask])) for mask in of_state),
        routed_gb_per_s_per_node=tuple(node.gb_per_s for node in counted),
        routed_percent_of_read_limit_per_node=tuple(node.percent_of_read_limit or 0.0 for node in counted),
        routed_tail_us=counted[0].tail_us_per_call, num_nodes=engine.pool.num_nodes, virtual_nodes=engine.pool.virtual,
    )  # fmt: skip


def _bytes_read(linears: Sequence[KernelLinear | KernelMLP]) -> int:
    """What the kernels counted of them since they were made."""
    return sum(sum(linear.counters.bytes_of_node) for linear in linears)


def run(seconds: float = 10.0, expert_shape: str = "kimi-k2.6", layers: int = 2, experts: int = 64) -> BenchResult:
    """``moelab bench engine``: int8 dense weights with and without the head, and bf16 through our kernels.

    ``gate`` has the figures of the project's gate: int8 with the head.
    """
    rows = [row for name in ("int8", "bf16") for row in bench_engine(seconds, expert_shape, layers, experts, name)]
    title = f"decode step, {layers} layers x {experts} experts of {expert_shape}, context {CONTEXT}, beside a read"
    (judged,) = [row for row in rows if (row.dense_weights, row.head) == GATE_CASE]
    return BenchResult(title, [asdict(row) for row in rows], {key: getattr(judged, key) for key in GATE_KEYS}, COLUMNS)
