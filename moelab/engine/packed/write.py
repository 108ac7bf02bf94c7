"""`pack_model`: repack a checkpoint once and write what is in memory then, for `moelab.load(.., packed=..)`.

Layer after layer, so that it takes the memory of one layer of experts and of the packed linear layers. Everything goes
into `OUT.partial` and is renamed at the end: a pack that dies leaves that folder behind, and the next one clears it.
It does not know how weights are packed. Floor 2.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from xxhash import xxh3_64_intdigest

from moelab.engine.dense import PACKED_FORMATS, KernelLinears
from moelab.engine.loader import Opened, check_dense_weights, open_model
from moelab.engine.loading_bar import LoadingBar
from moelab.engine.packed.manifest import (
    CHUNK_BYTES,
    FORMAT,
    LINEARS,
    MANIFEST,
    VERSION,
    Manifest,
    PackedError,
    Section,
    next_offset,
)
from moelab.engine.packed.source import config_sha256, source_files, stamp_files
from moelab.engine.routed_arenas import choose_formats, expert_layout, fill_homes, new_arenas
from moelab.kernels.job import Activation
from moelab.kernels.layout import LAYOUT_VERSION
from moelab.kernels.pool import Pool
from moelab.kernels.tasks import Tasks
from moelab.store import TraceStoreError, durable
from moelab.store.writer_lock import WriterLock


@dataclass(frozen=True)
class Packed:
    """What was written."""

    folder: Path
    num_bytes: int
    seconds: float
    weight_format: str
    dense_weights: str | None

    def summary(self) -> dict[str, object]:
        return {
            "folder": str(self.folder), "weight_format": self.weight_format, "dense_weights": self.dense_weights,
            "num_bytes": self.num_bytes, "seconds": self.seconds,
        }  # fmt: skip


def pack_model(
    directory: str | Path,
    out: str | Path,
    *,
    activation: Activation | None = None,
    dense_weights: str | None = None,
    num_workers: int | None = None,
) -> Packed:
    """Write the repacked weights of a checkpoint into the new folder `out`.

    Routed experts in their stored format, or float32 with `activation` f32; with `dense_weights` (bf16, int8, int4) the
    linear layers too. PackedError where `out` exists or another process packs into it; CheckpointError as in `load`.
    """
    started, out = time.perf_counter(), Path(out)
    if out.exists():
        raise PackedError(out, "a folder that does not exist yet", "one that does", "remove it or name another")
    check_dense_weights(dense_weights, "cpu", None)
    opened = open_model(directory)
    checkpoint = opened.checkpoint
    with Pool(num_workers) as pool, scratch_folder(out) as folder:
        before = [path.stat().st_mtime_ns for path in source_files(checkpoint)]
        layout = expert_layout(opened.spec, choose_formats(opened.experts, activation)[0])
        sections, tasks = [], Tasks()
        num_bytes = len(opened.experts) * opened.spec.n_routed_experts * layout.expert_bytes
        with LoadingBar("packing", num_bytes) as bar:
            for number, experts in enumerate(opened.experts):
                (arena,) = new_arenas(1, experts.num_experts, layout)
                fill_homes([experts], [arena], layout, tasks)
                tasks.run(pool)
                file = f"experts-{number:03d}.bin"
                shape = [arena.num_experts, arena.stride]
                sections.append(write_section(folder, f"experts.{number}", file, 0, shape, arena.memory, pool))
                arena.close()
                bar.add(num_bytes // len(opened.experts))
        if dense_weights is not None:
            offset = 0
            for made in packed_linears(opened, dense_weights, pool).made:
                for name, sizes, tiles in made.sections:
                    sections.append(write_section(folder, name, LINEARS, offset, list(sizes), tiles, pool))
                    offset = next_offset(offset + len(tiles))
        for file in sorted({section.file for section in sections}):
            with FileIO(folder / file, "r+b") as written:
                durable.sync(written)
        stamps = stamp_files(source_files(checkpoint), pool)
        for path, time_before, stamp in zip(source_files(checkpoint), before, stamps, strict=True):
            if time_before != stamp.mtime_ns:
                raise PackedError(
                    path, "a file that nobody writes", "one that changed while it was packed", "pack again"
                )
        manifest = Manifest(
            format=FORMAT, version=VERSION, layout_version=LAYOUT_VERSION, weight_format=layout.weight_format,
            hidden_size=layout.hidden_size, intermediate_size=layout.intermediate_size,
            num_experts=opened.spec.n_routed_experts, dense_weights=dense_weights,
            config_sha256=config_sha256(checkpoint), source=stamps, sections=sections,
        )  # fmt: skip
        durable.publish(folder / MANIFEST, manifest.to_bytes())
        checkpoint.close()
        durable.rename(folder, out)
        durable.sync_folder(out.parent)
    total = sum((out / file).stat().st_size for file in {section.file for section in sections})
    return Packed(out, total, time.perf_counter() - started, layout.weight_format, dense_weights)


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """An empty folder in `OUT.partial`, which one process has at a time and which is gone afterwards."""
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        lock = WriterLock(partial)
    except TraceStoreError as error:
        raise PackedError(
            partial, "no other process that packs", error.got, "wait for it or name another folder"
        ) from None
    try:
        folder = partial / "packed"
        shutil.rmtree(folder, ignore_errors=True)  # of a process that died
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(partial / "packed", ignore_errors=True)
        lock.release()
        if partial.exists() and not any(partial.iterdir()):
            partial.rmdir()


def write_section(
    folder: Path, name: str, file: str, offset: int, shape: list[int], memory: np.ndarray, pool: Pool
) -> Section:
    """`memory` (uint8) at `offset` of a file, in chunks that all workers write and checksum; not yet durable."""
    path = folder / file
    path.touch()
    checksums = [0] * -(-len(memory) // CHUNK_BYTES)

    def write(number: int) -> None:
        part = memory.data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        checksums[number] = xxh3_64_intdigest(part)
        with FileIO(path, "r+b") as to:
            durable.write_at(to, part, offset + number * CHUNK_BYTES)

    pool.draw(len(checksums), write)
    return Section(name=name, file=file, offset=offset, num_bytes=len(memory), shape=shape, xxh3_of_chunk=checksums)


def packed_linears(opened: Opened, dense_weights: str, pool: Pool) -> KernelLinears:
    """The linear layers of the model, made as `load` makes them; the rest of the model is dropped."""
    checkpoint, names = opened.checkpoint, opened.names

    def read(name: str, kind: Literal["dense", "exact", "float32", "mapped"] = "dense") -> torch.Tensor:
        tensor = checkpoint.read(names.spell(name))
        return (
            tensor if kind == "mapped" else tensor.to(torch.float32 if kind == "float32" else tensor.dtype, copy=True)
        )

    tasks = Tasks()
    linears = KernelLinears(PACKED_FORMATS[dense_weights], None, pool, checkpoint, tasks=tasks)
    routed = [None] * len(opened.experts)
    opened.module.Model(opened.spec, opened.text_config, read, routed, torch.device("cpu"), linears)
    tasks.run(pool)
    return linears
