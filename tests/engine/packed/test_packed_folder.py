"""A packed folder: the same model; refused by name when damaged, foreign, of another version or another source."""

from __future__ import annotations

import json
import os
import random
import shutil
import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from moelab.cli import main
from moelab.engine import load
from moelab.engine.packed.manifest import MANIFEST, PackedError, read_manifest
from moelab.engine.packed.write import pack_model
from moelab.kernels import isa_table
from moelab.store import durable
from moelab.store.writer_lock import WriterLock
from tests.engine.tiny_models import kimi_k26_checkpoint, save_hf, tiny_hf

NATIVE = any(row.supported and row.isa != "numba" for row in isa_table())
needs_native = pytest.mark.skipif(not NATIVE, reason="native kernels are not built")
TOKENS = torch.arange(20)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks in every section of a tiny model."""
    for module in ("manifest", "read", "write"):
        monkeypatch.setattr(f"moelab.engine.packed.{module}.CHUNK_BYTES", 10_000)


@pytest.fixture(scope="module")
def kimi(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kimi")
    kimi_k26_checkpoint(folder / "model", folder / "twin", seed=3)
    return folder / "model"


@pytest.fixture
def packed(kimi, tmp_path):
    """A checkpoint of one's own and its packed folder, experts and linear layers where there are kernels for them."""
    shutil.copytree(kimi, tmp_path / "model")
    pack_model(tmp_path / "model", tmp_path / "packed", dense_weights="int8" if NATIVE else None)
    return tmp_path / "model", tmp_path / "packed"


def refused(model, folder, *words, **how):
    with pytest.raises(PackedError) as caught:
        load(model, packed=folder, **how).close()
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"
    assert "\n" not in str(caught.value)


def rewrite_manifest(folder, **fields):
    """Other fields, with a checksum that fits."""
    body = (folder / MANIFEST).read_bytes().rsplit(b"\n", 2)[0]
    body = json.dumps(json.loads(body) | fields).encode() + b"\n"
    (folder / MANIFEST).write_bytes(body + f"{zlib.crc32(body):08x}\n".encode())


@needs_native
@pytest.mark.parametrize("dense_weights", [None, "bf16", "int8", "int4"])
def test_same_bits_as_repacking(kimi, tmp_path, dense_weights):
    pack_model(kimi, tmp_path / "packed", dense_weights=dense_weights)
    with load(kimi, dense_weights=dense_weights) as engine, load(kimi, packed=tmp_path / "packed") as again:
        assert again.dense_weights == engine.dense_weights == (dense_weights or "bf16")
        assert again.packed == tmp_path / "packed"
        assert "packed before" in repr(again)
        assert "repacked" in repr(engine)
        assert again.weight_bytes == engine.weight_bytes
        torch.testing.assert_close(again.forward(TOKENS), engine.forward(TOKENS), atol=0, rtol=0)


@pytest.mark.parametrize("activation", ["f32", "bf16", "int8"])
def test_experts_only_in_every_mode(kimi, tmp_path, activation):
    pack_model(kimi, tmp_path / "packed", activation=activation)
    with load(kimi, activation=activation) as engine:
        expected = engine.forward(TOKENS)
    with load(kimi, packed=tmp_path / "packed", activation=activation) as engine:
        assert engine.activation == activation
        torch.testing.assert_close(engine.forward(TOKENS), expected, atol=0, rtol=0)
    if activation != "f32":
        refused_mode = pytest.raises(ValueError, match="activation for int4_g32 experts: expected one of int8, bf16")
        with refused_mode:
            load(kimi, packed=tmp_path / "packed", activation="f32")


@needs_native
def test_linear_layers_that_the_folder_does_not_have_are_packed(packed):
    model, folder = packed
    with load(model, dense_weights="bf16") as engine, load(model, packed=folder, dense_weights="bf16") as again:
        torch.testing.assert_close(again.forward(TOKENS), engine.forward(TOKENS), atol=0, rtol=0)


def test_every_flip_and_cut_is_noticed(packed):
    model, folder = packed
    draw = random.Random(20261124)
    files = sorted(folder.iterdir())
    for number in range(60):
        path = files[number % len(files)]
        good = path.read_bytes()
        bad = bytearray(good)
        if number % 3:
            bit = draw.randrange(8 * len(good))
            bad[bit // 8] ^= 1 << bit % 8
        else:
            del bad[draw.randrange(len(good)) :]
        path.write_bytes(bad)
        refused(model, folder, path.name, "expected", "moelab pack")
        path.write_bytes(good)
    load(model, packed=folder).close()


def test_missing_files(packed, tmp_path):
    model, folder = packed
    refused(model, tmp_path / "nothing", "manifest.json", "no such file", "make one with `moelab pack`")
    (folder / "experts-001.bin").unlink()
    refused(model, folder, "experts-001.bin", "no such file")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 1}, ("manifest.json", "version 2", "got 1", "moelab pack")),
        ({"version": 3}, ("manifest.json", "version 2", "got 3")),
        ({"layout_version": 9}, ("manifest.json", "layout_version 1", "got 9")),
        ({"format": "something"}, ("format", "something")),
        ({"more": 1}, ("manifest.json", "expected a manifest")),
        ({"hidden_size": 128}, ("manifest.json", "experts")),
        ({"sections": []}, ("experts.0", "none")),
    ],
)
def test_other_versions_and_foreign_manifests(packed, fields, words):
    model, folder = packed
    rewrite_manifest(folder, **fields)
    refused(model, folder, *words)


def test_another_source(packed):
    """Content, config and files that changed are refused; a copy with other times is read once and accepted."""
    model, folder = packed
    shard = sorted(model.glob("*.safetensors"))[1]
    good, status = shard.read_bytes(), shard.stat()
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    load(model, packed=folder).close()
    tensors = load_file(shard)
    name = next(name for name in sorted(tensors) if name.endswith("weight_scale"))
    tensors[name][0, 0] *= 2
    save_file(tensors, shard)
    refused(model, folder, shard.name, "has changed")
    shard.write_bytes(good)
    load(model, packed=folder).close()
    shard.write_bytes(good + b"x")
    with pytest.raises(ValueError, match="bytes"):
        load(model, packed=folder)
    shard.write_bytes(good)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"comment": 1}))
    refused(model, folder, "config.json", "as it was packed")


def test_content_between_the_samples_is_compared_where_times_differ(packed, monkeypatch):
    model, folder = packed
    monkeypatch.setattr("moelab.engine.packed.source.NUM_SAMPLES", 2)
    monkeypatch.setattr("moelab.engine.packed.source.SAMPLE_BYTES", 16)
    shutil.rmtree(folder)
    pack_model(model, folder)
    shard = sorted(model.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-500] ^= 1
    shard.write_bytes(content)
    refused(model, folder, shard.name, "another content")


def test_another_model(packed, tmp_path):
    _, folder = packed
    save_hf(tiny_hf(1), tmp_path / "other")
    refused(tmp_path / "other", folder, "config.json")


def test_a_folder_that_exists_or_is_busy_is_not_written(packed, tmp_path):
    model, folder = packed
    with pytest.raises(PackedError, match="a folder that does not exist yet"):
        pack_model(model, folder)
    (tmp_path / "busy.partial").mkdir()
    lock = WriterLock(tmp_path / "busy.partial")
    with pytest.raises(PackedError, match="no other process that packs"):
        pack_model(model, tmp_path / "busy")
    lock.release()
    pack_model(model, tmp_path / "busy")
    assert not (tmp_path / "busy.partial").exists()


def test_stopped_at_every_call_that_changes_the_disk(kimi, tmp_path, monkeypatch):
    """Each write, sync, publish and rename fails in turn: the folder is there, whole, only when nothing failed."""
    calls, stop_at = 0, 0

    def failing(real):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise OSError("the disk is gone")
            return real(*arguments)

        return call

    for name in ("write_at", "sync", "publish", "rename", "sync_folder"):
        monkeypatch.setattr(durable, name, failing(getattr(durable, name)))
    out = tmp_path / "packed"
    while not out.exists():
        calls, stop_at = 0, stop_at + 1
        try:
            pack_model(kimi, out, num_workers=1)
        except OSError:
            # The rename is the moment: what fails after it leaves a whole folder.
            assert not out.exists() or read_manifest(out)
            assert not (tmp_path / "packed.partial").exists()
    assert stop_at > 5
    load(kimi, packed=out).close()


def test_command(kimi, tmp_path, capsys):
    assert main(["pack", str(kimi), "--out", str(tmp_path / "packed"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["num_bytes"] == sum(path.stat().st_size for path in (tmp_path / "packed").glob("*.bin"))
    assert main(["pack", str(kimi), "--out", str(tmp_path / "packed")]) == 2
    assert "does not exist yet" in capsys.readouterr().err
