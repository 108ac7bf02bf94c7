"""Other builds of the AMX files, each with all tests of the kernels: what a compiler does shows only in execution."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.kernels.amx import library

BUILDS = [("g++", "-O2"), ("clang++", "-O2"), ("clang++", "-O3")]  # -O3 of g++: all other tests


def run_tests(path, *tests: str) -> str:
    """The tests in a process of their own, on this library; returns what pytest said."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.kernels.amx.on_library"]
    done = subprocess.run(
        [*command, "--amx-library", path, "-k", "amx", *tests],
        cwd=library.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
    return done.stdout


@pytest.mark.build
@pytest.mark.parametrize(("compiler", "optimise"), BUILDS)
def test_other_compilers_and_optimisations(emulated_library, tmp_path, compiler, optimise):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    others = library.objects_without_amx(emulated_library)
    output = run_tests(library.build(tmp_path, optimise, compiler, others), "tests/kernels/amx/test_kernels.py")
    print(output.splitlines()[-2])


def test_all_tests_of_the_other_isas(emulated_library):
    """Against float64, random shapes, splits, extremes, linear: the matrix of tests/kernels with ``amx`` in it."""
    print(run_tests(emulated_library, "tests/kernels/test_routed.py", "tests/kernels/test_linear.py"))


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("optimise", ["-O1", "-O2", "-O3"])
def test_stores_to_a_staging_buffer_come_before_its_loads(amx, tmp_path, compiler, optimise):
    """The trap of docs/amx.md, with the loads of kernels/amx/tiles.h."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    assert staged(tmp_path, compiler, optimise) == 0


def test_the_trap_is_there(amx, tmp_path):
    """GCC 12's own intrinsics: half of the bytes are wrong, and only execution shows it."""
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True).stdout
    wrong = staged(tmp_path, "g++", "-O3", "-DINTRINSICS")
    print(f"g++ {version.strip()} -O3 with _tile_loadd: {wrong} of 2,048 bytes wrong")
    assert wrong > 0 or version.split(".")[0] != "12"


def staged(folder, compiler: str, optimise: str, *defines: str) -> int:
    """Bytes of two tiles that are wrong."""
    flags = (optimise, *library.FLAGS["amx"], *defines)
    made = library.compile_one(library.HERE / "staging.cpp", folder / "staging.o", *flags, compiler=compiler)
    subprocess.run(["g++", "-shared", made, "-o", folder / "staging.so"], check=True)
    parts = np.random.default_rng(0).integers(0, 256, (2, 1024)).astype(np.uint8)
    tiles = np.zeros((2, 1024), np.uint8)
    ctypes.CDLL(str(folder / "staging.so")).stage(*(ctypes.c_void_p(a.ctypes.data) for a in (*parts, tiles)))
    return int((tiles != (parts & 15) << 4).sum())
