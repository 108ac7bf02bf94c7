"""The device and dense type that are chosen, and what doctor says of them."""

import subprocess
import sys

import pytest
import torch

from moelab.engine.device import choose_dense_dtype, describe_torch, has_bf16_products

CPU = torch.device("cpu")


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_the_asked_type_is_taken(asked):
    assert choose_dense_dtype(asked, torch.bfloat16, CPU) is getattr(torch, asked)


def test_bf16_stays_only_where_it_is_multiplied_in_hardware():
    expected = torch.bfloat16 if has_bf16_products(CPU) else torch.float32
    assert choose_dense_dtype(None, torch.bfloat16, CPU) is expected
    assert choose_dense_dtype(None, torch.float32, CPU) is torch.float32


def test_doctor_rows():
    rows = describe_torch()
    assert rows["torch"] == torch.__version__
    assert rows["dense path"] in ("float32", "bfloat16")


def test_importing_moelab_and_reading_prompts_needs_no_torch():
    program = """
import sys
import moelab, moelab.engine, moelab.engine.prompts, moelab.engine.device
assert "torch" not in sys.modules
sys.modules["torch"] = None
print(moelab.engine.device.describe_torch()["torch"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "not usable" in done.stdout
