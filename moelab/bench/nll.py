"""``moelab bench nll``: what each activation mode and each format of the linear layers costs on held-out text.

nano's prompts (held-out documents of nine domains), mean negative log likelihood per token, each mode beside float32
throughout. A difference is of the same tokens, so its interval (bootstrap over prompts) is far smaller than that of
the NLL itself. Floor 6.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from moelab.bench.result import BenchResult
from moelab.engine.engine import Engine, load
from moelab.kernels import isa_table
from moelab.kernels.job import Activation
from moelab.store import shipped

# (activations of the routed experts, type of the dense path, packed linear layers)
MODES: tuple[tuple[Activation, str, str], ...] = (
    ("f32", "float32", "torch"), ("bf16", "float32", "torch"), ("int8", "float32", "torch"),
    ("int8", "bfloat16", "torch"),
    ("int8", "float32", "float32"), ("int8", "float32", "bf16"), ("int8", "float32", "int8"),
    ("int8", "float32", "int4"),
)  # fmt: skip
_BOOTSTRAP = 2000


@dataclass(frozen=True)
class NllRow:
    """Nats per token; ``cost`` against float32 throughout with its 95% interval over prompts."""

    activation: str
    dense_dtype: str
    dense_weights: str
    nll: float
    cost: float
    cost_interval: tuple[float, float]
    num_tokens: int


def bench_nll() -> list[NllRow]:
    """All modes that this machine has, over all prompts."""
    native = any(row.supported and row.isa != "numba" for row in isa_table())
    modes = [mode for mode in MODES if native or mode[2] == "torch"]
    with open(shipped("nano/prompts.jsonl"), encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for line in file]
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
        low, high = _interval(sums - exact, counts)
        total = counts.sum()
        rows.append(
            NllRow(
                activation=activation, dense_dtype=dense_dtype, dense_weights=dense_weights,
                nll=float(sums.sum() / total), cost=float((sums - exact).sum() / total), cost_interval=(low, high),
                num_tokens=int(total),
            )
        )  # fmt: skip
    return rows


def _sums(engine: Engine, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of -log p and number of predicted tokens of each prompt."""
    sums, counts = [], []
    for prompt in prompts:
        tokens = engine.codec.encode(prompt)
        log_p = engine.forward(tokens[:-1]).double().log_softmax(-1)
        chosen = log_p.gather(-1, torch.tensor(tokens[1:])[:, None])
        sums.append(-float(chosen.sum()))
        counts.append(len(tokens) - 1)
    return np.array(sums), np.array(counts)


def _interval(differences: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    draws = np.random.default_rng(0).integers(len(counts), size=(_BOOTSTRAP, len(counts)))
    means = differences[draws].sum(1) / counts[draws].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def run(seconds: float = 10.0) -> BenchResult:
    """``moelab bench nll``: all prompts, whatever ``seconds``."""
    rows = bench_nll()
    return BenchResult("held-out NLL of nano in every mode, nats per token", [asdict(row) for row in rows])
