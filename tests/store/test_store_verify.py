"""The report of ``moelab verify``: every damaged file stands in it, not only the first."""

import json

import pytest

from moelab.store import TraceStoreError, TraceWriter, verify
from moelab.store.columns import Layout, batch_of_trace
from moelab.store.manifest import ColumnsLine, CreatedLine, LogLine, encode
from moelab.store.segment import write_segment
from tests.store.recorded_rows import Rows, append, header

ROWS = Rows(header(), seed=13)


@pytest.fixture
def folder(tmp_path):
    with TraceWriter(tmp_path / "t", ROWS.header, 64) as writer:
        for start in range(0, 200, 20):
            append(writer, ROWS.take(start, start + 20))
    return tmp_path / "t"


def test_a_sound_folder(folder):
    seen = []
    report = verify(folder, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert report.num_tokens == 200
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert str(report).endswith("6 files ok, 200 tokens verified")
    assert json.loads(json.dumps(report.to_dict()))["ok"]
    assert len(report.to_frame()) == 6
    assert "<pre>" in report._repr_html_()


def test_all_damage_is_listed(folder):
    (folder / "segment-000000.parquet").unlink()
    file = folder / "segment-000002.parquet"
    data = bytearray(file.read_bytes())
    data[0] ^= 1  # Parquet's first magic, which no reader looks at
    file.write_bytes(data)
    report = verify(folder)
    assert [check.file for check in report.files if check.problem] == ["segment-000000.parquet", file.name]
    assert "sha256" in str(report)
    assert "2 of 6 files damaged, 80 tokens verified" in str(report)


def test_a_damaged_manifest_or_header(folder):
    header_file = folder / "header.json"
    header_file.write_text(header_file.read_text().replace("toy", "tox"))
    report = verify(folder)
    assert not report.ok
    assert "header.json: expected sha256" in str(report)


def test_no_trace_folder_raises(tmp_path):
    with pytest.raises(TraceStoreError, match="foreign folder"):
        verify(tmp_path)


def test_ids_out_of_range_under_right_checksums(tmp_path):
    """A writer of another make, correct in every checksum, with an id that the header does not allow."""
    import hashlib

    from moelab.store.folder import encode_header

    trace = ROWS.take(0, 10)
    trace.experts[4, 1, 2] = 40
    layout = Layout(ROWS.header, {"residency": ("uint8", (2, 3))})
    buffer = layout.empty(10)
    layout.fill(buffer, 0, batch_of_trace(trace), slice(None))
    data = encode_header(ROWS.header)
    (tmp_path / "header.json").write_bytes(data)
    lines = [
        CreatedLine(header_sha256=hashlib.sha256(data).hexdigest()), ColumnsLine(extras=layout.extras),
        LogLine(file="wal-000000.log", first_token=0),
        write_segment(tmp_path / "segment-000000.parquet", layout, buffer, 0, 10),
    ]  # fmt: skip
    text, previous = b"", ""
    for sequence, line in enumerate(lines):
        raw, previous = encode(line, sequence, previous)
        text += raw
    (tmp_path / "manifest.jsonl").write_bytes(text)
    report = verify(tmp_path)
    assert not report.ok
    assert "expert id 40, expected ids below 40 or NO_EXPERT" in str(report)
