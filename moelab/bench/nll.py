"""``moelab bench nll``: what each activation mode, each format of the linear layers and each lossy mode costs.

nano's prompts (held-out documents of nine domains), mean negative log likelihood per token, each mode beside float32
throughout; the lossy modes (``domain.lossy``) beside the same engine without them, on every third prompt, because their
texts are fed one token at a time: what is resident changes with each. Their fast tier is on paper (LRU, a quarter of
the experts), so that the cost is that of the routing alone. A difference is of the same tokens, so its interval
(bootstrap over prompts) is far smaller than that of the NLL itself. Floor 6.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from moelab.bench.result import BenchResult, Column
from moelab.domain.lossy import Lossy
from moelab.domain.trace import Phase
from moelab.engine.engine import Engine, load
from moelab.engine.sampling import Sampling
from moelab.kernels import isa_table
from moelab.kernels.job import Activation
from moelab.planner import empty
from moelab.store import shipped
from moelab.store.lossy_costs import tier_of

# (activations of the routed experts, type of the dense path, packed linear layers)
MODES: tuple[tuple[Activation, str, str], ...] = (
    ("f32", "float32", "torch"), ("bf16", "float32", "torch"), ("int8", "float32", "torch"),
    ("int8", "bfloat16", "torch"),
    ("int8", "float32", "float32"), ("int8", "float32", "bf16"), ("int8", "float32", "int8"),
    ("int8", "float32", "int4"),
)  # fmt: skip
COLUMNS = (
    Column("results", "lossy"), Column("experts", "activation"), Column("carried", "carried"),
    Column("dense path", "dense_dtype"), Column("linear layers", "dense_weights"), Column("NLL", "nll"),
    Column("cost (95%)", "cost", "cost_interval"), Column("tokens", "num_tokens"),
    Column("misses", "misses_per_layer_step"),
)  # fmt: skip
# The first is what the others stand beside.
LOSSY_MODES = (
    Lossy(),
    *(Lossy(cache_bias=bias) for bias in (0.1, 0.2, 0.5)),
    *(Lossy(num_deferred=count) for count in (1, 2, 3)),
)
SLOT_SHARE = 0.25  # of the experts of a layer
LOSSY_EVERY = 3  # prompts
_BOOTSTRAP = 2000


@dataclass(frozen=True)
class NllRow:
    """Nats per token; ``cost`` against float32 throughout with its 95% interval over prompts.

    ``carried``: the numbers that ``activation`` is multiplied as.

    ``lossy``: ``exact``, or a mode whose cost is against the same engine without it; then ``misses_per_layer_step`` are
    distinct experts that were read from home, ``None`` without a fast tier.
    """

    lossy: str
    activation: str
    dense_dtype: str
    dense_weights: str
    carried: str
    nll: float
    cost: float
    cost_interval: tuple[float, float]
    num_tokens: int
    num_layers: int
    num_experts: int
    policy: str | None = None
    slots_per_layer: int | None = None
    misses_per_layer_step: float | None = None


def bench_nll() -> list[NllRow]:
    """All modes that this machine has, over all prompts."""
    with open(shipped("nano/prompts.jsonl"), encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for line in file]
    return [*arithmetic_rows(prompts), *lossy_rows(prompts[::LOSSY_EVERY])]


def arithmetic_rows(prompts: Sequence[str]) -> list[NllRow]:
    """``MODES`` over the prompts, the first beside itself; packed linear layers where the native library is."""
    native = any(row.supported and row.isa != "numba" for row in isa_table())
    modes = [mode for mode in MODES if native or mode[2] == "torch"]
    rows: list[NllRow] = []
    exact: np.ndarray | None = None
    for activation, dense_dtype, dense_weights in tqdm(modes, desc="nll", unit="mode"):
        with load(
            shipped("nano/model"), device="cpu", activation=activation, dense_dtype=dense_dtype,
            dense_weights=dense_weights,
        ) as engine:  # fmt: skip
            sums, counts = _sums(engine, prompts)
        if exact is None:
            exact = sums
        rows.append(_row(engine, "exact", sums, exact, counts))
    return rows


def lossy_rows(prompts: Sequence[str], modes: Sequence[Lossy] = LOSSY_MODES) -> list[NllRow]:
    """The modes over the prompts, each in a tier that is empty at first; nano as it loads, on one worker.

    No bit depends on the workers, and on a busy machine two of them took eight times as long for so small a model.
    """
    rows: list[NllRow] = []
    exact: np.ndarray | None = None
    with load(shipped("nano/model"), device="cpu", num_workers=1) as engine:
        for lossy in tqdm(modes, desc="nll, lossy", unit="mode"):
            slots = round(SLOT_SHARE * engine.spec.n_routed_experts)
            engine.use_lossy(None)
            tier = engine.use_plan(empty(engine.trace_header(), slots_per_layer=slots), late="never")
            engine.use_lossy(lossy)
            sums, counts = _sums(engine, prompts, _logits_by_decode)
            assert tier is not None
            report = tier.report()
            misses = report.misses / int(report.num_layer_steps.sum())
            exact = sums if exact is None else exact
            rows.append(_row(engine, str(lossy), sums, exact, counts, misses))
        engine.use_lossy(None)
    return rows


def _row(
    engine: Engine, lossy: str, sums: np.ndarray, exact: np.ndarray, counts: np.ndarray, misses: float | None = None
) -> NllRow:
    total = counts.sum()
    return NllRow(
        lossy=lossy, activation=engine.activation, dense_dtype=engine.dense_dtype,
        dense_weights=engine.dense_weights or "torch", carried=engine.carried,
        nll=float(sums.sum() / total), cost=float((sums - exact).sum() / total),
        cost_interval=_interval(sums - exact, counts), num_tokens=int(total), misses_per_layer_step=misses,
        num_layers=engine.spec.num_moe_layers, num_experts=engine.spec.n_routed_experts,
        **tier_of(None if engine.fast_tier is None else engine.fast_tier.plan),
    )  # fmt: skip


def _logits_at_once(engine: Engine, token_ids: Sequence[int]) -> torch.Tensor:
    return engine.forward(token_ids)


def _logits_by_decode(engine: Engine, token_ids: Sequence[int]) -> torch.Tensor:
    """[T, vocab]: one decode step for each token."""
    cache, sequence = engine.new_cache(1), engine.new_sequence(token_ids, 1, Sampling(), ())
    rows = []
    for token in token_ids:
        logits = engine.step(torch.tensor([[token]]), cache, 0, [sequence], Phase.DECODE, "last")
        assert logits is not None
        rows.append(logits[0, 0])
    engine.end_request()
    return torch.stack(rows)


def _sums(
    engine: Engine, prompts: Sequence[str], logits_of: Callable[[Engine, Sequence[int]], torch.Tensor] = _logits_at_once
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of -log p and number of predicted tokens of each prompt."""
    sums, counts = [], []
    for prompt in prompts:
        tokens = engine.codec.encode(prompt)
        log_p = logits_of(engine, tokens[:-1]).double().log_softmax(-1)
        chosen = log_p.gather(-1, torch.tensor(tokens[1:])[:, None])
        sums.append(-float(chosen.sum()))
        counts.append(len(tokens) - 1)
    return np.array(sums), np.array(counts)


def _interval(differences: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    draws = np.random.default_rng(0).integers(len(counts), size=(_BOOTSTRAP, len(counts)))
    means = differences[draws].sum(1) / counts[draws].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def run(seconds: float = 10.0, out: str | None = None) -> BenchResult:
    """``moelab bench nll``: all prompts, whatever ``seconds``. ``out``: the rows as JSON, the table that ships."""
    rows = [{**asdict(row), "measured_with": _measured_with(row)} for row in bench_nll()]
    result = BenchResult("held-out NLL of nano in every mode, nats per token", rows, columns=COLUMNS)
    if out is not None:
        partial = Path(f"{out}.partial")
        partial.write_text(json.dumps(result.to_dict() | {"date": date.today().isoformat()}, indent=1) + "\n")
        partial.replace(out)
    return result


def _measured_with(row: NllRow) -> str:
    share = (row.slots_per_layer or 0) / row.num_experts
    tier = "" if row.policy is None else f", fast tier of {row.policy}, {share:.0%} of the experts of a layer"
    return f"{row.activation} activations, dense path {row.dense_dtype}{tier}"
