"""Doctor: the sections and their plain numbers, and a wrong MOELAB_ISA that is reported, not raised."""

import json
import os
import subprocess
import sys

import pytest

from moelab.cli import doctor


def run_doctor(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "moelab", "doctor", "--no-probe", *arguments],
        capture_output=True, text=True, timeout=300, env=os.environ | environment,
    )  # fmt: skip


def test_json_has_plain_numbers():
    done = run_doctor("--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"moelab", "kernels", "machine", "bandwidth", "missing"}
    machine = document["machine"]
    assert 0 < machine["memory_available_bytes"] <= machine["memory_total_bytes"]
    assert machine["num_cores"] >= 1
    assert all(node["memory_bytes"] > 0 for node in machine["nodes"])
    assert {"source", "read_gb_per_s", "kernel", "kernel_efficiency", "layer_overhead_s"} == set(document["bandwidth"])
    for isa, row in document["kernels"]["isas"].items():
        if not row["built"] and isa != "generic":
            assert isa in document["missing"]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_wrong_isa_is_reported(arguments):
    done = run_doctor(*arguments, MOELAB_ISA="nonsense")
    assert done.returncode == 0, done.stderr
    assert "nonsense" in done.stdout
    if arguments:
        assert json.loads(done.stdout)["kernels"]["chosen"] is None


def test_missing_names_the_cuda_device():
    assert "cuda device" in doctor.missing({"torch": "2", "torch device": "cpu"})
    assert "cuda device" not in doctor.missing({"torch": "2", "torch device": "cuda (some card)"})
    assert doctor.missing({"torch": "not usable (why)"})["torch"] == "not usable (why)"
