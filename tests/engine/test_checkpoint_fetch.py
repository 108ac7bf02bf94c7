"""Fetching while another worker opens a shard: the table of open files changes under nobody's hands."""

from __future__ import annotations

import threading

import torch
from safetensors.torch import save_file

from moelab.engine.checkpoint import INDEX_FILE, Checkpoint
from moelab.engine.mapped_file import MappedFile


class OpensAnother(MappedFile):
    """Asked where it lies, it lets another thread open the other shard first: the worst moment of that thread."""

    checkpoint: Checkpoint

    @property
    def base(self) -> int:
        other = threading.Thread(target=self.checkpoint.read, args=("second",))
        other.start()
        other.join(20)
        assert not other.is_alive(), "the other worker waits for this one"
        return self._base

    @base.setter
    def base(self, address: int) -> None:
        self._base = address


def test_a_shard_that_is_opened_meanwhile_disturbs_no_fetch(tmp_path):
    tensors = {"first": torch.arange(64.0), "second": torch.ones(64)}
    for name, tensor in tensors.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX_FILE).write_text('{"weight_map": {"first": "first.safetensors", "second": "second.safetensors"}}')
    checkpoint = Checkpoint.open(tmp_path)
    file = OpensAnother(tmp_path / "first.safetensors")
    file.checkpoint = checkpoint
    checkpoint._open_files[file.path] = file
    view = checkpoint.read("first")
    elsewhere = torch.zeros(4)  # of no file: all of them are asked
    assert checkpoint.fetch(elsewhere) is elsewhere
    assert len(checkpoint._open_files) == 2
    fetched = checkpoint.fetch(view)
    assert fetched.data_ptr() != view.data_ptr()
    assert torch.equal(fetched, tensors["first"])
    checkpoint.close()
