"""The whole engine and the replay on AMX: the same text as the other ISA, from executed tile instructions."""

from __future__ import annotations

import json

import pytest

import moelab
from moelab.cli import main
from moelab.engine.prompts import read_prompts
from moelab.store import shipped
from tests.kernels.amx.library import BESIDE_AMX

NANO = shipped("nano/model").parent
NUM_TOKENS = 12


def generated(prompt: str) -> tuple[list[int], str]:
    with moelab.load(NANO / "model", activation="int8", dense_dtype="float32") as engine:
        text = engine.generate(prompt, NUM_TOKENS, stop=())
        return list(text.token_ids), engine.isa


@pytest.mark.parametrize("number", [7])
def test_nano_writes_the_same_text(amx, monkeypatch, number):
    prompt = read_prompts(NANO / "prompts.jsonl")[number].prompt[:120]
    monkeypatch.setenv("MOELAB_ISA", BESIDE_AMX)
    expected, _ = generated(prompt)
    assert len(expected) == NUM_TOKENS
    for name in ("amx", "amx+avx512"):
        monkeypatch.setenv("MOELAB_ISA", name)
        with amx.counted() as executed:
            tokens, isa = generated(prompt)
        assert isa == name
        assert tokens == expected
        if amx.active:  # prompts in one step: experts of many tokens even where few go elsewhere
            assert executed["TDPBSUD"] > 1000, executed


def test_replay(amx, monkeypatch, capsys):
    """The machine is a preset: the probe of this one runs experts of K2's shape, three million tile instructions."""
    monkeypatch.setenv("MOELAB_ISA", "amx")
    command = ["replay", "--expert-shape", "own", "--tokens", "8", "--machine", "desktop-ddr5-6000", "--json"]
    with amx.counted() as executed:
        assert main(command) in (None, 0)
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["isa"], row["activation"], row["tokens"]) == ("amx", "int8", 8)
    assert row["measured_ms_per_token"] > 0
    assert row["max_relative_error"] < row["relative_error_tolerance"]
    if amx.active:
        # Of each token, layer and expert: 2 x 8 rows of tiles by 8 groups of 32 columns, and 16 by 4.
        assert executed["TDPBSUD"] >= 8 * 6 * 4 * (16 * 8 + 16 * 4), executed
