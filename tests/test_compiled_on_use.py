"""on_use: nothing is compiled before it is called; compiled code calls it; other types are refused, not compiled."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit, types

from moelab.compiled_on_use import OnUse
from moelab.dispatch import dispatch
from moelab.source_stamp import stamp_of_room

ROOMS = "moelab.planner, moelab.simulator, moelab.analysis, moelab.synthetic, moelab.cost_model.hybrid, moelab.dispatch"


def _twice() -> OnUse:
    def twice(values):
        """Doubles."""
        total = 0
        for value in values:
            total += 2 * value
        return total

    return OnUse(twice, types.int64(types.int64[::1]), {})


def test_compiles_at_the_first_call():
    function = _twice()
    assert "dispatcher" not in vars(function)
    assert function(np.arange(4)) == 12
    assert len(function.dispatcher.signatures) == 1
    assert (function.__name__, function.__doc__) == ("twice", "Doubles.")


def test_refuses_other_types_as_a_signature_does():
    function = _twice()
    with pytest.raises(TypeError, match="No matching definition"):
        function(np.zeros(4, np.float64))
    with pytest.raises(TypeError, match="No matching definition"):
        function(np.arange(8)[::2])
    assert len(function.dispatcher.signatures) == 1


def test_compiled_code_calls_it():
    function = _twice()

    @njit
    def plus_one(values):
        return function(values) + 1

    assert plus_one(np.arange(4)) == 13
    with pytest.raises(Exception, match=r"No matching definition|Invalid use"):
        plus_one(np.zeros(4, np.float64))


def test_importing_compiles_nothing(tmp_path):
    """With an empty disk cache every compilation leaves a file."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", f"import {ROOMS}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.nb?")) == []
    assert done.stderr == ""


def test_the_replay_loop_is_stamped_with_what_it_calls():
    from moelab.simulator.loop import run

    assert all(stamp_of_room(room) in run.__qualname__ for room in ("policies", "simulator"))
    assert dispatch is not None
