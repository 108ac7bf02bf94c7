"""The emulator itself: instructions against NumPy, forms of addresses, threads, and what hardware would refuse."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from moelab.kernels import bf16_to_float32, float32_to_bf16
from tests.kernels.amx.library import ROOT

KINDS = ("TDPBSSD", "TDPBSUD", "TDPBUSD", "TDPBUUD", "TDPBF16PS")
SHAPES = [(1, 1, 1), (16, 16, 16), (5, 7, 3), (16, 1, 16), (1, 16, 1), (2, 16, 8)]


def flushed(x: np.ndarray) -> np.ndarray:
    """Denormal numbers are zeros of their sign."""
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def fused_sum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """float32 of float64 x + y, rounded once: an inexact float64 sum is made odd first (Boldo, Melquiond 2008)."""
    total = x + y
    rest = total - x
    error = (x - (total - rest)) + (y - rest)
    toward = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    even = (total.view(np.int64) & 1) == 0
    return np.where((error != 0) & even, toward, total).astype(np.float32)


def reference(kind: int, c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """c [M, N] + a [M, 4 K bytes] . b [K, 4 N bytes], by the pseudocode of the manual."""
    m, n, k = c.shape[0], c.shape[1] // 4, b.shape[0]
    if kind < 4:
        wide_a = a.view(np.int8 if kind in (0, 1) else np.uint8).astype(np.int64).reshape(m, k, 4)
        wide_b = b.view(np.int8 if kind in (0, 2) else np.uint8).astype(np.int64).reshape(k, n, 4)
        return (c.view(np.int32) + np.einsum("mkc,knc->mn", wide_a, wide_b)).astype(np.int32)
    half_a = flushed(bf16_to_float32(a.view(np.uint16).ravel()).reshape(m, k, 2)).astype(np.float64)
    half_b = flushed(bf16_to_float32(b.view(np.uint16).ravel()).reshape(k, n, 2)).astype(np.float64)
    sums = np.zeros((m, n, 2), np.float32)
    for i in range(k):
        sums = flushed(fused_sum(sums.astype(np.float64), half_a[:, i, None, :] * half_b[None, i]))
    return flushed(flushed(c.view(np.float32)) + flushed(sums[..., 0] + sums[..., 1]))


def random_operands(rng: np.random.Generator, kind: int, m: int, n: int, k: int):
    if kind < 4:
        parts = [
            rng.integers(0, 256, (rows, 4 * columns)).astype(np.uint8) for rows, columns in ((m, n), (m, k), (k, n))
        ]
        parts[0].view(np.int32)[:] = rng.integers(-(2**28), 2**28, (m, n))
        return parts
    exponents = rng.choice([-140, -127, -126, -70, -60, -3, 0, 5], (3, 16, 32))
    floats = np.ldexp(rng.uniform(-2, 2, exponents.shape), exponents).astype(np.float32)
    a = float32_to_bf16(np.ascontiguousarray(floats[1, :m, : 2 * k])).reshape(m, -1).view(np.uint8)
    b = float32_to_bf16(np.ascontiguousarray(floats[2, :k, : 2 * n])).reshape(k, -1).view(np.uint8)
    return [np.ascontiguousarray(floats[0, :m, :n]).view(np.uint8), a, b]


@pytest.mark.parametrize("kind", range(5), ids=KINDS)
def test_dot_products_of_any_shape(amx, kind):
    rng = np.random.default_rng(kind)
    shapes = SHAPES + [tuple(int(size) for size in rng.integers(1, 17, 3)) for _ in range(50)]
    with amx.counted() as executed:
        for m, n, k in shapes:
            parts = random_operands(rng, kind, m, n, k)
            # Rows some way apart, in buffers whose rest must stay as it is.
            strides = [part.shape[1] + int(rng.integers(0, 40)) for part in parts]
            buffers = [rng.integers(0, 256, (len(p), s)).astype(np.uint8) for p, s in zip(parts, strides, strict=True)]
            for buffer, part in zip(buffers, parts, strict=True):
                buffer[:, : part.shape[1]] = part
            expected = buffers[0].copy()
            expected[:, : 4 * n] = reference(kind, *parts).view(np.uint8)
            arguments = [
                x
                for b, s in zip(buffers, strides, strict=True)
                for x in (ctypes.c_void_p(b.ctypes.data), ctypes.c_int64(s))
            ]
            amx.library.dot(kind, m, n, k, *arguments)
            np.testing.assert_array_equal(buffers[0], expected, err_msg=f"{KINDS[kind]} {m} x {n} x {k}")
    if amx.active:
        assert executed[KINDS[kind]] == len(shapes)


def test_every_form_of_address(amx):
    source = np.random.default_rng(0).integers(0, 256, (16, 64)).astype(np.uint8)
    copies = np.full((8, 16, 64), 77, np.uint8)
    amx.library.every_address(ctypes.c_void_p(source.ctypes.data), ctypes.c_void_p(copies.ctypes.data))
    for number in range(5):
        np.testing.assert_array_equal(copies[number], source, err_msg=str(number))
    np.testing.assert_array_equal(copies[5], source[::-1])
    np.testing.assert_array_equal(copies[6], np.repeat(source[:1], 16, axis=0))
    assert not copies[7].any()


def test_configuration_is_stored_as_it_was_loaded_and_released(amx):
    shape, stored = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
    shape[[0, 16, 48]] = 1, 64, 16
    amx.library.configure(ctypes.c_void_p(shape.ctypes.data))
    amx.library.read_configuration(ctypes.c_void_p(stored.ctypes.data))
    np.testing.assert_array_equal(stored, shape)
    amx.library.release()
    amx.library.read_configuration(ctypes.c_void_p(stored.ctypes.data))
    assert not stored.any()


def test_threads_have_tiles_of_their_own(amx):
    """Eight threads, each with a shape of its own, at the same time."""
    failures = []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        m, n, k = 1 + number, 16 - number, 2 * number + 1
        for _ in range(40):
            parts = random_operands(rng, 1, m, n, k)
            expected = reference(1, *parts)
            arguments = [x for p in parts for x in (ctypes.c_void_p(p.ctypes.data), ctypes.c_int64(p.shape[1]))]
            amx.library.dot(1, m, n, k, *arguments)
            if not np.array_equal(parts[0].view(np.int32), expected):
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


REFUSED = {
    "no permission": ("library.release()", "TILERELEASE: no permission: arch_prctl"),
    "rows 17": ("configure(rows=17)", "#GP rows > 16"),
    "row of 65 bytes": ("configure(row_bytes=65)", "#GP bytes of a row > 64"),
    "rows without bytes": ("configure(row_bytes=0)", "#GP rows or bytes of a row are 0, but not both"),
    "palette 2": ("configure(palette=2)", "#GP palette is not 0 or 1"),
    "reserved byte": ("configure(reserved=1)", "#GP reserved bytes are not zero"),
    "ninth tile": ("configure(rows_of_tile_9=1)", "#GP reserved bytes are not zero"),
    "not configured": ("library.wrong(0)", "TILEZERO: #UD tiles are not configured"),
    "no shape": ("configure(); library.wrong(1)", "TILEZERO: #UD tile has no shape"),
    "same tile twice": ("library.wrong(2)", "TDPBSSD: #UD operands are not three different tiles"),
    "M": ("library.wrong(3)", "TDPBSSD: #UD dest.rows != src1.rows (M)"),
    "K": ("library.wrong(4)", "TDPBSSD: #UD src1.row_bytes / 4 != src2.rows (K)"),
    "N": ("library.wrong(5)", "TDPBSSD: #UD dest.row_bytes != src2.row_bytes (N)"),
    "no tile instruction": ("library.wrong(6)", "Fatal Python error: Illegal instruction"),
    "phase without begin": (None, "#UD tiles are not configured"),
}
PROGRAM = """
    import ctypes, faulthandler, sys
    faulthandler.enable()
    library = ctypes.CDLL(sys.argv[1])

    def configure(**changes):
        shape = {"palette": 1, "row_bytes": 64, "rows": 16, **changes}
        place = {"palette": 0, "reserved": 9, "row_bytes": 16, "rows": 48, "rows_of_tile_9": 57}
        operand = bytearray(64)
        for name, value in shape.items():
            operand[place[name]] = value
        library.configure((ctypes.c_uint8 * 64).from_buffer(operand))

    if sys.argv[2] != "no permission":
        assert library.moelab_amx(None) == 0
    {statement}
    print("survived")
"""
WITHOUT_BEGIN = """
    import sys
    import numpy as np
    from pathlib import Path
    from moelab.kernels import ExpertArena, ExpertLayout, RoutedExperts
    from moelab.kernels.native import HOOK
    from tests.kernels.amx.library import loaded

    with loaded(Path(sys.argv[1])):
        layout = ExpertLayout(64, 32, "int8_g32")
        layer = RoutedExperts(layout, ExpertArena(layout, 1).addresses, "amx")
        layer._phases._kept[0].begin = HOOK()
        layer.forward(np.ones((1, 64), np.float32), np.zeros((1, 1), int), np.ones((1, 1), np.float32))
    print("survived")
"""


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_reason(emulated_library, name):
    statement, reason = REFUSED[name]
    program = textwrap.dedent(PROGRAM.replace("{statement}", statement) if statement else WITHOUT_BEGIN)
    command = [sys.executable, "-c", program, emulated_library, name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in (-signal.SIGILL, -signal.SIGSEGV), done.stdout + done.stderr
    assert "survived" not in done.stdout
    if ctypes.CDLL(str(emulated_library)).amx_emulator_active():
        assert done.returncode == -signal.SIGILL
        assert reason in done.stderr
