"""Disassembles what was built: vector instructions stay in the files of their ISA."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from moelab.kernels.native import library_path
from tests.kernels.built_objects import ROOT, objects_in, objects_of_tree

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
    if objects := objects_of_tree():
        return objects
    folder = tmp_path_factory.mktemp("instructions") / "build"
    command = ["cmake", "-S", ROOT, "-B", folder, "-DSKBUILD_STATE=editable"]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", folder, "-j2"], check=True, capture_output=True)
    objects = objects_in(folder)
    missing = [str(path) for path in objects.values() if not path.is_file()]
    assert not missing, f"no {missing} after a build: x86-64 with avx512 flags was expected"
    return objects


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


def symbols_of(path: Path) -> list[tuple[str, str, str]]:
    """(name, size, type of nm) of everything that has a size."""
    command = ["nm", "-S", "--defined-only", path]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    parts = [line.split(maxsplit=3) for line in lines]
    return [(part[3], part[1].lstrip("0"), part[2]) for part in parts if len(part) == 4 and len(part[2]) == 1]


def functions_of(path: Path) -> Counter[tuple[str, str]]:
    return Counter((name, size) for name, size, kind in symbols_of(path) if kind in "tT")


def test_objects_of_an_isa_have_no_weak_symbols(object_of_source):
    """Of two weak ones of a name the linker keeps one, for all ISAs: instructions that a machine lacks."""
    seen = 0
    for source, path in object_of_source.items():
        if source.parent.name != "kernels":
            weak = [name for name, _, kind in symbols_of(path) if kind in "wWvVu"]
            assert weak == [], f"{source.relative_to(ROOT)} has weak symbols: make them static or anonymous"
            seen += len(functions_of(path))
    assert seen > 50


@pytest.fixture(scope="module")
def built_library(object_of_source) -> Path:
    """With the names of its functions, which an installed one does not have."""
    any_object = next(iter(object_of_source.values()))
    (build,) = [folder.parent for folder in any_object.parents if folder.name == "CMakeFiles"]
    return build / "libmoelab_kernels.so"


def test_the_loaded_library_is_made_of_these_objects(object_of_source, built_library, tmp_path):
    """So that what is said of objects holds for what is loaded: the same functions, each as often and as long.

    What the compiler links in beside them, such as its own question for the kind of CPU, is in the test by function.
    """
    expected = sum((functions_of(path) for path in object_of_source.values()), Counter())
    found = functions_of(built_library)
    assert not expected - found
    assert len(expected) > 100
    code = []
    for number, path in enumerate((built_library, library_path())):
        assert path is not None, "no library is installed beside the objects: install again"
        command = ["objcopy", "-O", "binary", "--only-section=.text", path, tmp_path / str(number)]
        subprocess.run(command, check=True, capture_output=True)
        code.append((tmp_path / str(number)).read_bytes())
    assert len(code[0]) > 100_000
    assert code[0] == code[1], "the library that is loaded is of other sources: install again"


def test_wide_registers_in_the_library_by_function(object_of_source, built_library):
    """Whatever is linked in beside the objects has none either."""
    allowed: dict[str, set[str]] = {register: set() for register in ("%zmm", "%tmm")}
    for source, path in object_of_source.items():
        names = {name for name, _ in functions_of(path)}
        allowed["%zmm"] |= names if source.parent.name in ("avx512", "avx512_bf16", "amx") else set()
        allowed["%tmm"] |= names if source.parent.name == "amx" else set()
    users: dict[str, set[str]] = {register: set() for register in allowed}
    function = "?"
    for line in disassembled(built_library).splitlines():
        if heading := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            function = heading.group(1)
        else:
            for register in users:
                if register in line:
                    users[register].add(function)
    for register, names in users.items():
        assert names, f"no {register} in the library"
        assert names <= allowed[register], f"{register} outside its own files: {sorted(names - allowed[register])}"


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
