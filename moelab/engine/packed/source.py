"""Is the checkpoint still the one that was packed? Stamps of its files, and their comparison.

Equal sizes and times of change, headers and samples are believed; where only the time differs (a copy, a new download)
the whole content is read once and compared. Content that was changed in place, outside the samples, with its time of
change set back, is not noticed. It does not know packed weights. Floor 2.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

from moelab.engine.checkpoint import Checkpoint
from moelab.engine.direct_reads import DirectReads, is_cached, open_direct
from moelab.engine.loading_bar import LoadingBar
from moelab.engine.packed.manifest import Manifest, PackedError, SourceFile
from moelab.kernels.pool import Pool

NUM_SAMPLES, SAMPLE_BYTES = 64, 4096
SOURCE_CHUNK_BYTES = 16 << 20


def config_sha256(checkpoint: Checkpoint) -> str:
    return hashlib.sha256((checkpoint.directory / "config.json").read_bytes()).hexdigest()


def source_files(checkpoint: Checkpoint) -> list[Path]:
    return sorted({entry.file for entry in checkpoint.entries.values()})


def stamp_files(paths: list[Path], pool: Pool) -> list[SourceFile]:
    """Stamps with the checksums of the whole content: every byte is read, by all workers."""
    checksums = content_crc32(paths, pool)
    return [_stamp(path, checksums[path]) for path in paths]


def compare_source(manifest: Manifest, checkpoint: Checkpoint) -> list[Path]:
    """PackedError that names the file which is not the one that was packed.

    The files whose time of change differs come back: their content is to be compared (`check_content`).
    """
    config = checkpoint.directory / "config.json"
    if config_sha256(checkpoint) != manifest.config_sha256:
        raise PackedError(config, f"sha256 {manifest.config_sha256[:12]}.., as it was packed", "another")
    paths = source_files(checkpoint)
    packed = {file.name: file for file in manifest.source}
    if [path.name for path in paths] != sorted(packed):
        raise PackedError(checkpoint.directory, f"the files {sorted(packed)}", [path.name for path in paths])
    moved = []
    for path in paths:
        before, now = packed[path.name], _stamp(path, [], checkpoint.reads)
        for field in ("num_bytes", "header_sha256", "samples_sha256"):
            if getattr(before, field) != getattr(now, field):
                raise PackedError(
                    path,
                    f"{field} {getattr(before, field)}, as it was packed",
                    f"{getattr(now, field)}: it has changed",
                )
        if before.mtime_ns != now.mtime_ns:
            moved.append(path)
    return moved


def check_content(manifest: Manifest, paths: list[Path], pool: Pool) -> None:
    """PackedError where one of these files has another content than what was packed; every byte is read."""
    packed = {file.name: file for file in manifest.source}
    checksums = content_crc32(paths, pool) if paths else {}
    for path in paths:
        if checksums[path] != packed[path.name].crc32_of_chunk:
            raise PackedError(path, "the content that was packed", "another content and time of change: it has changed")


def content_crc32(paths: list[Path], pool: Pool) -> dict[Path, list[int]]:
    """CRC-32 of each chunk of each file, by all workers."""
    chunks = [
        (path, number, min(SOURCE_CHUNK_BYTES, path.stat().st_size - number * SOURCE_CHUNK_BYTES))
        for path in paths
        for number in range(-(-path.stat().st_size // SOURCE_CHUNK_BYTES))
    ]
    found: dict[Path, list[int]] = {path: [0] * -(-path.stat().st_size // SOURCE_CHUNK_BYTES) for path in paths}

    def checksum(task: int) -> None:
        path, number, length = chunks[task]
        crc = 0
        with path.open("rb", buffering=0) as file:
            file.seek(number * SOURCE_CHUNK_BYTES)
            while length > 0 and (data := file.read(min(length, 1 << 20))):
                crc = zlib.crc32(data, crc)
                length -= len(data)
        found[path][number] = crc

    total = sum(length for _, _, length in chunks)
    with LoadingBar("checking the checkpoint", total) as bar:
        advance = bar.part(total)
        pool.draw(len(chunks), checksum, lambda done: advance(done / max(len(chunks), 1)))
    return found


def _stamp(path: Path, crc32_of_chunk: list[int], reads: DirectReads | None = None) -> SourceFile:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        header_bytes = int.from_bytes(file.read(8), "little")
        header = hashlib.sha256(file.read(header_bytes)).hexdigest()
        samples = hashlib.sha256()
        last = max(status.st_size - SAMPLE_BYTES, 0)
        places = sorted({last * number // (NUM_SAMPLES - 1) for number in range(NUM_SAMPLES)})
        for place, sample in zip(places, _at_one_time(path, places, reads), strict=True):
            if sample is None:
                file.seek(place)
                sample = file.read(SAMPLE_BYTES)
            samples.update(sample)
    return SourceFile(
        name=path.name, num_bytes=status.st_size, mtime_ns=status.st_mtime_ns, header_sha256=header,
        samples_sha256=samples.hexdigest(), crc32_of_chunk=crc32_of_chunk,
    )  # fmt: skip


def _at_one_time(path: Path, places: list[int], reads: DirectReads | None) -> list[bytes | None]:
    """Samples at these places past the page cache, all at once; None where that cannot be or does not pay."""
    descriptor = None if reads is None else open_direct(path)
    if reads is None or descriptor is None:
        return [None] * len(places)
    try:
        if not reads.worth_while() or is_cached(descriptor, 0, 0, path.stat().st_size):
            return [None] * len(places)
        buffers = reads.read_apart(descriptor, [(place, place + SAMPLE_BYTES) for place in places])
    finally:
        os.close(descriptor)
    return [
        buffer.part(place, place + SAMPLE_BYTES).tobytes() if place + SAMPLE_BYTES <= buffer.stop else None
        for place, buffer in zip(places, buffers, strict=True)
    ]
