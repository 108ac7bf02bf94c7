"""The line about compiling: once, only after it took long, never for cached code."""

from __future__ import annotations

import time

from numba import njit

from moelab import first_compile


def test_told_once_and_not_before_it_takes_long(capsys, monkeypatch):
    listener = first_compile.LISTENER
    monkeypatch.setattr(listener, "spent_s", 0.0)
    monkeypatch.setattr(listener, "is_told", False)

    def compiled(number):
        @njit
        def function(x):
            return x + number

        return function(1)

    assert compiled(2) == 3
    assert 0 < listener.spent_s < 60
    if listener.spent_s < first_compile.PATIENCE_S:
        assert capsys.readouterr().err == ""
    monkeypatch.setattr(listener, "spent_s", first_compile.PATIENCE_S)
    begin = time.perf_counter()
    compiled(3)
    compiled(4)
    assert listener.spent_s - first_compile.PATIENCE_S <= time.perf_counter() - begin
    assert capsys.readouterr().err.count("compiling for this CPU, once") == 1
