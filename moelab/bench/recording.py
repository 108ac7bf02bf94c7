"""Cost of recording: decode steps with and without the recorder, interleaved step by step.

`moelab bench recording`: nano, and two layers of K2.6 with generated weights. Steps go in pairs, one recorded and one
not, in random order, at the same cache length to within one token, so that other load on the machine falls on both.
Reported: the median of the paired differences over the median unrecorded step, with a bootstrap interval, for wall
time and for the CPU time of the calling thread (what other processes cannot disturb). The gates of the project are
3 % on nano and 1 % on the slice. Floor 6.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from moelab.bench.engine import slice_of
from moelab.bench.result import BenchResult
from moelab.domain.trace import Phase
from moelab.engine.engine import Engine, load
from moelab.engine.recorder import Recorder, header_of
from moelab.engine.sampling import Sampling
from moelab.store import TraceWriter, shipped

GATE_PERCENT = {"nano": 3.0, "slice": 1.0}
RESTART_AT = 400  # cache length at which a sequence starts again


@dataclass(frozen=True)
class RecordingCost:
    """Percent of a decode step, `interval` is the 95 % bootstrap interval of the thread-time figure."""

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


def recording_cost(
    engine: Engine, num_pairs: int = 1000, batch_size: int = 1, to_disk: bool = False, seed: int = 0
) -> RecordingCost:
    """Measure on a loaded engine. `to_disk` includes the log of a trace folder (in a temporary folder)."""
    draw = np.random.default_rng(seed)
    prompts = draw.integers(0, engine.spec.vocab_size, (batch_size, 16))
    sequences = [engine.new_sequence(p.tolist(), 1, Sampling(), ()) for p in prompts]
    header = header_of(engine, (), "none", "recording cost")
    wall, thread = np.empty((num_pairs, 2)), np.empty((num_pairs, 2))
    with tempfile.TemporaryDirectory() as folder:
        writer = TraceWriter(Path(folder) / "trace", header) if to_disk else None
        recorder = Recorder(header, False, writer)
        cache = engine.new_cache(batch_size)
        for pair in range(-20, num_pairs):  # the first twenty warm up
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
        engine.observers.clear()
        if writer is not None:
            recorder.finish()
    difference = thread[:, 1] - thread[:, 0]
    # The log is written in one step of many: there the mean counts, elsewhere the median is steadier.
    middle = np.mean if to_disk else np.median
    base = float(np.median(thread[:, 0]))
    samples = [float(middle(draw.choice(difference, num_pairs))) for _ in range(500)]
    low, high = np.percentile(samples, [2.5, 97.5]) / base * 100
    return RecordingCost(
        model=engine.name,
        isa=engine.isa,
        activation=engine.activation,
        batch_size=batch_size,
        to_disk=to_disk,
        num_pairs=num_pairs,
        step_ms=round(float(np.median(wall[:, 0])) * 1e3, 3),
        overhead_us=round(float(middle(difference)) * 1e6, 1),
        overhead_percent=round(float(middle(difference)) / base * 100, 2),
        interval_percent=(round(float(low), 2), round(float(high), 2)),
        wall_overhead_percent=round(float(np.median(wall[:, 1] - wall[:, 0]) / np.median(wall[:, 0])) * 100, 2),
    )


def run(seconds: float = 30.0) -> BenchResult:
    """``moelab bench recording``: on nano, in memory and to disk, one sequence and eight."""
    cases = ((1, False), (1, True), (8, False))
    with load(shipped("nano/model")) as engine:
        pilot = recording_cost(engine, num_pairs=40)
        pairs = max(100, int(1e3 * seconds / len(cases) / (2 * pilot.step_ms)))
        costs = [recording_cost(engine, pairs, batch_size, to_disk) for batch_size, to_disk in cases]
    with slice_of("kimi-k2.6", layers=2, experts=64, dense_weights="int8") as part:
        pilot = recording_cost(part.engine, num_pairs=40)
        costs.append(recording_cost(part.engine, max(50, int(1e3 * seconds / len(cases) / (2 * pilot.step_ms)))))

    title = f"cost of recording a decode step of nano and of a slice of K2.6, paired steps; gates: {GATE_PERCENT} %"
    return BenchResult(title, [asdict(cost) for cost in costs])
