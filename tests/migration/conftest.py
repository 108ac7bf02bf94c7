"""A live nano on two virtual nodes, and the recorded routings of nano."""

from __future__ import annotations

import pytest

import moelab
from tests.migration.nano_plans import NANO


@pytest.fixture(scope="module")
def capture():
    return moelab.open_trace(moelab.shipped("nano/capture")).load()


@pytest.fixture
def engine():
    with moelab.load(NANO, virtual_nodes=2, activation="int8") as engine:
        yield engine
