"""shipped: the checkout's traces/, else the installed folder, else one clear error."""

import sys

import pytest

from moelab.store import shipped as shipped_function
from moelab.store.shipped import shipped


def test_a_checkout_and_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "moelab"
    (package / "shipped" / "nano").mkdir(parents=True)
    monkeypatch.setattr(sys.modules["moelab.store.shipped"], "_PACKAGE", package)
    assert shipped("nano") == package / "shipped" / "nano"
    (tmp_path / "traces" / "nano").mkdir(parents=True)
    assert shipped("nano") == package / "shipped" / "nano"  # some folder that happens to be called traces
    (tmp_path / "pyproject.toml").touch()
    assert shipped("nano") == tmp_path / "traces" / "nano"


def test_what_is_not_there():
    with pytest.raises(ValueError, match="'nothing/here' is not installed"):
        shipped_function("nothing/here")
    with pytest.raises(ValueError, match="lies outside"):
        shipped_function("../moelab")
