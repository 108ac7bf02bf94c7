"""Disassembles what was built: vector instructions stay in the files of their ISA."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    shutil.which("objdump") is None or shutil.which("g++") is None, reason="no C++ compiler"
)
FORBIDDEN = {  # by folder of kernels/: registers that no object there may use
    "": r"%[yz]mm|%tmm",
    "generic": r"%[yz]mm|%tmm",
    "avx2": r"%zmm|%tmm",
    "avx512": r"%tmm|dpbf16|2bf16",  # runs on CPUs of VNNI without BF16
    "avx512_bf16": r"%tmm",
    "amx": r"tdpb(ss|us|uu)d",
}
EXPECTED = {"avx2": "%ymm", "avx512": "%zmm", "avx512_bf16": "vdpbf16ps", "amx": "%tmm"}
# Of the AMX files: the dot product, and what the vector work is made of where there is some.
AMX_FILES = {
    "int4_int8": ("tdpbsud", "vpsrl[dw].*%zmm", "vcvtdq2ps.*%zmm", "vmulps.*%zmm"),
    "int8_int8": ("tdpbsud", "vcvtdq2ps.*%zmm", "vmulps.*%zmm"),
    "int4_bf16": ("tdpbf16ps", "vpsrld.*%zmm", "vcvtdq2ps.*%zmm", "vmulps.*%zmm"),
    "int8_bf16": ("tdpbf16ps", "vpsrld.*%zmm", "vcvtdq2ps.*%zmm", "vmulps.*%zmm"),
    "bf16": ("tdpbf16ps",),
    "peak": ("tdpbsud", "tdpbf16ps"),
}


@pytest.fixture(scope="module")
def object_of_source(tmp_path_factory) -> dict[Path, Path]:
    """Of the newest build in the tree, or of a fresh one where that is missing or out of date."""
    folder = tmp_path_factory.mktemp("instructions") / "build"
    sources = sorted((ROOT / "kernels").rglob("*.cpp"))
    changed = max(path.stat().st_mtime for path in (ROOT / "kernels").rglob("*") if path.is_file())
    for build in [*ROOT.glob("build/*"), folder]:
        if build == folder:
            subprocess.run(
                ["cmake", "-S", ROOT, "-B", folder, "-DSKBUILD_STATE=editable"], check=True, capture_output=True
            )
            subprocess.run(["cmake", "--build", folder, "-j2"], check=True, capture_output=True)
        objects = {s: build / f"CMakeFiles/moelab_kernels.dir/{s.relative_to(ROOT)}.o" for s in sources}
        if all(path.is_file() and (build == folder or path.stat().st_mtime > changed) for path in objects.values()):
            return objects
    raise AssertionError(f"no objects of {len(sources)} sources after a build: x86-64 with avx512 flags was expected")


def disassembled(path: Path) -> str:
    command = ["objdump", "-d", "--no-show-raw-insn", path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_vector_instructions_stay_in_their_own_files(object_of_source):
    for source, path in object_of_source.items():
        isa = source.parent.name if source.parent.name != "kernels" else ""
        code = disassembled(path)
        found = re.search(FORBIDDEN[isa], code)
        assert not found, f"{source.relative_to(ROOT)} uses {found.group()}"
        if isa in EXPECTED:
            assert EXPECTED[isa] in code, f"{source.relative_to(ROOT)} has no {isa} instruction"


def test_amx_files_have_their_dot_products_and_whole_vectors(object_of_source):
    found = set()
    for source, path in object_of_source.items():
        code = disassembled(path)
        if re.search(r"\ttdp|\ttile|\tldtilecfg", code):
            found.add((source.parent.name, source.stem))
        if source.parent.name == "amx":
            for pattern in AMX_FILES[source.stem]:
                assert re.search(pattern, code), f"{source.relative_to(ROOT)} has no {pattern}"
            scalar = re.findall(r"\t(vcvtsi2ss|vpextr[bwd]|vpinsr[bwd])", code)
            assert not scalar, f"{source.relative_to(ROOT)} takes vectors apart: {sorted(set(scalar))}"
    assert found == {("amx", name) for name in AMX_FILES}
