"""Doctor: the sections and their plain numbers, and a wrong MOELAB_ISA that is reported, not raised."""

import json
import os
import subprocess
import sys

from moelab.cli import doctor, main


def run_doctor(capfd, *arguments):
    code = main(["doctor", "--no-probe", *arguments])
    said = capfd.readouterr()
    assert code == 0, said.err
    return said.out


def test_json_has_plain_numbers(capfd):
    document = json.loads(run_doctor(capfd, "--json"))
    assert set(document) == {"moelab", "kernels", "machine", "bandwidth", "missing"}
    machine = document["machine"]
    assert 0 < machine["memory_available_bytes"] <= machine["memory_total_bytes"]
    left = machine["cgroup_memory_left_bytes"]
    assert left is None or left >= 0
    assert machine["num_cores"] >= 1
    assert all(node["memory_bytes"] > 0 for node in machine["nodes"])
    assert {"source", "read_gb_per_s", "kernel", "kernel_efficiency", "layer_overhead_s"} == set(document["bandwidth"])
    for isa, row in document["kernels"]["isas"].items():
        if not row["built"] and isa != "generic":
            assert isa in document["missing"]


def test_wrong_isa_is_reported(capfd, monkeypatch):
    monkeypatch.setenv("MOELAB_ISA", "nonsense")
    assert "nonsense" in run_doctor(capfd)


def test_wrong_isa_stops_no_process_that_imports_under_it():
    command = [sys.executable, "-m", "moelab", "doctor", "--no-probe", "--json"]
    environment = os.environ | {"MOELAB_ISA": "nonsense"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "nonsense" in done.stdout
    assert json.loads(done.stdout)["kernels"]["chosen"] is None


def test_missing_names_the_cuda_device():
    assert "cuda device" in doctor.missing({"torch": "2", "torch device": "cpu"})
    assert "cuda device" not in doctor.missing({"torch": "2", "torch device": "cuda (some card)"})
    assert doctor.missing({"torch": "not usable (why)"})["torch"] == "not usable (why)"
