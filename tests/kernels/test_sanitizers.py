"""The native library under the thread, address and undefined-behaviour sanitizers: real layer-steps, real pools."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moelab.kernels import isa_table
from tests.kernels.amx.library import FLAGS

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "tests/kernels/native"
PROGRAMS = [NATIVE / name for name in ("stress.cpp", "placed.cpp")]
SUPPORTED = [row.isa for row in isa_table() if row.supported and row.isa in FLAGS and row.isa != "amx"]
ROUNDS = 30  # of every number of workers: each format and mode five times, one of them as a matrix
pytestmark = [pytest.mark.build, pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")]


def build(folder: Path, isas: list[str], *options: str, sources: list[Path] = PROGRAMS) -> list[Path]:
    """The library's sources and a program in one executable, for each of the programs."""
    common = ["g++", "-std=c++17", "-O1", "-g1", "-w", "-ffp-contract=off", f"-I{ROOT}/kernels", *options]
    folders = [*isas, *(["avx512_bf16"] if "avx512" in isas else [])]
    defines = [f"-DMOELAB_{isa.upper()}" for isa in isas if isa != "generic"]
    jobs = [(source, []) for source in [*sources, *sorted((ROOT / "kernels").glob("*.cpp"))]]
    jobs += [(source, FLAGS[isa]) for isa in folders for source in sorted((ROOT / "kernels" / isa).glob("*.cpp"))]

    def compiled(number: int) -> Path:
        source, flags = jobs[number]
        made = folder / f"{number}.o"
        subprocess.run([*common, *defines, *flags, "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(2) as executor:
        objects = list(executor.map(compiled, range(len(jobs))))
    programs, library = objects[: len(sources)], objects[len(sources) :]
    for program in programs:
        subprocess.run([*common, program, *library, "-o", program.with_suffix(""), "-lpthread"], check=True)
    return [program.with_suffix("") for program in programs]


def run(programs: list[Path], isa: str, rounds: int) -> None:
    for program in programs:
        done = subprocess.run([program, isa, str(rounds)], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        assert done.stdout == "ok\n"


def test_no_data_race(tmp_path):
    run(build(tmp_path, ["generic"], "-fsanitize=thread"), "generic", ROUNDS)


def test_no_access_outside_the_buffers(tmp_path):
    programs = build(tmp_path, SUPPORTED, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    for isa in SUPPORTED:
        run(programs, isa, ROUNDS)


@pytest.mark.skipif("avx512" not in SUPPORTED, reason="the CPU has no avx512")
def test_avx512_without_bf16_has_its_own_integers_and_bf16_of_avx2(tmp_path):
    """Cascade Lake, Ice Lake: VNNI and no BF16. The library is told so, for no such CPU is here."""
    (program,) = build(tmp_path, SUPPORTED, "-DMOELAB_WITHOUT_AVX512_BF16", sources=[NATIVE / "without_bf16.cpp"])
    said = subprocess.run([program], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said == "supported 1, bf16 0, of avx2: bf16 1, int4 0 0, int8 0 0, float32 0, peak 0\n"
