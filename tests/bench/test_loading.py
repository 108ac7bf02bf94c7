"""Memory of a load, measured from outside in a process of its own, and the bench of loading at small sizes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from moelab.bench import loading, warm_memory
from moelab.bench.cold_disk import can_read_directly
from moelab.bench.generated_checkpoint import Sizes, write_checkpoint
from moelab.bench.load_memory import LoadMemory, measure_load_memory
from moelab.engine import load
from moelab.engine.packed.write import pack_model
from moelab.kernels import isa_table

pytestmark = [
    pytest.mark.skipif(
        all(row.isa == "numba" for row in isa_table() if row.supported), reason="native kernels are not built"
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and the page cache of Linux"),
]
SMALL = {"hidden_size": 256, "moe_intermediate_size": 128, "num_experts": 8, "vocab_size": 512}
FEW_LAYERS = {"num_moe_layers": 3}  # in the bench 12 of int4
# A hundred times smaller than the models that the bound of 200 MB is meant for, and so is the bound here.
MEDIUM = {"hidden_size": 1024, "moe_intermediate_size": 512, "num_experts": 32, "vocab_size": 24_000}
MORE_BYTES = 25_000_000


@pytest.fixture(autouse=True)
def no_wait_for_the_balloon(monkeypatch):
    """It would take seconds in each turn."""
    monkeypatch.setattr(warm_memory, "PERIOD_S", 0.0)


@pytest.mark.parametrize("form", ["int4", "bf16", "float32", "fused"])
def test_generated_checkpoint_loads_and_runs(tmp_path, form):
    num_bytes = write_checkpoint(tmp_path / "model", Sizes(form=form, **SMALL))
    with load(tmp_path / "model") as engine:
        assert engine.loaded_bytes == num_bytes  # every byte once
        assert torch.isfinite(engine.forward(torch.arange(12))).all()


@pytest.mark.parametrize(
    ("form", "how"), [("int4", {}), ("bf16", {"dense_weights": "int4"}), ("fused", {}), ("saved", {})]
)
def test_peak_of_loading_is_hardly_more_than_the_weights(tmp_path, form, how):
    stored = "int4" if form == "saved" else form
    write_checkpoint(tmp_path / "model", Sizes(form=stored, **MEDIUM))
    if form == "saved":
        pack_model(tmp_path / "model", tmp_path / "packed", dense_weights="int8")
        how = {"packed": str(tmp_path / "packed")}
    memory = measure_load_memory(tmp_path / "model", **how)
    assert memory.weight_bytes > 90_000_000
    assert memory.after_bytes > 0.95 * memory.weight_bytes - 4_000_000  # the weights are really there
    assert memory.within(1.05, MORE_BYTES), memory


def test_the_bound_can_fail():
    assert not LoadMemory(100, 306, 100, 0, 1).within(1.05, 200)
    assert LoadMemory(100, 305, 100, 0, 1).within(1.05, 200)


def test_every_case_is_a_row(monkeypatch):
    """Of two cases: each takes the seconds in which a process imports torch."""
    monkeypatch.setattr(loading, "CASES", loading.CASES[2:4])
    monkeypatch.setattr(loading, "COPY_ROWS", 16)
    monkeypatch.setattr(loading, "COPY_COLUMNS", 256)
    rows = loading.bench_loading(0.01, SMALL | FEW_LAYERS)
    assert [(row.experts, row.linear_layers) for row in rows] == [
        (form, " ".join(how.values())) for form, how in loading.CASES
    ]
    for row in rows:
        rates = (row.disk_gb_per_s, row.copy_gb_per_s, row.cold_gb_per_s, row.warm_gb_per_s, row.saved_gb_per_s)
        assert min(rates) > 0
        assert row.cold_of_disk_to_memory > 0 or np.isnan(row.disk_to_memory_gb_per_s)
        assert row.num_rounds >= 3
        assert row.cold_ratio_range[0] <= row.cold_ratio_to_slower <= row.cold_ratio_range[1]
        assert row.cold_ratio_range[0] <= row.cold_ratio_quartiles[0] <= row.cold_ratio_quartiles[1]


def test_parts_of_a_case_in_a_folder_that_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "COPY_ROWS", 16)
    monkeypatch.setattr(loading, "COPY_COLUMNS", 256)
    made = []
    for _ in range(2):
        (row,) = loading.bench_loading(0, SMALL | FEW_LAYERS, ["int4-int8"], ["cold"], rounds=4, keep=tmp_path)
        assert row.num_rounds == 4
        assert row.cold_ratio_to_slower > 0
        assert row.cold_of_disk_to_memory > 0 or not can_read_directly(tmp_path / "int4" / "config.json")
        assert np.isnan([row.saved_ratio_to_disk, row.warm_gb_per_s, row.peak_memory_ratio]).all()
        made.append((tmp_path / "int4" / "config.json").stat().st_mtime_ns)
    assert made[0] == made[1]
    assert [path.name for path in tmp_path.iterdir()] == ["int4"]
    for cases, parts in ((["int5-int8"], ["cold"]), (None, ["colder"])):
        with pytest.raises(ValueError, match="expected"):
            loading.bench_loading(0, SMALL, cases, parts, keep=tmp_path)
