"""Choice of the ISA, the native library, and the read loops."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from moelab.domain.allowed_cores import affinity_mask
from moelab.kernels import ExpertArena, ExpertLayout, Pool, choose_isa, isa_table, native, read_limit, read_nodes
from moelab.kernels.jit.read import LOOP_NAMES, read
from moelab.kernels.job import ABI_VERSION, MOE_JOB


def test_automatic_choice_is_available_and_says_why(monkeypatch):
    monkeypatch.delenv("MOELAB_ISA", raising=False)
    choice = choose_isa()
    assert choice.isa in [row.isa for row in isa_table() if row.supported]
    assert choice.why.startswith("fastest of")


def test_argument_beats_environment(monkeypatch):
    monkeypatch.setenv("MOELAB_ISA", "nonsense")
    assert choose_isa("numba").why == "forced by argument"
    with pytest.raises(ValueError, match=r"isa \(MOELAB_ISA\): expected one of numba.*; got 'nonsense'"):
        choose_isa()
    monkeypatch.setenv("MOELAB_ISA", "numba")
    assert choose_isa().why == "forced by MOELAB_ISA"


def test_isa_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: (None, "no library"))
    with pytest.raises(ValueError, match="'amx', which is not available: no library"):
        choose_isa("amx")


def test_missing_library_is_a_reason_not_an_error(monkeypatch, tmp_path):
    native.library.cache_clear()
    monkeypatch.setattr(native, "library_path", lambda: None)
    assert native.library()[0] is None
    assert choose_isa().isa == "numba"
    with pytest.raises(RuntimeError, match="choose isa 'numba'"):
        native.require_library()
    broken = tmp_path / native.LIBRARY_NAME
    broken.write_bytes(b"not a library")
    native.library.cache_clear()
    monkeypatch.setattr(native, "library_path", lambda: broken)
    assert "cannot be loaded" in native.library()[1]
    native.library.cache_clear()


def test_struct_and_status_of_the_native_library():
    assert MOE_JOB.itemsize == 184
    if native.library()[0] is None:
        pytest.skip("native kernels are not built")
    table = native.kernel_table("generic", "bf16", "bf16")
    job = np.zeros(1, MOE_JOB)
    assert table.gate_up(job.ctypes.data, 0, 0, None) == -1
    with pytest.raises(ValueError, match="unsupported format and mode"):
        native.kernel_table("generic", "bf16", "int8")


@pytest.mark.parametrize("num_bytes", [8, 2040, 2048, 4096 + 64, 100_000])
def test_every_read_loop_reads_every_word(num_bytes):
    buffer = np.random.default_rng(0).integers(-(2**62), 2**62, 20_000)
    words = buffer[-buffer.ctypes.data % 64 // 8 :][: num_bytes // 8]
    for loop in range(len(LOOP_NAMES)):
        assert read(loop, words.ctypes.data, num_bytes) == words.sum()
    library, _ = native.library()
    if library is not None:
        for loop in range(library.moelab_num_read_loops()):
            assert np.uint64(library.moelab_read(loop, words.ctypes.data, num_bytes)) == words.sum().astype(np.uint64)


def test_read_limit_names_its_loop():
    layout = ExpertLayout(512, 256, "int4_g32")
    with ExpertArena(layout, 4) as arena, Pool() as pool:
        for expert in range(4):
            arena[expert][:] = 1
        limit = read_limit(arena.addresses, layout.expert_bytes, pool, rounds=2)
        assert limit.gb_per_s == max(limit.gb_per_s_of_loop.values()) > 0
        assert limit.gb_per_s_of_loop[limit.loop_name] == limit.gb_per_s
        assert limit.num_bytes == 4 * layout.expert_bytes
        with pytest.raises(ValueError, match="multiple of 8"):
            read_limit(arena.addresses, 12, pool)


@pytest.mark.skipif(native.library()[0] is None, reason="native kernels are not built")
@pytest.mark.skipif(len(affinity_mask()) < 2, reason="one core only")
def test_read_by_node_times_each_node_that_has_bytes():
    data = np.arange(1 << 18, dtype=np.int64)
    addresses = data.ctypes.data + np.arange(8) * (1 << 18)
    with Pool(virtual_nodes=2) as pool:
        for nodes in (np.array([0, 1] * 4), np.ones(8, int), np.array([1, 0, 0, 0, 0, 0, 0, 0])):
            seconds = read_nodes(addresses, nodes, 1 << 18, 0, pool)
            assert ((seconds > 0) == (np.bincount(nodes, minlength=2) > 0)).all()
        limit = read_limit(addresses, 1 << 18, pool, rounds=2, node_of_address=np.array([0, 1] * 4))
        assert len(limit.gb_per_s_of_node) == 2
        assert min(limit.gb_per_s_of_node) > 0
        assert limit.gb_per_s <= sum(limit.gb_per_s_of_node) * 1.0001  # the slower node decides
        for wrong in (np.array([0, 2] * 4), np.array([0, 17] * 4)):
            with pytest.raises(ValueError, match=r"expected nodes 0..1 of the pool; got"):
                read_nodes(addresses, wrong, 1 << 18, 0, pool)
    with Pool(1) as pool:
        limit = read_limit(addresses, 1 << 18, pool, rounds=2)
        assert limit.gb_per_s_of_node == pytest.approx((limit.gb_per_s,))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("functions", "why"),
    [
        (f"unsigned moelab_abi_version(void) {{ return {ABI_VERSION}; }}", r"cannot be loaded \(.*moelab_isa_built"),
        ("unsigned moelab_abi_version(void) { return 2; }", rf"expected ABI version {ABI_VERSION}; got 2"),
        ("int other(void) { return 0; }", r"cannot be loaded \(.*moelab_abi_version"),
    ],
)
def test_a_library_of_an_older_install_is_refused_in_words(functions, why, tmp_path, monkeypatch):
    source, made = tmp_path / "old.c", tmp_path / native.LIBRARY_NAME
    source.write_text(functions)
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", made], check=True)
    monkeypatch.setattr(native, "library_path", lambda: made)
    native.library.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=why + r".*: reinstall moelab, or choose isa 'numba'"):
            native.require_library()
    finally:
        native.library.cache_clear()
