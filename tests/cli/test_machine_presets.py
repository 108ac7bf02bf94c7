"""--machine PRESET with a GPU: the simulator predicts with its memory, its rate and its link."""

import json

import pytest

from moelab.cli import main


def simulate(capsys, machine: str) -> dict:
    code = main(["simulate", "--slots", "12", "--machine", machine, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def test_simulate_predicts_with_a_presets_fast_tier(capsys):
    alone = simulate(capsys, "2x-xeon-gen4-ddr5-4800")
    assert "infinitely fast" in alone["fast_tier"]
    forge = simulate(capsys, "forge-moe-gen4")
    assert forge["fast_read_gb_per_s"] == 1008
    assert forge["link_gb_per_s"] == 31.5
    assert forge["fast_ms_per_token"] > 0
    assert forge["predicted_ms_per_token"] >= forge["cpu_ms_per_token"]
    faster = simulate(capsys, "forge-moe-gen4+h200")
    assert faster["fast_read_gb_per_s"] == 4800
    assert faster["fast_ms_per_token"] == pytest.approx(forge["fast_ms_per_token"] * 1008 / 4800)


def test_unknown_presets_are_refused_with_the_list(capsys):
    assert main(["simulate", "--slots", "12", "--machine", "forge-moe-gen4+gpu"]) == 2
    assert "such as +rtx-4090 or +2x-h200" in capsys.readouterr().err
