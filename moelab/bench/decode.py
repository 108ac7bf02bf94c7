"""``moelab bench decode``: nano's decode steps beside those of transformers, by turns in one process.

Greedy decode of one sequence and of eight from the same prompts. Ours: the engine as it loads, with int8 linear layers,
and throughout in float32. Transformers (with dequantised weights): the two fastest ways of a short trial
(``decode_peers``) are measured, the better one is the peer of the ratio. It does not know text: both decode the same
number of tokens. Floor 6; extra ``[test]`` (transformers, compressed-tensors).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from moelab.bench.decode_peers import Decode, Transformers, Way, fastest_ways
from moelab.bench.parity import transformers_twin
from moelab.bench.result import BenchResult, Column
from moelab.engine.engine import Engine, load
from moelab.engine.step_rates import NodeRate, StepRates
from moelab.store import shipped

BATCHES = (1, 8)
PROMPT_TOKENS, NEW_TOKENS, TRIAL_TOKENS = 16, 48, 12
COLUMNS = (
    Column("way", "name"), Column("batch", "batch"), Column("tok/s (quartiles)", "tok_per_s", "tok_per_s_quartiles"),
    Column("x best peer (quartiles)", "times_best_peer", "times_best_peer_quartiles"),
    Column("GB/s counted", "gb_per_s"), Column("experts, by node", "routed_gb_per_s_per_node"),
)  # fmt: skip
# Names of our engine's settings.
OURS: dict[str, dict[str, Any]] = {
    "moelab": {},
    "moelab, int8 linear layers": {"dense_weights": "int8"},
    "moelab, float32": {"activation": "f32", "dense_dtype": "float32"},
}


@dataclass(frozen=True)
class DecodeRow:
    """Tokens per second over all sequences (median, quartiles); ``times_best_peer`` is a median of paired ratios.

    ``gb_per_s`` (all bytes of our kernels over the whole steps) and the routed experts' by node are medians of what was
    counted; no per cent of a read limit where the experts fit the last-level cache, as nano's do.
    """

    name: str
    batch: int
    tok_per_s: float
    tok_per_s_quartiles: tuple[float, float]
    times_best_peer: float | None
    times_best_peer_quartiles: tuple[float, float] | None
    best_peer: str
    gb_per_s: float | None = None
    routed_gb_per_s_per_node: tuple[float, ...] | None = None
    routed_percent_of_read_limit_per_node: tuple[float | None, ...] | None = None
    read_limit: str | None = None
    cache_resident: bool | None = None


def ours(engine: Engine, rates: list[StepRates]) -> Decode:
    """The engine's own generation; what it counted is added to ``rates``."""

    def decode(prompts: np.ndarray, num_tokens: int) -> float:
        results = engine.generate(prompts.tolist(), num_tokens, stop=())
        rates.append(results[0].decode_rates)
        return float(max(result.decode_s for result in results))

    return decode


def bench_decode(seconds: float) -> list[DecodeRow]:
    """All rows; ways of transformers that fail here are left out and said on the progress bar."""
    rng = np.random.default_rng(0)
    folder = shipped("nano/model")
    peers = Transformers(transformers_twin(folder), PROMPT_TOKENS + NEW_TOKENS)
    threads = sorted({1, torch.get_num_threads()})
    rows: list[DecodeRow] = []
    engines = {name: load(folder, device="cpu", **choices) for name, choices in OURS.items()}
    for batch in BATCHES:
        prompts = [rng.integers(2, 4096, (batch, PROMPT_TOKENS)) for _ in range(4)]
        with tqdm(desc=f"peers, batch {batch}", unit="way") as bar:
            ways = fastest_ways(_trial(peers, prompts[0], bar), threads)[:2]
        best = [str(way) for way in ways]
        rates: dict[str, list[StepRates]] = {name: [] for name in engines}
        runners = {name: ours(engine, rates[name]) for name, engine in engines.items()}
        runners |= {str(way): peers.decode(way) for way in ways}
        for engine in engines.values():
            engine.generate(prompts[0].tolist(), 2, stop=())
            engine.measure_read_limit()
        taken: dict[str, list[float]] = {name: [] for name in runners}
        started = time.perf_counter()
        while time.perf_counter() - started < seconds or len(taken[best[0]]) < 5:
            for name in rng.permutation(list(runners)):
                taken[name].append(runners[name](prompts[len(taken[name]) % 4], NEW_TOKENS))
        peer = min(best, key=lambda name: float(np.median(taken[name])))
        rows += [_row(name, batch, taken, peer, rates.get(name, [])) for name in runners]
    for engine in engines.values():
        engine.close()
    return rows


def _trial(peers: Transformers, prompts: np.ndarray, bar: tqdm[Any]) -> Callable[[Way], float | None]:
    def trial(way: Way) -> float | None:
        bar.update()
        try:
            decode = peers.decode(way)
            return min(decode(prompts, TRIAL_TOKENS) for _ in range(3))
        except (RuntimeError, ValueError, ImportError, TypeError) as error:
            bar.write(f"{way}: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
            return None

    return trial


def _row(name: str, batch: int, taken: dict[str, list[float]], peer: str, rates: list[StepRates]) -> DecodeRow:
    low, middle, high = np.percentile(batch * (NEW_TOKENS - 1) / np.array(taken[name]), (25, 50, 75))
    nodes = range(len(rates[0].routed)) if rates else ()
    ratio = None if name == peer else np.percentile(np.array(taken[peer]) / np.array(taken[name]), (25, 50, 75))
    return DecodeRow(
        name=name, batch=batch, tok_per_s=float(middle), tok_per_s_quartiles=(float(low), float(high)),
        times_best_peer=None if ratio is None else float(ratio[1]),
        times_best_peer_quartiles=None if ratio is None else (float(ratio[0]), float(ratio[2])), best_peer=peer,
        gb_per_s=float(np.median([each.gb_per_s for each in rates])) if rates else None,
        routed_gb_per_s_per_node=tuple(float(np.median([e.routed[n].gb_per_s for e in rates])) for n in nodes) or None,
        routed_percent_of_read_limit_per_node=tuple(_percent([e.routed[n] for e in rates]) for n in nodes) or None,
        read_limit=rates[0].read_limit if rates else None,
        cache_resident=rates[0].cache_resident if rates else None,
    )  # fmt: skip


def _percent(rates: Sequence[NodeRate]) -> float | None:
    shares = [rate.percent_of_read_limit for rate in rates if rate.percent_of_read_limit is not None]
    return float(np.median(shares)) if shares else None


def run(seconds: float = 10.0) -> BenchResult:
    """``moelab bench decode``."""
    rows = bench_decode(seconds)
    title = f"decode of nano, {NEW_TOKENS} new tokens after {PROMPT_TOKENS}, beside the best of transformers"
    return BenchResult(title, [asdict(row) for row in rows], columns=COLUMNS)
