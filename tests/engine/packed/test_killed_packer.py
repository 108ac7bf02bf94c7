"""A packer that is killed with SIGKILL at random moments leaves no folder, or a whole one; the next one begins anew."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moelab.engine import load
from moelab.engine.packed.write import pack_model
from tests.engine.tiny_models import save_hf, tiny_hf

NUM_KILLS = 40


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork are POSIX; every disk call is stopped elsewhere")
def test_nothing_half_written(tmp_path):
    model = save_hf(tiny_hf(5), tmp_path / "model")
    with load(model) as engine:
        expected = engine.forward(torch.arange(9))
    draw = random.Random(20261124)
    command = [sys.executable, "-m", "tests.engine.packed.killed_packer"]
    root = Path(__file__).parents[3]
    num_whole = num_left = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as packer:
        longest = 0.2
        for number in range(5 * NUM_KILLS):
            if number >= NUM_KILLS and num_left > 3:
                break
            folder = tmp_path / f"packed-{number}"
            packer.stdin.write(json.dumps([str(model), str(folder), draw.uniform(0, longest)]) + "\n")
            packer.stdin.flush()
            killed = json.loads(packer.stdout.readline())
            num_left += folder.with_name(folder.name + ".partial").exists()
            assert killed or folder.exists()
            if folder.exists():
                num_whole += 1
                with load(model, packed=folder) as engine:
                    torch.testing.assert_close(engine.forward(torch.arange(9)), expected, atol=0, rtol=0)
                longest /= 1.1  # a fast machine
            elif killed:
                longest *= 1.1  # a slow machine: give it more, so that some come further
        packer.stdin.close()
    assert num_left > 3, "no kill fell into the writing"
    again = tmp_path / "again"
    (tmp_path / "again.partial" / "packed").mkdir(parents=True)
    (tmp_path / "again.partial" / "packed" / "experts-000.bin").write_bytes(b"left by a process that died")
    pack_model(model, again)
    with load(model, packed=again) as engine:
        torch.testing.assert_close(engine.forward(torch.arange(9)), expected, atol=0, rtol=0)
    print(f"{number} kills: {num_left} left a scratch folder, {num_whole} came too late")
