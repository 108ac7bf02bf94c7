"""The AMX kernels and the emulator under the address sanitizer, which sees what tile instructions read and write."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from moelab.kernels import isa_table
from tests.kernels.amx import library

SANITIZE = ("-O1", "-g", "-fsanitize=address")
pytestmark = pytest.mark.build
STRESS = library.ROOT / "tests/kernels/native/stress.cpp"


@pytest.fixture(scope="module")
def objects(emulated_library, tmp_path_factory):
    """Of the stress program of tests/kernels, by name; the other ISAs are not sanitized (they have their own test)."""
    folder = tmp_path_factory.mktemp("sanitized")
    jobs = {"emulator": (library.HERE / "emulator.c", ("-mfma",), "gcc"), "stress": (STRESS, (), "g++")}
    for name in ("", "amx"):
        for source in library.sources()[name]:
            jobs[f"{name or 'all'}_{source.stem}"] = (source, library.FLAGS.get(name, []), "g++")

    def compile_job(name: str):
        source, options, compiler = jobs[name]
        return library.compile_one(source, folder / f"{name}.o", *SANITIZE, *options, compiler=compiler)

    with ThreadPoolExecutor(2) as executor:
        made = dict(zip(jobs, executor.map(compile_job, jobs), strict=True))
    others = [p for p in library.objects_without_amx(emulated_library) if p.name.split("_")[0] in library.ISAS]
    return made | {path.stem: path for path in others}


def native_amx() -> bool:
    return any(row.isa == "amx" and row.supported for row in isa_table())


def run(folder, objects, isa: str) -> subprocess.CompletedProcess:
    program = folder / "stress"
    subprocess.run(["g++", *SANITIZE, *objects.values(), "-o", program, "-lpthread"], check=True)
    return subprocess.run([program, isa, "30"], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("isa", ["amx", "amx+avx512"])
def test_nothing_outside_the_buffers(objects, tmp_path, isa):
    done = run(tmp_path, objects, isa)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout == "ok\n"


def test_a_tile_that_reads_too_far_is_seen(objects, tmp_path):
    """The sanitizer does look through the emulator: a tile load that takes the next tile's lines is stopped there."""
    header = (library.ROOT / "kernels/amx/int8_int8.cpp").read_text()
    wrong = header.replace("return tile + group * 512;", "return tile + 1088 + group * 512;")
    assert wrong != header
    source = tmp_path / "int8_int8.cpp"
    source.write_text(wrong)
    flags = [f"-I{library.ROOT}/kernels/amx", *SANITIZE, *library.FLAGS["amx"]]
    one_too_far = library.compile_one(source, tmp_path / "int8_int8.o", *flags)
    done = run(tmp_path, objects | {"amx_int8_int8": one_too_far}, "amx")
    assert done.returncode != 0
    if native_amx():  # a tile instruction of the hardware is not looked at
        return
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    first = done.stderr[: done.stderr.index("is located")]
    assert "on_illegal_instruction" in first  # in the emulator, and nowhere before it
    assert "emulator.c" in first
