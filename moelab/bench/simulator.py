"""Speed of the simulator: expert accesses a second of every policy on set requests, and beside libcachesim.
Floor 6.

`moelab bench simulator`. Set requests: seeded routing at 60 layers x 384 experts, top-8, batch 1: each layer's
popularity is Zipf-like (exponent 0.8) and an expert of the token before is likelier, so that neighbouring
tokens share about a third of their experts, as recorded traces do; 20% of the experts of each layer are slots.
A time is the replay (`run_requests`: loop, checks, accounting, no counts by step); requests, in both orders, and
state are built before. The trace is one request: what learns from earlier requests (`prefetch_eam`) learns nothing
there and has a row of its own, with a request every 20 tokens; so has the LP oracle, on the first steps alone.
`miss_ratio_curve` gives every capacity at once. Single requests: one pool of 5,760 slots, 23,040 objects, Zipf
0.8, each policy by turns with libcachesim's `process_trace` on the same stream from a file; median of the
ratios. Synthetic streams say nothing about hit rates of models.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from moelab.analysis.miss_ratio_curve import miss_ratio_curve
from moelab.bench.result import BenchResult
from moelab.domain.plan import FastTier, Placements, Plan, PlanModel, PolicyChoice, TierFormat
from moelab.domain.trace import Phase, TokenTable, Trace, TraceHeader
from moelab.policies import POLICIES
from moelab.policies.counts import NUM_COLUMNS
from moelab.policies.policy import PolicyState
from moelab.policies.requests import PHASES, Requests
from moelab.simulator.min_cost import min_cost
from moelab.simulator.simulate import run_requests

NUM_LAYERS, NUM_EXPERTS, TOP_K = 60, 384, 8
SLOTS_PER_LAYER = 77
TOKENS_PER_REQUEST, LP_STEPS = 20, 40
NUM_OBJECTS, NUM_SLOTS = 23_040, 5_760
HASH_POWERS: dict[str, int | None] = {"": None, ", peer with a table of 2**16": 16}
"""libcachesim's hash table as installed (2**24 entries, which miss every cache), and as small as its objects need."""

PEERS: dict[str, tuple[str, dict[str, float | int]]] = {
    "lru": ("LRU", {}),
    "fifo": ("FIFO", {}),
    "clock": ("Clock", {}),
    "sieve": ("Sieve", {}),
    "arc": ("ARC", {}),
    "s3_fifo": ("S3FIFO", {}),
    "lfu": ("LFU", {"forget": 1}),
    "gdsf": ("GDSF", {"floor_before": 1, "hysteresis": -1e-9}),
}
"""libcachesim's name of a policy, and our parameters that make it the same."""


def run(seconds: float = 10.0) -> BenchResult:
    """Rows ``{name, million_accesses_per_s, ratio_to_libcachesim}``; ``seconds`` scales the number of tokens."""
    num_tokens = max(20, int(300 * seconds))
    trace = set_requests(num_tokens)
    requests = Requests.of_trace(trace)
    num_accesses = len(requests.experts)
    rows = []
    for name in POLICIES:
        plan = plan_of(trace, name, slots_per_layer=SLOTS_PER_LAYER)
        spent = [_replay_s(trace, requests, plan) for _ in range(4)]
        rows.append(_row(f"{name}, set requests", num_accesses / median(spent[1:])))
    spent = [_seconds(lambda: miss_ratio_curve(trace, requests=requests)) for _ in range(3)]
    rows.append(_row("miss_ratio_curve, all capacities", num_accesses / median(spent[1:])))
    rows += [_eam_row(trace), _lp_row(trace, requests)]
    rows += single_requests(max(1000, int(50_000 * seconds)))
    return BenchResult(
        f"simulator, {NUM_LAYERS} x {NUM_EXPERTS} top-{TOP_K}, {num_tokens} tokens, {SLOTS_PER_LAYER} slots a layer "
        f"(synthetic); single requests: {NUM_SLOTS} slots of {NUM_OBJECTS}, one core",
        rows,
    )


def _eam_row(trace: Trace) -> dict[str, Any]:
    """MoE-Infinity's prefetcher where its collection of past requests fills; the time depends on what is stored."""
    short = trace_of(trace.experts, NUM_EXPERTS, tokens_per_request=TOKENS_PER_REQUEST)
    requests = Requests.of_trace(short)
    plan = plan_of(short, "prefetch_eam", slots_per_layer=SLOTS_PER_LAYER)
    spent = [_replay_s(short, requests, plan) for _ in range(3)]
    name = f"prefetch_eam, set requests, {TOKENS_PER_REQUEST} tokens a request"
    return _row(name, len(requests.experts) / median(spent[1:]))


def _lp_row(trace: Trace, requests: Requests) -> dict[str, Any]:
    """MIN-cost by HiGHS: its time grows faster than the steps, so the row says how many."""
    num_steps = min(LP_STEPS, requests.num_steps)
    num_accesses = int(requests.offsets[num_steps * requests.num_layers])
    spent = _seconds(lambda: min_cost(trace, slots_per_layer=SLOTS_PER_LAYER, num_steps=num_steps, requests=requests))
    return _row(f"min_cost (LP oracle), set requests, {num_steps} steps", num_accesses / spent)


def single_requests(num_requests: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the policies that libcachesim has too, by turns with it."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, NUM_OBJECTS + 1) ** 0.8
    stream = rng.permutation(NUM_OBJECTS)[rng.choice(NUM_OBJECTS, num_requests, p=weights / weights.sum())]
    trace = trace_of(stream.astype(np.uint16).reshape(-1, 1, 1), NUM_OBJECTS)
    requests = Requests.of_trace(trace)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.bin"
        _write_stream(path, stream)
        for name, (peer, parameters) in PEERS.items():
            plan = plan_of(trace, name, slots=NUM_SLOTS, parameters=parameters)
            processes = {how: _peer(peer, path, power) for how, power in HASH_POWERS.items()}
            ours: list[float] = []
            theirs: dict[str, list[float]] = {how: [] for how in HASH_POWERS}
            for _ in range(4):
                ours.append(_replay_s(trace, requests, plan))
                for how, process in processes.items():
                    theirs[how].append(_seconds(process) if process else np.nan)
            for how, process in processes.items():
                ratios = [b / a for a, b in zip(ours[1:], theirs[how][1:], strict=True)]
                ratio = float(median(ratios)) if process else "not installed"
                rows.append(_row(f"{name}, single requests{how}", num_requests / median(ours[1:]), ratio))
    return rows


def set_requests(num_tokens: int, seed: int = 0) -> Trace:
    """One decode request of ``num_tokens`` tokens at the shape of this bench."""
    rng = np.random.default_rng(seed)
    popularity = -0.8 * np.log(np.arange(1, NUM_EXPERTS + 1, dtype=np.float32))
    popularity = rng.permuted(np.tile(popularity, (NUM_LAYERS, 1)), axis=1)
    experts = np.empty((num_tokens, NUM_LAYERS, TOP_K), np.uint16)
    rows = np.arange(NUM_LAYERS)[:, None]
    for token in range(num_tokens):
        score = popularity - np.log(rng.standard_exponential((NUM_LAYERS, NUM_EXPERTS), dtype=np.float32) + 1e-30)
        if token:
            score[rows, experts[token - 1]] += 2.0
        experts[token] = np.argpartition(-score, TOP_K, axis=1)[:, :TOP_K]
    return trace_of(experts, NUM_EXPERTS)


def trace_of(experts: np.ndarray, num_experts: int, tokens_per_request: int | None = None) -> Trace:
    """A synthetic decode trace of one request, or of requests of so many tokens."""
    num_tokens, num_layers, top_k = experts.shape
    header = TraceHeader(
        model="bench", model_type="none", num_layers=num_layers, num_experts=num_experts, top_k=top_k,
        model_layer_of_layer=tuple(range(num_layers)), expert_bytes=(1,) * num_layers, moe_intermediate_size=32,
        synthetic=True, engine="moelab bench simulator", quantization="none", licence="none", provenance="seeded draws",
    )  # fmt: skip
    request, position = np.divmod(np.arange(num_tokens), tokens_per_request or max(1, num_tokens))
    table = TokenTable.build(step=np.arange(num_tokens), request=request, position=position, phase=Phase.DECODE)
    return Trace(header, experts, np.ones(experts.shape, np.float16), table)


def plan_of(trace: Trace, policy: str, *, slots_per_layer: int | None = None, slots: int | None = None,
            parameters: Mapping[str, float | int] | None = None) -> Plan:  # fmt: skip
    """Every expert at home, an empty fast tier, one policy."""
    header = trace.header
    layer, expert = np.divmod(np.arange(header.num_layers * header.num_experts), header.num_experts)
    fast = FastTier(
        tier="fast0",
        slots_per_layer=None if slots_per_layer is None else (slots_per_layer,) * header.num_layers,
        slots=slots,
    )
    weights = TierFormat(weight_format="none", expert_bytes=header.expert_bytes)
    return Plan(
        model=PlanModel(
            name=header.model, model_type=header.model_type, num_layers=header.num_layers,
            num_experts=header.num_experts, top_k=header.top_k, moe_intermediate_size=32,
        ),
        tiers=("node0", "fast0"),
        placements=Placements.whole(layer, expert, np.zeros_like(layer), 1),
        fast_tiers=(fast,),
        format_of_tier={"node0": weights, "fast0": weights},
        policy=PolicyChoice(name=policy, parameters=dict(parameters or {})),
    )  # fmt: skip


def _write_stream(path: Path, stream: np.ndarray) -> None:
    """libcachesim's oracleGeneral records: time, object, size, next access (which no peer here reads)."""
    record = np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")])
    rows = np.zeros(len(stream), record)
    rows["time"], rows["object"], rows["size"], rows["next"] = np.arange(len(stream)), stream + 1, 1, -1
    rows.tofile(path)


def _peer(name: str, path: Path, hash_power: int | None) -> Callable[[], Any] | None:
    """A run of libcachesim over the file, or ``None`` where it is not installed."""
    try:
        import libcachesim
    except ImportError:
        return None

    options = {} if hash_power is None else {"hashpower": hash_power}

    def process() -> Any:
        reader = libcachesim.TraceReader(trace=str(path), trace_type=libcachesim.TraceType.ORACLE_GENERAL_TRACE)
        return getattr(libcachesim, name)(cache_size=NUM_SLOTS, **options).process_trace(reader)

    return process


def _replay_s(trace: Trace, requests: Requests, plan: Plan) -> float:
    """Seconds that the requests take, from a fresh state."""
    policy = POLICIES[plan.policy.name]
    state = PolicyState.of_plan(plan, policy, requests.first_use if policy.needs_next_use else None)
    sums = np.zeros((len(PHASES), requests.num_layers, NUM_COLUMNS + 1), np.int64)
    rows = np.zeros((0, NUM_COLUMNS), np.int32)
    totals = np.zeros((2, len(PHASES), requests.num_layers, requests.num_experts), np.int64)
    return _seconds(lambda: run_requests(trace, requests, policy, state, sums, rows, totals, log=False, progress=False))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _row(name: str, accesses_per_s: float, ratio: float | str | None = None) -> dict[str, Any]:
    return {"name": name, "million_accesses_per_s": float(accesses_per_s / 1e6), "ratio_to_libcachesim": ratio}
