"""Room for the experts of a model: refused before a page is touched, by machine and control group; reserve counts."""

from __future__ import annotations

import pytest

from moelab.engine import routed_arenas as module
from moelab.engine.routed_arenas import check_memory

GIB = 1 << 30


@pytest.mark.parametrize(("nodes", "most"), [(1, 7), (2, 4)])
def test_reserved_huge_pages_are_room_too_where_arenas_take_them(monkeypatch, nodes, most):
    """They are no part of what the machine says is available. Bound memory of several nodes takes none."""
    monkeypatch.setattr(module, "free_memory_bytes", lambda: 4 * GIB)
    monkeypatch.setattr(module, "free_reserved_bytes", lambda size: {1 << 30: 2 * GIB, 2 << 20: GIB}[size])
    monkeypatch.setattr(module, "several_nodes", lambda: nodes > 1)
    check_memory(most * GIB)
    with pytest.raises(MemoryError, match=rf"expected {most}.5 GiB of free memory, got {most}.0 GiB; free memory"):
        check_memory(most * GIB + GIB // 2)
