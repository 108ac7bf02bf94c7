"""Disassembles what was built: vector instructions stay in the files of their ISA."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {  # by folder of kernels/: registers that no object there may use
    "": r"%[yz]mm|%tmm",
    "generic": r"%[yz]mm|%tmm",
    "avx2": r"%zmm|%tmm",
    "avx512": r"%tmm",
}
EXPECTED = {"avx2": "%ymm", "avx512": "%zmm"}


def objects_of_the_build(folder: Path) -> dict[Path, Path]:
    """Source -> object of the newest build in the tree, or of a fresh one where that is missing or out of date."""
    sources = sorted((ROOT / "kernels").rglob("*.cpp"))
    changed = max(path.stat().st_mtime for path in (ROOT / "kernels").rglob("*") if path.is_file())
    for build in [*ROOT.glob("build/*"), folder]:
        if build == folder:
            subprocess.run(
                ["cmake", "-S", ROOT, "-B", folder, "-DSKBUILD_STATE=editable"], check=True, capture_output=True
            )
            subprocess.run(["cmake", "--build", folder], check=True, capture_output=True)
        objects = {s: build / f"CMakeFiles/moelab_kernels.dir/{s.relative_to(ROOT)}.o" for s in sources}
        if all(path.is_file() and (build == folder or path.stat().st_mtime > changed) for path in objects.values()):
            return objects
    raise AssertionError(f"no objects of {len(sources)} sources after a build: x86-64 with avx512 flags was expected")


@pytest.mark.skipif(shutil.which("objdump") is None or shutil.which("g++") is None, reason="no C++ compiler")
def test_vector_instructions_stay_in_their_own_files(tmp_path):
    for source, path in objects_of_the_build(tmp_path / "build").items():
        isa = source.parent.name if source.parent.name != "kernels" else ""
        code = subprocess.run(["objdump", "-d", path], check=True, capture_output=True, text=True).stdout
        found = re.search(FORBIDDEN[isa], code)
        assert not found, f"{source.relative_to(ROOT)} uses {found.group()}"
        if isa in EXPECTED:
            assert EXPECTED[isa] in code, f"{source.relative_to(ROOT)} has no {isa} instruction"
