"""May this process use AMX: every answer of CPU, system and kernel, given to the real code, and what follows."""

from __future__ import annotations

import ctypes
import sys

import pytest

import moelab
from moelab.engine import routed_arenas
from moelab.kernels import choose_isa, isa, isa_table, native
from moelab.kernels.job import ABI_VERSION

if native.library()[0] is None:
    pytest.skip("native kernels are not built", allow_module_level=True)

USABLE, NOT_IN_CPU, NOT_SAVED, NOT_PERMITTED = range(4)
BF16, TILE, INT8, OSXSAVE = 1 << 22, 1 << 24, 1 << 25, 1 << 27
AMX = BF16 | TILE | INT8


def answer(
    asked: list, leaves: int = 7, features: int = AMX, osxsave: int = OSXSAVE, xcr0: int = 0x600E7, kernel: int = 0
) -> int:
    """What ``moelab_amx`` makes of these answers; ``asked`` gets the questions in their order."""

    def cpuid(leaf, subleaf, registers):
        asked.append(("cpuid", leaf, subleaf))
        eax = {0: leaves}.get(leaf, 0)
        ecx = {1: osxsave, 7: 0xFFFFFFFF}.get(leaf, 0)
        for i, value in enumerate((eax, 0xFFFFFFFF, ecx, features if leaf == 7 else 0xFFFFFFFF)):
            registers[i] = value

    def xgetbv(number):
        asked.append(("xgetbv", number))
        return xcr0

    def request(feature):
        asked.append(("arch_prctl", feature))
        return kernel

    questions = native.AmxQuestions(
        ctypes.sizeof(native.AmxQuestions), ABI_VERSION,
        native.CPUID(cpuid), native.XGETBV(xgetbv), native.REQUEST(request),
    )  # fmt: skip
    return native.require_library().moelab_amx(ctypes.byref(questions))


def test_usable_asks_everything_once():
    asked = []
    assert answer(asked) == USABLE
    assert asked[-2:] == [("xgetbv", 0), ("arch_prctl", 18)]
    assert ("cpuid", 7, 0) in asked
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("features", [0, TILE, TILE | INT8, TILE | BF16, INT8 | BF16, 0xFFFFFFFF & ~AMX])
def test_a_cpu_without_all_three_is_asked_nothing_more(features):
    asked = []
    assert answer(asked, features=features) == NOT_IN_CPU
    assert {question[0] for question in asked} == {"cpuid"}


def test_a_cpu_without_leaf_7():
    asked = []
    assert answer(asked, leaves=6) == NOT_IN_CPU
    assert asked == [("cpuid", 0, 0)]


@pytest.mark.parametrize("xcr0", [0, 0xE7, 0x200E7, 0x400E7])
def test_system_that_does_not_save_tiles_is_not_asked_for_permission(xcr0):
    asked = []
    assert answer(asked, xcr0=xcr0) == NOT_SAVED
    assert ("arch_prctl", 18) not in asked


def test_system_without_xgetbv():
    asked = []
    assert answer(asked, osxsave=0) == NOT_SAVED
    assert ("xgetbv", 0) not in asked


@pytest.mark.parametrize("error", [-95, -22, -1, -28])  # EOPNOTSUPP, EINVAL, EPERM, ENOSPC: small signal stacks
def test_kernel_that_refuses(error):
    assert answer([], kernel=error) == NOT_PERMITTED


def test_struct_of_another_version():
    questions = native.AmxQuestions(struct_bytes=8, abi_version=ABI_VERSION)
    assert native.require_library().moelab_amx(ctypes.byref(questions)) == -1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_answer_of_this_machine_is_that_of_its_cpu():
    with open("/proc/cpuinfo") as file:
        flags = set(file.read().split())
    assert (native.require_library().moelab_amx(None) == NOT_IN_CPU) == (
        not {"amx_tile", "amx_int8", "amx_bf16"} <= flags
    )


class Library:
    """A library whose CPU has everything, and whose ``moelab_amx`` answers as told."""

    def __init__(self, amx: int) -> None:
        self.amx = amx

    def moelab_isa_built(self, name):
        return 1

    def moelab_isa_supported(self, name):
        return int(not name.startswith(b"amx") or self.amx == USABLE)

    def moelab_avx512_bf16(self):
        return 1

    def moelab_amx(self, questions):
        assert questions is None
        return self.amx


@pytest.mark.parametrize("amx", range(4))
def test_automatic_choice_falls_back_and_says_why_and_a_forced_one_raises(monkeypatch, amx):
    monkeypatch.delenv("MOELAB_ISA", raising=False)
    monkeypatch.setattr(isa.native, "library", lambda: (Library(amx), ""))
    choice = choose_isa()
    if amx == USABLE:
        assert choice.isa == "amx+avx512"
        assert choose_isa("amx").isa == "amx"
        return
    assert choice.isa == "avx512"
    # A CPU without AMX is no news; one whose AMX is refused is.
    assert ("AMX" in choice.why) == (amx != NOT_IN_CPU), choice.why
    reason = {NOT_IN_CPU: "not supported by this CPU", NOT_SAVED: "XCR0", NOT_PERMITTED: "arch_prctl"}[amx]
    for name in ("amx", "amx+avx512"):
        with pytest.raises(ValueError, match=f"'{name.replace('+', '.')}', which is not available: .*{reason}"):
            choose_isa(name)
    monkeypatch.setenv("MOELAB_ISA", "amx")
    with pytest.raises(ValueError, match=rf"isa \(MOELAB_ISA\): .* got 'amx', which is not available: .*{reason}"):
        choose_isa()
    if amx != NOT_IN_CPU:
        assert reason in choice.why
        assert next(row.why for row in isa_table() if row.isa == "amx") in choice.why


def test_the_engine_says_why(monkeypatch):
    """A refused AMX is not news for `doctor` alone: what an engine runs stands in it with its reason."""
    refused = isa.IsaChoice("generic", "fastest of generic; AMX is not permitted")
    monkeypatch.setattr(routed_arenas, "choose_isa", lambda asked: refused)
    with moelab.load(moelab.shipped("nano/model"), dense_weights="torch") as engine:
        assert engine.isa == "generic"
        assert engine.summary()["kernels"] == refused.why
        assert refused.why in repr(engine)
