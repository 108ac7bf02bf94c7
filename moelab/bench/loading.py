"""``moelab bench loading``: how fast a checkpoint is loaded, beside the disk and beside a copy with permutation.

Generated checkpoints in several disk forms. By turns, in one process, each with the same workers, into memory that is
warm (`warm_memory`):

- disk: the checkpoint's files read into buffers of 2 MB, the best of several ways (`cold_disk`);
- disk to memory: the same past the page cache into as many buffers as a load has, in turn, so that bytes arrive in
  memory and not in a cache. It is told beside the gate, which is of what the disk does at best;
- copy: the first gigabyte of the files, from their mapped and cached pages into memory that is as fresh as the arenas
  of a load, as the plainest permutation of that kind: lines of 64 B gathered from 16 rows 7,168 B apart, in 32-bit
  words that stay as they are;
- cold, warm: `moelab.load` as a whole, with nothing and with everything in the page cache;
- saved: `moelab.load(.., packed=..)` cold, beside a cold read of the bytes that it reads.

Rates count bytes of the source. Gate: cold at least 0.8 of the slower of disk and copy. Memory: `load_memory`. Floor 6.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moelab.bench.cold_disk import Disk, drop_cached, rate_to_memory, read_all
from moelab.bench.generated_checkpoint import Sizes, write_checkpoint
from moelab.bench.load_memory import measure_load_memory
from moelab.bench.result import BenchResult, Column
from moelab.bench.warm_memory import touch_memory
from moelab.engine.engine import load
from moelab.engine.mapped_file import MappedFile
from moelab.engine.packed.write import pack_model
from moelab.kernels.layout import pack
from moelab.kernels.pages import map_pages
from moelab.kernels.pool import Pool

COPY_ROWS, COPY_COLUMNS = 576, 3584  # of bf16: a strip of 4 MB
MORE_BYTES = 200_000_000
COPIED_BYTES = 1_000_000_000
PARTS = ("cold", "warm", "saved", "memory")

# (disk form of the experts, options of `load`)
NUM_MOE_LAYERS = {"int4": 12, "bf16": 2, "fused": 2}  # of the generated models: 3.1 and 1.8 GB
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("int4", {"dense_weights": "int8"}),
    ("int4", {"dense_weights": "int4"}),
    ("int4", {"dense_dtype": "bfloat16"}),
    ("bf16", {"dense_weights": "int8"}),
    ("fused", {"dense_weights": "bf16"}),
)


COLUMNS = (
    Column("experts", "experts"), Column("linear layers", "linear_layers"), Column("GB", "source_gb"),
    Column("disk GB/s", "disk_gb_per_s"), Column("copy", "copy_gb_per_s"), Column("cold", "cold_gb_per_s"),
    Column("of the slower (quartiles)", "cold_ratio_to_slower", "cold_ratio_quartiles"),
    Column("disk to memory", "disk_to_memory_gb_per_s"),
    Column("cold of it (quartiles)", "cold_of_disk_to_memory", "cold_of_disk_to_memory_quartiles"),
    Column("warm", "warm_gb_per_s"), Column("disk of saved", "saved_disk_gb_per_s"), Column("saved", "saved_gb_per_s"),
    Column("of disk (quartiles)", "saved_ratio_to_disk", "saved_ratio_quartiles"),
    Column("memory", "peak_memory_ratio"), Column("pages", "pages"),
)  # fmt: skip


@dataclass(frozen=True)
class LoadingRow:
    """Medians (and ranges) over rounds; ratios are of one round."""

    experts: str
    linear_layers: str
    source_gb: float
    disk_gb_per_s: float
    copy_gb_per_s: float
    cold_gb_per_s: float
    cold_ratio_to_slower: float
    cold_ratio_range: tuple[float, float]
    cold_ratio_quartiles: tuple[float, float]
    disk_to_memory_gb_per_s: float
    cold_of_disk_to_memory: float
    cold_of_disk_to_memory_quartiles: tuple[float, float]
    warm_gb_per_s: float
    warm_ratio_to_copy: float
    saved_gb_per_s: float
    saved_ratio_to_disk: float
    saved_ratio_quartiles: tuple[float, float]
    peak_memory_ratio: float
    peak_memory_within_gate: bool | None
    num_rounds: int
    pages: str  # of the experts' memory in all loads: asked for with success, and the share that was huge
    saved_disk_gb_per_s: float


def bench_loading(
    seconds: float,
    sizes: dict[str, Any] | None = None,
    cases: Sequence[str] | None = None,
    parts: Sequence[str] = PARTS,
    rounds: int = 3,
    keep: Path | None = None,
) -> list[LoadingRow]:
    """One row for each case; ``seconds`` for each, ``rounds`` at least. ``sizes``: fields of `Sizes`.

    ``cases`` are names (`name_of`), ``parts`` some of PARTS: what is not measured is nan. ``keep`` is a folder whose
    checkpoints and packed forms are made where they are missing, and stay. ValueError for names that do not exist.
    """
    chosen = {name_of(*case): case for case in CASES}
    for given, known in ((cases or (), chosen), (parts, PARTS)):
        for name in given:
            if name not in known:
                raise ValueError(f"bench loading: expected {', '.join(known)}; got {name!r}")
    asked = [chosen[name] for name in cases or chosen]
    if keep is not None:
        return [_row(_made(keep, form, sizes), form, how, parts, seconds, rounds) for form, how in asked]
    rows = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for form in dict.fromkeys(form for form, _ in asked):
            checkpoint = _made(Path(folder), form, sizes)
            for kind, how in asked:
                if kind == form:
                    rows.append(_row(checkpoint, form, how, parts, seconds, rounds))
                    shutil.rmtree(_packed_folder(checkpoint, how), ignore_errors=True)
            shutil.rmtree(checkpoint)
    return rows


def name_of(form: str, options: dict[str, Any]) -> str:
    """Of a case, as in int4-int8."""
    return "-".join((form, *options.values()))


def _made(folder: Path, form: str, sizes: dict[str, Any] | None) -> Path:
    """A generated checkpoint of the form, made where it is not there."""
    checkpoint = folder / form
    if not checkpoint.exists():
        beside = checkpoint.with_name(f"{form}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        write_checkpoint(beside, Sizes(**{"form": form, "num_moe_layers": NUM_MOE_LAYERS[form], **(sizes or {})}))
        beside.rename(checkpoint)
    return checkpoint


def _packed_folder(checkpoint: Path, options: dict[str, Any]) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}-{options.get('dense_weights')}-packed")


def _row(
    checkpoint: Path, form: str, options: dict[str, Any], parts: Sequence[str], seconds: float, least: int
) -> LoadingRow:
    packed = _packed_folder(checkpoint, options)
    if "saved" in parts and not packed.exists():
        pack_model(checkpoint, packed, dense_weights=options.get("dense_weights"))
    with Pool() as pool:
        return _measured(checkpoint, packed, form, options, parts, pool, seconds, least)


def _measured(
    checkpoint: Path, packed: Path, form: str, options: dict[str, Any], parts: Sequence[str], pool: Pool,
    seconds: float, least: int,
) -> LoadingRow:  # fmt: skip
    files = sorted(checkpoint.glob("*.safetensors"))
    saved_files = [*packed.glob("*.bin"), *([] if "dense_weights" in options else files)]
    num_bytes = sum(path.stat().st_size for path in files)
    fresh_bytes = num_bytes + num_bytes // 8
    disk, saved_disk = Disk(files, pool), Disk(saved_files, pool)
    copied = [path for number, path in enumerate(files) if number * path.stat().st_size < COPIED_BYTES]
    rounds: list[dict[str, float]] = []
    pages: list[str] = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(rounds) < least:
        row = {}
        cases: dict[str, Callable[[], float]] = {
            "disk": disk.bytes_per_s,
            "cold": lambda: num_bytes / _load_s(checkpoint, options, fresh_bytes, pages, files),
            "disk_to_memory": lambda: rate_to_memory(files, pool),
            "copy": lambda: copy_permuted(copied, pool, fresh_bytes),
            "warm": lambda: num_bytes / _load_s(checkpoint, options, fresh_bytes, pages),
            "saved_disk": saved_disk.bytes_per_s,
            "saved_s": lambda: _load_s(
                checkpoint, options | {"packed": packed}, fresh_bytes, pages, [*saved_files, *files]
            ),
        }
        for name, case in cases.items():
            if not parts_of(name) & set(parts):
                row[name] = float("nan")
                continue
            if name in ("copy", "warm"):  # they find everything cached, which a cold load does not leave behind
                read_all(copied if name == "copy" else files)
            row[name] = case()
        rounds.append(row)
    saved_bytes = _loaded_bytes(checkpoint, options | {"packed": packed}) if "saved" in parts else 0
    memory = measure_load_memory(checkpoint, **options) if "memory" in parts else None
    of = {name: np.array([row[name] for row in rounds]) for name in rounds[0]}
    cold = of["cold"] / np.minimum(of["disk"], of["copy"])
    of_memory = of["cold"] / of["disk_to_memory"]
    saved = saved_bytes / of["saved_s"]
    saved_ratio = saved / of["saved_disk"]
    return LoadingRow(
        experts=form, linear_layers=" ".join(options.values()), source_gb=num_bytes / 1e9,
        disk_gb_per_s=_median(of["disk"]), copy_gb_per_s=_median(of["copy"]), cold_gb_per_s=_median(of["cold"]),
        cold_ratio_to_slower=float(np.median(cold)), cold_ratio_range=(float(cold.min()), float(cold.max())),
        cold_ratio_quartiles=_quartiles(cold),
        disk_to_memory_gb_per_s=_median(of["disk_to_memory"]), cold_of_disk_to_memory=float(np.median(of_memory)),
        cold_of_disk_to_memory_quartiles=_quartiles(of_memory),
        warm_gb_per_s=_median(of["warm"]), warm_ratio_to_copy=float(np.median(of["warm"] / of["copy"])),
        saved_gb_per_s=_median(saved), saved_ratio_to_disk=float(np.median(saved_ratio)),
        saved_ratio_quartiles=_quartiles(saved_ratio),
        peak_memory_ratio=float("nan") if memory is None else memory.peak_ratio,
        peak_memory_within_gate=None if memory is None else memory.within(1.05, MORE_BYTES),
        num_rounds=len(rounds), pages=", ".join(dict.fromkeys(pages)), saved_disk_gb_per_s=_median(of["saved_disk"]),
    )  # fmt: skip


def parts_of(case: str) -> set[str]:
    """Which of PARTS need this case of a round."""
    others = {"copy": {"cold", "warm"}, "saved_disk": {"saved"}, "saved_s": {"saved"}}
    return {"disk": {"cold"}, "disk_to_memory": {"cold"}, **others}.get(case, {case})


def _quartiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [25, 75])
    return float(low), float(high)


def _median(rates: np.ndarray) -> float:
    return float(np.median(rates)) / 1e9


def _load_s(
    checkpoint: Path, options: dict[str, Any], fresh_bytes: int, pages: list[str], cold: list[Path] | None = None
) -> float:
    """Seconds of one load into warm memory, ``pages`` of which are noted; the files ``cold`` are taken out of the page
    cache before."""
    drop_cached(cold or [])
    touch_memory(fresh_bytes)
    with load(checkpoint, device="cpu", **options) as engine:
        pages.append(engine.expert_pages)
        return engine.load_s


def _loaded_bytes(checkpoint: Path, options: dict[str, Any]) -> int:
    with load(checkpoint, device="cpu", **options) as engine:
        return engine.loaded_bytes


def copy_permuted(files: list[Path], pool: Pool, fresh_bytes: int) -> float:
    """Bytes per second of the copy that the module describes, into memory that is warm up to so many bytes."""
    mapped = [MappedFile(path) for path in files]
    strip_bytes = 2 * COPY_ROWS * COPY_COLUMNS
    strips = [
        (file, start)
        for path, file in zip(files, mapped, strict=True)
        for start in range(0, path.stat().st_size - strip_bytes + 1, strip_bytes)
    ]
    memory = map_pages(len(strips) * strip_bytes).memory

    def copy(number: int) -> None:
        file, start = strips[number]
        source = file.tensor(torch.int16, (COPY_ROWS, COPY_COLUMNS), start).numpy().view(np.uint16)
        tiles = memory[number * strip_bytes : (number + 1) * strip_bytes]
        pack(tiles, source, COPY_ROWS, COPY_COLUMNS, "bf16")

    touch_memory(fresh_bytes)
    begun = time.perf_counter()
    pool.draw(len(strips), copy)
    return len(strips) * strip_bytes / (time.perf_counter() - begun)


def run(
    seconds: float = 10.0,
    cases: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
    rounds: int = 3,
    keep: str | None = None,
) -> BenchResult:
    """``moelab bench loading``."""
    folder = None if keep is None else Path(keep)
    rows = bench_loading(seconds, cases=cases, parts=parts or PARTS, rounds=rounds, keep=folder)
    title = "loading generated checkpoints beside the disk and a copy with permutation (gates: 0.8, 1.05 + 200 MB)"
    return BenchResult(title, [asdict(row) for row in rows], columns=COLUMNS)
