"""Pytest plugin: ``pytest -p tests.kernels.amx.on_library --amx-library PATH`` runs on that library."""

from __future__ import annotations

from pathlib import Path

from moelab.kernels import native


def pytest_addoption(parser):
    parser.addoption("--amx-library", type=Path, required=True, help="what tests.kernels.amx.library.build made")


def pytest_configure(config):
    native.library_path = lambda: config.getoption("--amx-library")
    native.library.cache_clear()
