"""Room for the experts of a model: refused before a page is touched; reserved pages need none."""

from __future__ import annotations

import pytest

from moelab.engine import routed_arenas as module
from moelab.engine.routed_arenas import check_memory, new_arenas, unreserved_bytes_of
from moelab.kernels import ExpertLayout

GIB = 1 << 30


def test_what_goes_into_the_reserve_needs_no_free_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "check_memory", lambda num_bytes: asked.append(num_bytes))
    monkeypatch.setattr(module, "bytes_in_reserve", lambda sizes: sum(list(sizes)[:2]))
    layout = ExpertLayout(256, 256, "int4_g32")
    arenas = new_arenas(3, 4, layout)
    assert asked == [4 * layout.expert_bytes], "the third layer's"
    assert unreserved_bytes_of(arenas) == sum(arena.num_bytes for arena in arenas)
    arenas[1].huge_pages = "2 MB, reserved; 1 GB reserved, not used: 1024 MiB needed, 0 MiB free"
    assert unreserved_bytes_of(arenas) == arenas[0].num_bytes + arenas[2].num_bytes


def test_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(module, "free_memory_bytes", lambda: 4 * GIB)
    check_memory(4 * GIB)
    with pytest.raises(
        MemoryError, match=r"expected 4.5 GiB of free memory, got 4.0 GiB; free memory \(or raise the li"
    ):
        check_memory(4 * GIB + GIB // 2)
