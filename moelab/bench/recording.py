"""Cost of recording: decode steps with and without the recorder, interleaved step by step.

`moelab bench recording`: nano, and two layers of K2.6 with generated weights. Steps go in pairs, one recorded and one
not, in random order, at the same cache length to within one token, so that other load on the machine falls on both.
Most recorded steps only keep their routing, one of many copies what waits, or writes it to disk: the cost is the median
difference of the former and the mean of the latter, by how often they occur, over the median unrecorded step, with a
bootstrap interval drawn within the two kinds. In the CPU time of the calling thread, which other processes disturb
least; the wall time of the same beside it. The gates of the project are 3 % on nano and 1 % on the slice, judged by the
upper end of the interval: few pairs cannot pass. Floor 6.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from moelab.bench.engine import slice_of
from moelab.bench.result import BenchResult, Column
from moelab.domain.trace import Phase
from moelab.engine.engine import Engine, load
from moelab.engine.recorder import FLUSH_TOKENS, PENDING_TOKENS, Recorder, header_of
from moelab.engine.sampling import Sampling
from moelab.store import TraceWriter, shipped

GATE_PERCENT = {"nano": 3.0, "slice": 1.0}
PARTS = ("nano", "slice", "slice-disk")
COLUMNS = (
    Column("model", "model"), Column("isa", "isa"), Column("batch", "batch_size"), Column("to disk", "to_disk"),
    Column("pairs", "num_pairs"), Column("step ms", "step_ms"), Column("cost us", "overhead_us"),
    Column("% of a step (95%)", "overhead_percent", "interval_percent"), Column("wall %", "wall_overhead_percent"),
    Column("gate %", "gate_percent"), Column("within", "within_gate"),
    Column("GB/s", "gb_per_s"), Column("% of read limit", "percent_of_read_limit"),
)  # fmt: skip
WARM_UP = 20  # pairs
RESTART_AT = 400  # cache length at which a sequence starts again


@dataclass(frozen=True)
class RecordingCost:
    """Percent of a decode step, `interval` is the 95 % bootstrap interval of the thread-time figure.

    `num_copies`: steps among the pairs that copied what waited, or wrote it. `within_gate`: the interval's upper end
    is at most `gate_percent`. `gb_per_s`: all weights that the kernels counted over the whole time of the pairs' steps;
    the percentage is of a read of the experts before the pairs, None where they fit the cache.
    """

    model: str
    isa: str
    activation: str
    batch_size: int
    to_disk: bool
    num_pairs: int
    step_ms: float
    overhead_us: float
    overhead_percent: float
    interval_percent: tuple[float, float]
    wall_overhead_percent: float
    num_copies: int
    gate_percent: float
    within_gate: bool
    gb_per_s: float | None
    percent_of_read_limit: float | None


def recording_cost(
    engine: Engine, num_pairs: int = 1000, batch_size: int = 1, to_disk: bool = False, seed: int = 0,
    model: str = "nano",
) -> RecordingCost:  # fmt: skip
    """Measure on a loaded engine. `to_disk` includes the log of a trace folder (in a temporary folder).

    `model` names the gate.
    """
    draw = np.random.default_rng(seed)
    prompts = draw.integers(0, engine.spec.vocab_size, (batch_size, 16))
    sequences = [engine.new_sequence(p.tolist(), 1, Sampling(), ()) for p in prompts]
    header = header_of(engine, (), "none", "recording cost")
    # The warm-up's rows are the last ones.
    wall, thread = np.empty((num_pairs + WARM_UP, 2)), np.empty((num_pairs + WARM_UP, 2))
    dear = np.zeros(num_pairs + WARM_UP, bool)  # copied or written what waited
    with tempfile.TemporaryDirectory() as folder:
        writer = TraceWriter(Path(folder) / "trace", header) if to_disk else None
        recorder = Recorder(header, False, writer)
        cache = engine.new_cache(batch_size)
        for pair in range(-WARM_UP, num_pairs):
            if pair == 0:
                engine.measure_read_limit()
                mark = engine.decode_mark()
            if cache.lengths[0] == 0 or cache.lengths[0] > RESTART_AT:
                for row, sequence in enumerate(sequences):
                    cache.clear(row)
                    engine.prefill(sequence, cache, row)
            order = [0, 1] if draw.random() < 0.5 else [1, 0]
            for recorded in order:
                fed = torch.from_numpy(draw.integers(0, engine.spec.vocab_size, (batch_size, 1)))
                engine.observers[:] = [recorder.observe] if recorded else []
                cpu, clock = time.thread_time(), time.perf_counter()
                engine.step(fed, cache, 0, sequences, Phase.DECODE, "last")
                wall[pair, recorded] = time.perf_counter() - clock
                thread[pair, recorded] = time.thread_time() - cpu
            dear[pair] = recorder.num_pending == 0
        engine.observers.clear()
        rates = engine.decode_rates(mark)
        recorder.finish()
    wall, thread, dear = wall[:num_pairs], thread[:num_pairs], dear[:num_pairs]
    base = float(np.median(thread[:, 0]))
    overhead, (low, high) = mean_cost(thread[:, 1] - thread[:, 0], dear, draw)
    wall_overhead, _ = mean_cost(wall[:, 1] - wall[:, 0], dear, draw)
    interval = (round(low / base * 100, 2), round(high / base * 100, 2))
    return RecordingCost(
        model=model,
        isa=engine.isa,
        activation=engine.activation,
        batch_size=batch_size,
        to_disk=to_disk,
        num_pairs=num_pairs,
        step_ms=round(float(np.median(wall[:, 0])) * 1e3, 3),
        overhead_us=round(overhead * 1e6, 1),
        overhead_percent=round(overhead / base * 100, 2),
        interval_percent=interval,
        wall_overhead_percent=round(wall_overhead / float(np.median(wall[:, 0])) * 100, 2),
        num_copies=int(np.count_nonzero(dear)),
        gate_percent=GATE_PERCENT[model],
        within_gate=interval[1] <= GATE_PERCENT[model],
        gb_per_s=None if rates is None else rates.gb_per_s,
        percent_of_read_limit=None if rates is None else rates.percent_of_read_limit,
    )


def mean_cost(difference: np.ndarray, dear: np.ndarray, draw: np.random.Generator) -> tuple[float, tuple[float, float]]:
    """Cost of a mean pair and its 95 % bootstrap interval: median of the pairs that keep, mean of the others.

    difference [pairs]. A mean of all would see every interruption of the machine, a median of all no dear step; among
    the dear ones the arrays' growth is rare too, so that only their mean sees it.
    """
    groups = [difference[~dear], difference[dear]]

    def cost(kept: np.ndarray, rare: np.ndarray) -> float:
        return float(len(kept) * np.median(kept) + rare.sum()) / len(difference)

    samples = [cost(*(draw.choice(group, len(group)) for group in groups)) for _ in range(500)]
    low, high = np.percentile(samples, [2.5, 97.5])
    return cost(*groups), (float(low), float(high))


def run(seconds: float = 30.0, parts: Sequence[str] = PARTS) -> BenchResult:
    """``moelab bench recording``: on nano, in memory and to disk, one sequence and eight; on a slice of K2.6 both ways.

    nano's cases share ``seconds``, each of the slice has as much: its steps are long. ``ValueError`` for a part that
    does not exist.
    """
    if wrong := [part for part in parts if part not in PARTS]:
        raise ValueError(f"--parts: expected some of {', '.join(PARTS)}; got {', '.join(wrong)}")
    costs = []
    if "nano" in parts:
        with load(shipped("nano/model")) as engine:
            for case in ((1, False), (1, True), (8, False), (8, True)):
                costs.append(recording_cost(engine, _pairs(engine, seconds / 4, *case), *case))
    if on_slice := [part == "slice-disk" for part in PARTS[1:] if part in parts]:
        with slice_of("kimi-k2.6", layers=2, experts=64, dense_weights="int8") as part:
            for to_disk in on_slice:
                pairs = _pairs(part.engine, seconds, 1, to_disk)
                costs.append(recording_cost(part.engine, pairs, 1, to_disk, model="slice"))
    title = f"cost of recording a decode step of nano and of a slice of K2.6, paired steps; gates: {GATE_PERCENT} %"
    return BenchResult(title, [asdict(cost) for cost in costs], columns=COLUMNS)


def _pairs(engine: Engine, seconds: float, batch_size: int = 1, to_disk: bool = False) -> int:
    """Pairs that take about `seconds`, a whole number of copies or writes, at least one."""
    pilot = recording_cost(engine, 20, batch_size)
    between = (FLUSH_TOKENS if to_disk else PENDING_TOKENS) // batch_size
    return between * max(1, round(1e3 * seconds / (2 * pilot.step_ms * between)))
