"""Where workers sit, on systems made of files: SMT siblings, nodes, requested numbers, virtual nodes."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from moelab.domain import allowed_cores as cores
from moelab.domain.allowed_cores import node_of_core
from moelab.kernels import Pool, plan_nodes
from moelab.kernels.places import Place, places
from moelab.kernels.plan_nodes import virtual_nodes_for


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Two nodes of two physical cores with two threads each: siblings 0,4 1,5 | 2,6 3,7."""
    for core in range(8):
        topology = tmp_path / f"cpu/cpu{core}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{core % 4},{core % 4 + 4}\n")
        (tmp_path / f"cpu/cpu{core}/node{core % 4 // 2}").mkdir()
    monkeypatch.setattr(cores, "cgroup_core_quota", lambda: None)
    monkeypatch.setattr(cores, "affinity_mask", lambda: list(range(8)))
    return tmp_path


def test_one_worker_for_each_physical_core_grouped_by_node(system):
    assert places(system=system) == [Place(0, 0), Place(1, 0), Place(2, 1), Place(3, 1)]


def test_fewer_workers_come_from_the_nodes_in_turn(system):
    assert places(2, system=system) == [Place(0, 0), Place(2, 1)]
    assert places(3, system=system) == [Place(0, 0), Place(1, 0), Place(2, 1)]
    assert places(1, system=system) == [Place(0, 0)]
    assert len(places(100, system=system)) == 4


def test_affinity_that_leaves_second_threads_and_one_node(system, monkeypatch):
    monkeypatch.setattr(cores, "affinity_mask", lambda: [6, 7])
    assert places(system=system) == [Place(6, 0), Place(7, 0)]


def test_virtual_nodes_divide_the_cores(system):
    assert [place.node for place in places(virtual_nodes=4, system=system)] == [0, 1, 2, 3]
    assert [place.node for place in places(virtual_nodes=1, system=system)] == [0, 0, 0, 0]
    assert [place.node for place in places(2, virtual_nodes=2, system=system)] == [0, 1]
    with pytest.raises(ValueError, match=r"virtual_nodes: expected 1 to 4 .*; got 5"):
        places(virtual_nodes=5, system=system)
    with pytest.raises(ValueError, match="expected 1 or more"):
        places(0, system=system)


def test_without_sysfs_every_core_is_a_place(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "cgroup_core_quota", lambda: None)
    monkeypatch.setattr(cores, "affinity_mask", lambda: [0, 1, 2])
    assert places(system=tmp_path) == [Place(0, 0), Place(1, 0), Place(2, 0)]


def test_a_plan_of_more_nodes_gets_virtual_ones(system, monkeypatch):
    def plan(*tiers):
        return SimpleNamespace(tiers=tiers)

    monkeypatch.setattr(plan_nodes, "places", lambda num_workers: places(num_workers, system=system))
    one, two, four = plan("node0", "fast0"), plan("node0", "node1"), plan("node0", "node3")
    assert virtual_nodes_for(one) is None
    assert virtual_nodes_for(one, two) is None  # the machine has two
    assert virtual_nodes_for(two, four) == 4
    assert virtual_nodes_for(four, asked=2) == 2
    with pytest.raises(ValueError, match=r"plan has 5 nodes; expected at most 4 on this machine.*--nodes 4"):
        virtual_nodes_for(plan("node4", "node0"))
    with pytest.raises(ValueError, match="plan has 4 nodes; expected at most 3"):
        virtual_nodes_for(four, num_workers=3)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux sets the affinity of a thread")
def test_the_place_of_the_caller_is_where_it_is():
    allowed = os.sched_getaffinity(0)
    with Pool(1) as pool:
        try:
            for core in sorted(allowed):
                os.sched_setaffinity(0, {core})
                assert pool.caller_place == (core, node_of_core(core))
        finally:
            os.sched_setaffinity(0, allowed)
