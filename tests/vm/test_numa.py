"""Virtual machines with real NUMA nodes run the placement tests of ``guest/``: pages, cores, counters, full nodes."""

from __future__ import annotations

import os

import pytest

from tests.vm.image import build_image
from tests.vm.virtual_machine import Node, missing, passed, run_guest

pytestmark = pytest.mark.vm

# name: nodes, the guest's test files, the smallest number of tests that must have run, CPU
MACHINES = {
    "two nodes": ([Node(1024, "0-1"), Node(1024, "2-3")], "test_placement.py,test_full_node.py", 20, "max"),
    "four nodes": ([Node(640, str(n)) for n in range(4)], "test_placement.py", 16, "max"),
    "unequal nodes, one without cores": (
        [Node(1024, "0"), Node(512, "1-3"), Node(512)], "test_memory_only.py,test_full_node.py", 6, "max",
    ),
    "a CPU without AVX2": ([Node(1024, "0-1")], "test_old_cpu.py", 7, "Nehalem"),
}  # fmt: skip


@pytest.fixture(scope="module")
def tools():
    absent = missing()
    if absent and os.environ.get("CI") == "true":
        pytest.fail(f"a virtual machine needs {absent}")
    if absent:
        pytest.skip("no qemu and kernel for a virtual machine")


@pytest.fixture(scope="module")
def disk(tools, tmp_path_factory):
    return build_image(tmp_path_factory.mktemp("image"))


@pytest.mark.parametrize("machine", MACHINES)
def test_guest(machine, disk, tmp_path):
    nodes, tests, smallest, cpu = MACHINES[machine]
    report = run_guest(disk, nodes, tests, tmp_path, cpu)
    assert passed(report), f"status {report.status}, failed {report.failed}, skipped {report.skipped}\n{report.output}"
    assert len(report.passed) >= smallest, report.passed


@pytest.mark.timeout(1300)
def test_a_running_engine_in_the_guest(tools, tmp_path):
    """`moelab.apply` and `load(plan=)` with torch and nano: pages of every expert, text, failures, a full node.

    One core a node: workers that wait for each other spin, and emulation shares the cores of this machine.
    """
    disk = build_image(tmp_path, engine=True)
    report = run_guest(disk, [Node(1024, "0"), Node(1024, "1")], "test_apply.py", tmp_path, seconds=1200)
    assert passed(report), f"status {report.status}, failed {report.failed}, skipped {report.skipped}\n{report.output}"
    assert len(report.passed) == 5, report.passed


def test_a_failure_in_the_guest_is_seen(disk, tmp_path):
    """The guest is told of three nodes and has two: its own check must fail, and reach us by name."""
    report = run_guest(
        disk, [Node(512, "0"), Node(512, "1")], "test_placement.py::test_pool_has_the_nodes_of_the_machine", tmp_path,
        words="NUM_NODES=3",
    )  # fmt: skip
    assert not passed(report)
    assert report.failed == ("test_pool_has_the_nodes_of_the_machine",)
