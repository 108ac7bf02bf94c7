"""The AMX kernels and the emulator under the address sanitizer, which sees what tile instructions read and write."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kernels.amx import library

SANITIZE = ("-O1", "-g", "-fsanitize=address")
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
    """The sanitizer does look through the emulator: a kernel that takes one group too many is stopped."""
    header = (library.ROOT / "kernels/amx/grouped.h").read_text()
    wrong = header.replace("group < 2 * num_tiles; group++", "group <= 2 * num_tiles; group++")
    assert wrong != header
    (tmp_path / "grouped.h").write_text(wrong)
    source = tmp_path / "int8_int8.cpp"
    source.write_text((library.ROOT / "kernels/amx/int8_int8.cpp").read_text())
    flags = [f"-I{library.ROOT}/kernels/amx", *SANITIZE, *library.FLAGS["amx"]]
    one_too_many = library.compile_one(source, tmp_path / "int8_int8.o", *flags)
    done = run(tmp_path, objects | {"amx_int8_int8": one_too_many}, "amx")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert "grouped.h" in done.stderr
