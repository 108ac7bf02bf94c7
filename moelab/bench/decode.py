"""``moelab bench decode``: nano's decode steps beside those of transformers, by turns in one process.

Greedy decode of one sequence and of eight from the same prompts. Ours: the engine as it loads, with int8 linear layers,
and throughout in float32, which is what transformers computes (with dequantised weights). Transformers: every expert
backend that it has on a CPU, as it is and with ``torch.compile``d forward passes over a static cache, at one and at
all threads; the two best of a short trial are measured, the better one is the peer of the ratio. It does not know text:
both decode the same number of tokens. Floor 6; extra ``[test]`` (transformers, compressed-tensors).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from moelab.bench.parity import transformers_twin
from moelab.bench.result import BenchResult
from moelab.engine.engine import Engine, load
from moelab.store import shipped

BATCHES = (1, 8)
PROMPT_TOKENS, NEW_TOKENS, TRIAL_TOKENS = 16, 48, 12
# Who computes the experts: names of transformers' backends for the CPU, and of our engine's settings.
BACKENDS = ("eager", "batched_mm", "grouped_mm")
OURS: dict[str, dict[str, Any]] = {
    "moelab": {},
    "moelab, int8 linear layers": {"dense_weights": "int8"},
    "moelab, float32": {"activation": "f32", "dense_dtype": "float32"},
}


@dataclass(frozen=True)
class DecodeRow:
    """Tokens per second over all sequences (median, quartiles); ``times_best_peer`` is a median of paired ratios."""

    name: str
    batch: int
    tok_per_s: float
    tok_per_s_quartiles: tuple[float, float]
    times_best_peer: float | None
    times_best_peer_quartiles: tuple[float, float] | None
    best_peer: str


Decode = Callable[[np.ndarray, int], float]  # prompts [B, T], new tokens -> seconds of the decode steps alone


def ours(engine: Engine) -> Decode:
    """The engine's own generation."""

    def decode(prompts: np.ndarray, num_tokens: int) -> float:
        results = engine.generate(prompts.tolist(), num_tokens, stop=())
        return float(max(result.decode_s for result in results))

    return decode


def theirs(model: Any, backend: str, compiled: bool, num_threads: int) -> Decode:
    """Greedy decode over a static cache, one forward pass a token."""
    from transformers import StaticCache

    torch._dynamo.config.recompile_limit = 64  # one for each layer and backend; the default of 8 gives up half way
    forward = torch.compile(model.forward, dynamic=False) if compiled else model.forward

    @torch.no_grad()
    def decode(prompts: np.ndarray, num_tokens: int) -> float:
        model.set_experts_implementation(backend)
        torch.set_num_threads(num_threads)
        try:
            cache = StaticCache(config=model.config, max_cache_len=PROMPT_TOKENS + NEW_TOKENS)
            tokens = torch.from_numpy(prompts)
            logits = model(tokens, past_key_values=cache, use_cache=True).logits[:, -1]
            started = time.perf_counter()
            for step in range(num_tokens - 1):
                following = logits.argmax(-1)[:, None]
                position = torch.tensor([PROMPT_TOKENS + step])
                output = forward(
                    following, past_key_values=cache, use_cache=True, position_ids=position[None].expand(len(tokens), 1)
                )
                logits = output.logits[:, -1]
            return time.perf_counter() - started
        finally:
            torch.set_num_threads(1)

    return decode


def peers(model: Any) -> dict[str, Decode]:
    """Every way of transformers that runs here, by name."""
    threads = sorted({1, torch.get_num_threads()})
    found: dict[str, Decode] = {}
    for backend in BACKENDS:
        for compiled in (False, True):
            for num_threads in threads:
                name = f"transformers {backend}{', compiled' if compiled else ''}, {num_threads} threads"
                found[name] = theirs(model, backend, compiled, num_threads)
    return found


def bench_decode(seconds: float) -> list[DecodeRow]:
    """All rows; ways of transformers that fail here are left out and said on the progress bar."""
    rng = np.random.default_rng(0)
    folder = shipped("nano/model")
    twin = transformers_twin(folder)
    rows: list[DecodeRow] = []
    candidates = peers(twin)
    engines = {name: load(folder, device="cpu", **choices) for name, choices in OURS.items()}
    for batch in BATCHES:
        prompts = [rng.integers(2, 4096, (batch, PROMPT_TOKENS)) for _ in range(4)]
        usable: dict[str, float] = {}
        for name, decode in (bar := tqdm(candidates.items(), desc=f"peers, batch {batch}", unit="way")):
            try:
                usable[name] = min(decode(prompts[0], TRIAL_TOKENS) for _ in range(3))
            except (RuntimeError, ValueError, ImportError, TypeError) as error:
                bar.write(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
        best = sorted(usable, key=usable.__getitem__)[:2]
        runners = {name: ours(engine) for name, engine in engines.items()} | {name: candidates[name] for name in best}
        taken: dict[str, list[float]] = {name: [] for name in runners}
        started = time.perf_counter()
        while time.perf_counter() - started < seconds or len(taken[best[0]]) < 5:
            for name in rng.permutation(list(runners)):
                taken[name].append(runners[name](prompts[len(taken[name]) % 4], NEW_TOKENS))
        peer = min(best, key=lambda name: float(np.median(taken[name])))
        rows += [_row(name, batch, taken, peer) for name in runners]
    for engine in engines.values():
        engine.close()
    return rows


def _row(name: str, batch: int, taken: dict[str, list[float]], peer: str) -> DecodeRow:
    rates = batch * (NEW_TOKENS - 1) / np.array(taken[name])
    low, middle, high = np.percentile(rates, (25, 50, 75))
    ratio = None if name == peer else np.percentile(np.array(taken[peer]) / np.array(taken[name]), (25, 50, 75))
    return DecodeRow(
        name=name, batch=batch, tok_per_s=float(middle), tok_per_s_quartiles=(float(low), float(high)),
        times_best_peer=None if ratio is None else float(ratio[1]),
        times_best_peer_quartiles=None if ratio is None else (float(ratio[0]), float(ratio[2])), best_peer=peer,
    )  # fmt: skip


def run(seconds: float = 10.0) -> BenchResult:
    """``moelab bench decode``."""
    rows = bench_decode(seconds)
    title = f"decode of nano, {NEW_TOKENS} new tokens after {PROMPT_TOKENS}, beside the best of transformers"
    return BenchResult(title, [asdict(row) for row in rows])
