"""1,000 random flips, cuts and deletions over all files: each is noticed, or what is read is still right."""

import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from moelab.store import TraceStoreError, TraceWriter, open_trace, verify
from tests.store.recorded_rows import Rows, append, difference, header, in_memory

NUM_DAMAGES, NUM_RESUMED = 1000, 150
ROWS = Rows(header(), seed=11)


def flip(draw, data):
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def cut(draw, data):
    return data[: draw.randrange(len(data))]


def cut_at_a_line(draw, data):
    ends = [at for at, byte in enumerate(data) if byte == 10]
    return data[: draw.choice(ends[:-1]) + 1] if len(ends) > 1 else b""


def delete(draw, data):
    return None


def zero(draw, data):
    start = draw.randrange(len(data))
    stop = min(len(data), start + draw.randint(1, 64))
    return data[:start] + bytes(stop - start) + data[stop:]


def lose_a_piece(draw, data):
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.randint(1, 64) :]


def lengthen(draw, data):
    return data + draw.randbytes(draw.randint(1, 64))


def lose_a_line(draw, data):
    lines = data.splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    return b"".join(lines)


DAMAGES = {flip: 60, cut: 12, cut_at_a_line: 5, delete: 6, zero: 5, lose_a_piece: 4, lengthen: 4, lose_a_line: 4}


def make_folders(root):
    """(folder, tokens): one still recorded (segments and a committed log), one closed."""
    made = []
    for name, stop in (("open", 200), ("closed", 160)):
        writer = TraceWriter(root / name, ROWS.header, 64)
        for start in range(0, stop, 20):
            append(writer, ROWS.take(start, start + 20))
            writer.commit()
        if name == "closed":
            writer.close()
        else:
            shutil.copytree(root / name, root / "recording")
            writer.close()
            name = "recording"
            (root / name / "writer.lock").unlink()
        made.append((root / name, stop))
    return made


def damages(draw, folders, count):
    """Draws (folder, tokens, file, damaged bytes or None, kind), files of a folder evenly."""
    while count:
        folder, num_tokens = draw.choice(folders)
        file = draw.choice(sorted(folder.iterdir()))
        kind = draw.choices(list(DAMAGES), list(DAMAGES.values()))[0]
        data = file.read_bytes()
        damaged = kind(draw, data)
        if damaged != data:
            count -= 1
            yield folder, num_tokens, file, damaged, kind.__name__


def put(file, data):
    if data is None:
        file.unlink(missing_ok=True)
    else:
        file.write_bytes(data)


@pytest.fixture
def ram_folder():
    with in_memory() as folder:
        yield Path(folder)


def test_every_damage_is_noticed_or_harmless(ram_folder):
    seed = 20261123
    print(f"seed {seed}")
    draw = random.Random(seed)
    folders = make_folders(ram_folder)
    truth = {num_tokens: ROWS.take(0, num_tokens) for _, num_tokens in folders}
    outcome, unnamed = Counter(), 0
    for folder, num_tokens, file, damaged, kind in damages(draw, folders, NUM_DAMAGES):
        original = file.read_bytes()
        put(file, damaged)
        try:
            loaded = open_trace(folder).load()
        except TraceStoreError as error:
            outcome[kind, "noticed"] += 1
            unnamed += file.name not in str(error) and "manifest.jsonl" not in str(error)
        else:
            outcome[kind, "harmless"] += 1
            assert difference(loaded, truth[num_tokens]) is None, f"{kind} of {file.name} read wrongly"
            if file.suffix == ".parquet" or file.name == "header.json":
                assert not verify(folder).ok, f"{kind} of {file.name} not seen by verify"
        put(file, original)
    total = Counter()
    for (kind, what), number in sorted(outcome.items()):
        print(f"{kind:14} {what:9} {number}")
        total[what] += number
    print(dict(total))
    assert sum(total.values()) == NUM_DAMAGES
    assert not unnamed, f"{unnamed} errors named neither the file nor the manifest"
    assert total["harmless"] < NUM_DAMAGES // 10
    for folder, num_tokens in folders:
        assert difference(open_trace(folder).load(), truth[num_tokens]) is None


def test_a_writer_never_goes_on_over_damage(ram_folder):
    seed = 20261124
    print(f"seed {seed}")
    draw = random.Random(seed)
    folders = make_folders(ram_folder)
    refused = 0
    for number, (folder, num_tokens, file, damaged, kind) in enumerate(damages(draw, folders, NUM_RESUMED)):
        copy = ram_folder / f"copy{number}"
        shutil.copytree(folder, copy)
        put(copy / file.name, damaged)
        try:
            with TraceWriter(copy, ROWS.header, 64) as writer:
                append(writer, ROWS.take(num_tokens, num_tokens + 10))
            loaded = open_trace(copy).load()
        except TraceStoreError:
            refused += 1
        else:
            assert difference(loaded, ROWS.take(0, num_tokens + 10)) is None, f"{kind} of {file.name}"
        shutil.rmtree(copy)
    print(f"refused {refused} of {NUM_RESUMED}")
    assert refused


@pytest.mark.parametrize("name", ["segment-000001.parquet", "wal-000003.log"])
def test_files_of_another_recording_are_foreign(tmp_path, name):
    folder, _ = make_folders(tmp_path)[0]
    other = Rows(header(model="other"), seed=12)
    writer = TraceWriter(tmp_path / "other", other.header, 64)
    for start in range(0, 200, 20):
        append(writer, other.take(start, start + 20))
    shutil.copy(tmp_path / "other" / name, folder / name)
    writer.close()
    with pytest.raises(TraceStoreError, match=re.escape(name)):
        open_trace(folder).load()


def test_swapped_segments(tmp_path):
    folder, _ = make_folders(tmp_path)[1]
    a, b = folder / "segment-000000.parquet", folder / "segment-000001.parquet"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    with pytest.raises(TraceStoreError, match=r"segment-000000\.parquet"):
        open_trace(folder)


def test_a_flipped_footer_byte_is_noticed_at_opening(tmp_path):
    folder, _ = make_folders(tmp_path)[1]
    file = folder / "segment-000000.parquet"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        TraceStoreError, match=r"segment-000000\.parquet: expected footer checksum .* restore it from a copy"
    ):
        open_trace(folder)


def test_parquet_page_checksums_are_written_and_checked(tmp_path, monkeypatch):
    """The net below ours: with our own column checksums out of the way, Parquet still notices."""
    from moelab.store.segment import Segment

    folder, _ = make_folders(tmp_path)[1]
    stored = open_trace(folder)
    segment = stored._folder.segments[0]
    chunk = segment._metadata.row_group(0).column(segment._ranges["experts_00"][0])
    data = bytearray(segment.path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 4
    segment.path.write_bytes(data)
    with pytest.raises(TraceStoreError, match=r"checksum .* of column experts_00"):
        stored.load()
    monkeypatch.setattr(Segment, "_check_chunks", lambda self, columns: None)
    with pytest.raises(TraceStoreError, match="CRC checksum verification failed"):
        stored.load()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "expected a trace folder, got nothing there"),
        (lambda p: p.write_text("x"), "expected a trace folder, got a file"),
        (lambda p: p.mkdir(), "neither: a foreign folder"),
        (lambda p: (p.mkdir(), (p / "header.json").write_text("{}")), r"manifest\.jsonl: .*no such file"),
        (lambda p: (p.mkdir(), (p / "manifest.jsonl").write_text('{"a":1}\n')), "a damaged line"),
    ],
)
def test_what_is_no_trace_folder(tmp_path, make, message):
    make(tmp_path / "it")
    with pytest.raises(TraceStoreError, match=message):
        open_trace(tmp_path / "it")
