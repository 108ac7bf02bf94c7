"""The guest's disk: this Python with NumPy, pydantic and pytest, moelab with its native library, the guest's tests; for
tests of the engine also torch and nano."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from moelab.kernels.native import LIBRARY_NAME, library_path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
# What moelab.kernels imports, and pytest. Not Numba: a guest without AVX-512 would compile everything anew.
PACKAGES = (
    "numpy", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection",
    "pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments",
)  # fmt: skip
INTERPRETER = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
ENGINE_PACKAGES = ("torch", "torchgen", "tqdm", "psutil", "xxhash")
SIZE, ENGINE_SIZE = "1G", "3G"  # sparse


def build_image(folder: Path, *, engine: bool = False) -> Path:
    """``folder``/disk.ext4; raises ``CalledProcessError`` where a tool fails."""
    stage = folder / "stage"
    _copy_python(stage)
    for name in (*PACKAGES, *ENGINE_PACKAGES) if engine else PACKAGES:
        _copy_package(name, stage / "site")
    _copy_moelab(stage / "project")
    if engine:  # without the tokenizer, whose package is not there
        shutil.copytree(ROOT / "traces/nano/model", stage / "project/model", ignore=shutil.ignore_patterns("token*"))
    guest = stage / "guest"
    guest.mkdir()
    for file in [*HERE.glob("guest/test_*.py"), ROOT / "tests/kernels/random_experts.py"]:
        shutil.copy2(file, guest / file.name)
    for name in ("bin", "proc", "sys", "dev", "tmp"):
        (stage / name).mkdir(exist_ok=True)
    shutil.copy2(HERE / "guest/init", stage / "init")
    shutil.copy2(shutil.which("busybox") or "", stage / "bin/busybox")
    _run("gcc", "-static", "-O1", "-o", str(stage / "bin/end_machine"), str(HERE / "guest/end_machine.c"))
    _copy_shared_libraries(stage)
    disk = folder / "disk.ext4"
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin:/bin") or "mke2fs"
    _run(
        mke2fs,
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-m",
        "0",
        "-d",
        str(stage),
        str(disk),
        ENGINE_SIZE if engine else SIZE,
    )
    shutil.rmtree(stage)
    return disk


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _inside(stage: Path, path: Path) -> Path:
    """The same absolute path in the guest."""
    target = stage / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _copy_python(stage: Path) -> None:
    shutil.copy2(INTERPRETER.resolve(), _inside(stage, INTERPRETER))
    library = Path(sysconfig.get_paths()["stdlib"])
    left_out = shutil.ignore_patterns("test", "tests", "idlelib", "tkinter", "ensurepip", "config-*", "*-packages")
    shutil.copytree(library, _inside(stage, library), ignore=left_out, symlinks=True)


def _copy_package(name: str, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    assert spec.origin is not None, name
    origin = Path(spec.origin)
    if origin.name != "__init__.py":
        shutil.copy2(origin, target / origin.name)
        return
    shutil.copytree(
        origin.parent, target / name, ignore=shutil.ignore_patterns("tests", "test", "include", "*.h", "__pycache__")
    )
    libraries = origin.parent.parent / f"{name}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)


def _copy_moelab(target: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "moelab", target / "moelab", ignore=ignore)
    native = library_path()
    assert native is not None, "the native library is not built"
    shutil.copy2(native, target / "moelab/kernels" / LIBRARY_NAME)


def _copy_shared_libraries(stage: Path) -> None:
    """Everything that ``ldd`` finds for the interpreter and each extension, at the same place."""
    binaries = [INTERPRETER.resolve(), *(p for p in stage.rglob("*.so*") if p.is_file() and not p.is_symlink())]
    found: set[str] = set()
    for binary in binaries:
        listed = subprocess.run(["ldd", str(binary)], capture_output=True, text=True).stdout
        found |= set(re.findall(r"(/\S+) \(0x", listed))
    for library in found:
        if str(stage) not in library and not _inside(stage, Path(library)).exists():
            shutil.copy2(Path(library).resolve(), _inside(stage, Path(library)))
