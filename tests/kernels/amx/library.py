"""Builds the native library with AMX and the emulator in it, for the CPU that there is.

The AMX files are compiled as CMake does where the CPU has AVX-512, and otherwise with AVX2 for their vector work, so
that a CPU which has neither executes them; the tile instructions are the same. What is the same in both libraries is
taken from the build that is installed, where the CPU has all of it. See docs/amx.md.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from moelab.kernels import isa_table, native
from tests.kernels.built_objects import objects_of_tree

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
AMX = ["-mamx-tile", "-mamx-int8", "-mamx-bf16"]
FLAGS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma"],
}
FLAGS["avx512_bf16"] = [*FLAGS["avx512"], "-mavx512bf16"]
# Every CPU with AMX has AVX512_BF16: "avx512" stands beside the tiles only where both are.
HAS_AVX512 = any(row.isa == "avx512" and row.supported and not row.why for row in isa_table())
ISAS = ["generic", "avx2", *(["avx512", "avx512_bf16"] if HAS_AVX512 else [])]
FLAGS["amx"] = [*FLAGS["avx512_bf16" if HAS_AVX512 else "avx2"], *AMX]
BESIDE_AMX = "avx512" if HAS_AVX512 else "avx2"
COMMON = ["-fPIC", "-w", "-fvisibility=hidden", f"-I{ROOT}/kernels", "-DMOELAB_AMX_EMULATED"]
PLAYS_THE_MACHINE = ("amx_permission",)  # has MOELAB_AMX_EMULATED in it
CPP = ["-std=c++17", "-ffp-contract=off", "-fno-trapping-math"]
CPP += [f"-DMOELAB_{isa.upper()}" for isa in [*ISAS[1:], "amx"]]


def compile_one(source: Path, to: Path, *options: str, compiler: str = "g++") -> Path:
    """Source -> object."""
    language = ["-xc", "-std=gnu11"] if source.suffix == ".c" else CPP
    subprocess.run([compiler, *language, *COMMON, *options, "-c", source, "-o", to], check=True)
    return to


def sources() -> dict[str, list[Path]]:
    """The library's files by folder of kernels/, "" for those of no ISA."""
    folders = {"": ROOT / "kernels"} | {isa: ROOT / "kernels" / isa for isa in [*ISAS, "amx"]}
    return {name: sorted(folder.glob("*.cpp")) for name, folder in folders.items()}


def build(folder: Path, optimise: str = "-O3", compiler: str = "g++", others: list[Path] | None = None) -> Path:
    """The library, its AMX files compiled so; ``others`` are objects of an earlier build, of all the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs, built = [], objects_of_tree() if HAS_AVX512 else {}
    for name, files in sources().items():
        for source in files if name == "amx" or not others else []:
            if name != "amx" and source.stem not in PLAYS_THE_MACHINE and source in built:
                shutil.copy(built[source], folder / f"{name or 'all'}_{source.stem}.o")
                continue
            options = (optimise if name == "amx" else "-O1", *FLAGS.get(name, []))
            jobs.append((source, folder / f"{name or 'all'}_{source.stem}.o", options, compiler))
    for source in () if others else (HERE / "emulator.c", HERE / "instructions.c"):
        jobs.append((source, folder / f"{source.stem}.o", ("-O3", "-mavx2", "-mfma", *AMX), "gcc"))
    with ThreadPoolExecutor(2) as executor:
        objects = list(executor.map(lambda job: compile_one(job[0], job[1], *job[2], compiler=job[3]), jobs))
    objects += [path for path in folder.glob("*.o") if path not in objects]
    library = folder / native.LIBRARY_NAME
    subprocess.run(["g++", "-shared", *objects, *(others or []), "-o", library, "-lpthread"], check=True)
    return library


def objects_without_amx(library: Path) -> list[Path]:
    """Of a library that ``build`` made."""
    return [path for path in library.parent.glob("*.o") if not path.name.startswith("amx_")]


@contextmanager
def loaded(path: Path):
    """moelab on this library instead of its own; what was made before belongs to the other one and must not be used."""
    shipped = native.library_path
    native.library_path = lambda: path
    native.library.cache_clear()
    try:
        yield Emulator(native.require_library())
    finally:
        native.library_path = shipped
        native.library.cache_clear()


class Emulator:
    """The counters of the emulator, if it is active: on a CPU with AMX nothing traps and nothing is counted."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.amx_emulator_name.restype = ctypes.c_char_p
        library.amx_emulator_count.restype = ctypes.c_uint64
        self.library = library
        self.active = bool(library.amx_emulator_active())
        self.names = [library.amx_emulator_name(i).decode() for i in range(library.amx_emulator_num_operations())]

    def counts(self) -> dict[str, int]:
        return {name: self.library.amx_emulator_count(i) for i, name in enumerate(self.names)}

    @contextmanager
    def counted(self):
        """A dict that has, afterwards, how often each instruction was executed in between (only those that were)."""
        before, executed = self.counts(), {}
        yield executed
        executed |= {name: n - before[name] for name, n in self.counts().items() if n != before[name]}
