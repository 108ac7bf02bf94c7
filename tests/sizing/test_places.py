"""Places: bytes are conserved, rooms are kept, replicas cost copies; imbalance against drawing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.domain.machine import FastTierDevice, Machine, NumaNode
from moelab.domain.model import ModelSpec
from moelab.sizing.places import LAYOUTS, Need, imbalance, need_of, place
from moelab.sizing.recipes import recipe

SIZES = st.integers(0, 10**12)


def machine(memory: list[int], gpus: list[int] = (), **more) -> Machine:
    nodes = tuple(
        NumaNode(name=f"node{i}", cores=(i,), memory_bytes=size, read_gb_per_s={1: 100.0})
        for i, size in enumerate(memory)
    )
    tiers = tuple(FastTierDevice(name=f"fast{i}", device="g", memory_bytes=s, read_gb_per_s=900.0)
                  for i, s in enumerate(gpus))  # fmt: skip
    return Machine(name="m", source="preset", nodes=nodes, fast_tiers=tiers, **more)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(SIZES, min_size=1, max_size=4), st.lists(SIZES, max_size=3), SIZES, SIZES,
    st.integers(1, 10**12), SIZES, st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_bytes_are_conserved_and_rooms_are_kept(memory, gpus, always, cache, routed, embedding, layout):
    need = Need(always, cache, routed, embedding)
    got = place(need, machine(memory, gpus), layout=layout, system_bytes_per_node=0, system_bytes_per_gpu=0)
    assert got.routed_fast_bytes + got.streamed_bytes <= routed
    copies = len(memory) if layout == "replicate" else 1
    in_ram = routed - got.routed_fast_bytes - got.streamed_bytes
    if got.mode == "fast":
        assert got.fast_bytes == need.total_bytes <= sum(gpus)
        assert sum(got.node_bytes) == 0
    elif got.mode == "hybrid":
        assert got.fast_bytes == always + cache + got.routed_fast_bytes
        assert sum(got.node_bytes) == embedding + copies * in_ram
    else:
        assert sum(got.node_bytes) == always + cache + embedding + copies * in_ram
    if got.fits:
        assert got.streamed_bytes == 0
        assert got.fast_bytes <= got.fast_room_bytes
        assert sum(got.node_bytes) <= sum(memory)
        if layout != "replicate":  # spread in proportion to the room
            assert all(used <= room + len(memory) for used, room in zip(got.node_bytes, memory, strict=True))
        else:
            assert all(used <= room + len(memory) for used, room in zip(got.node_bytes, memory, strict=True))
    else:
        assert got.lacks


@settings(max_examples=100, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=3), st.lists(SIZES, max_size=2), SIZES, st.integers(1, 10**12), SIZES)
def test_more_memory_never_stops_fitting(memory, gpus, always, routed, more):
    need = Need(always, 0, routed, 0)
    before = place(need, machine(memory, gpus), system_bytes_per_node=0, system_bytes_per_gpu=0)
    wider = [size + more for size in memory]
    after = place(need, machine(wider, gpus), system_bytes_per_node=0, system_bytes_per_gpu=0)
    assert after.fits or not before.fits
    assert after.streamed_bytes <= before.streamed_bytes


def test_system_bytes_are_left_out_of_every_memory():
    need = Need(10, 5, 100, 3)
    exact = machine([60, 43], [15])
    assert place(need, exact, system_bytes_per_node=0, system_bytes_per_gpu=0).fits
    assert not place(need, exact, system_bytes_per_node=1, system_bytes_per_gpu=0).fits
    lacking = place(need, exact, system_bytes_per_node=0, system_bytes_per_gpu=1)
    assert "GPUs hold" in lacking.lacks[0]
    default = place(need, exact)
    assert default.node_room_bytes == (0, 0)


def test_replicas_need_a_copy_on_every_node():
    spec = ModelSpec.preset("kimi-k2.6")
    need = need_of(spec, recipe("native"), 8192)
    gen4 = Machine.preset("2x-xeon-gen4-ddr5-4800+rtx-4090")  # 2 x 512 GiB
    assert place(need, gen4).fits
    replicated = place(need, gen4, layout="replicate")
    assert not replicated.fits
    forge = place(need, Machine.preset("forge-moe-gen4"), layout="replicate")
    assert forge.fits  # 2 x 571 GB of experts in 1.5 TB
    assert sum(forge.node_bytes) == 2 * need.routed_bytes + need.embedding_bytes
    assert need.routed_bytes / 1e9 == pytest.approx(571, abs=0.5)


def test_what_must_be_fast_and_what_may_stream():
    """Facts section 3, on article 4: the resident set is what is not routed, 21.1 GB in bf16, and the cache."""
    spec = ModelSpec.preset("kimi-k2.6")
    need = need_of(spec, recipe("native"), 262144)
    assert need.always_bytes / 1e9 == pytest.approx(21.1, abs=0.05)
    assert need.cache_bytes / 1e9 == pytest.approx(18.42, abs=0.01)
    assert need.total_bytes == spec.weight_bytes() + spec.kv_cache_bytes(262144)
    tied = spec.model_copy(update={"tie_word_embeddings": True})
    assert need_of(tied, recipe("bf16"), 1).embedding_bytes == 0
    assert need_of(tied, recipe("bf16"), 1).always_bytes == need_of(spec, recipe("bf16"), 1).always_bytes


def test_unified_memory_is_ram():
    got = place(Need(10, 5, 100, 3), machine([118], [50], unified_memory=True), system_bytes_per_node=0)
    assert got.mode == "cpu"
    assert got.fits
    assert got.fast_room_bytes == 0


def test_experts_on_the_gpus_are_bounded_by_their_room():
    need = Need(10, 5, 100, 3)
    big = machine([200], [45])
    some = place(need, big, routed_fast_bytes=30, system_bytes_per_node=0, system_bytes_per_gpu=0)
    assert some.fast_share == 0.3
    with pytest.raises(ValueError, match="of experts on the GPUs, expected at most"):
        place(need, big, routed_fast_bytes=31, system_bytes_per_node=0, system_bytes_per_gpu=0)
    with pytest.raises(ValueError, match="layout is 'odd', expected one of split"):
        place(need, big, layout="odd")


@pytest.mark.parametrize("seed", range(6))
def test_imbalance_against_drawing(seed):
    rng = np.random.default_rng(seed)
    nodes = int(rng.integers(2, 5))
    experts = int(rng.integers(nodes, 40))
    distinct = int(rng.integers(1, experts + 1))
    node_of_expert = np.arange(experts) % nodes
    most = [
        np.bincount(node_of_expert[rng.permutation(experts)[:distinct]], minlength=nodes).max() for _ in range(20000)
    ]
    assert imbalance(experts, distinct, nodes) == pytest.approx(np.mean(most) / (distinct / nodes), rel=0.01)


def test_imbalance_by_hand():
    assert imbalance(384, 8, 1) == 1
    assert imbalance(4, 4, 2) == 1
    assert imbalance(10, 1, 2) == 2
    # Two of four, two nodes of two: 2 of 6 pairs lie together: (2 x 1/3 + 1 x 2/3) / 1
    assert imbalance(4, 2, 2) == pytest.approx(4 / 3)
    with pytest.raises(ValueError, match="9 of 8 experts"):
        imbalance(8, 9, 2)
