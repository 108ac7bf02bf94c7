"""Kernel x ISA x format x mode x shape against the float64 reference."""

from __future__ import annotations

import os

import numpy as np
import pytest

from moelab.kernels import (
    ACTIVATIONS_OF_FORMAT,
    NO_EXPERT,
    ExpertArena,
    ExpertLayout,
    Pool,
    RoutedExperts,
    isa_table,
    routed,
)
from moelab.kernels.reference import (
    KERNEL_TOLERANCE_INT16,
    KERNEL_TOLERANCES,
    TOLERANCES,
    reference_experts,
    relative_error,
)
from tests.kernels.random_experts import carried_as, random_arena, random_step

ISAS = [row.isa for row in isa_table() if row.supported]
MODES = [(f, a) for f, activations in ACTIVATIONS_OF_FORMAT.items() for a in activations]
NATIVE = [isa for isa in ISAS if isa != "numba"]
# Numba has no int8 weights, AMX no float32.
KERNELS = [(isa, f, a) for isa in ISAS for f, a in MODES if (isa, f) not in {("numba", "int8_g32"), ("amx", "float32")}]
# hidden_size, intermediate_size, tokens, top_k, experts
SHAPES = [
    (256, 128, 1, 4, 6),
    (64, 32, 3, 2, 3),
    (100, 70, 5, 3, 5),
    (33, 17, 9, 2, 3),
    (16, 16, 1, 1, 1),
    (1, 1, 2, 1, 2),
    (320, 96, 40, 4, 8),
    (72, 200, 17, 1, 2),
]


def rounds_weights(isa: str, activation: str) -> bool:
    """Tiles of bf16 have the scale in the weights; the automatic choice leaves that to AVX-512 (docs/amx.md)."""
    return isa == "amx" and activation == "bf16"


@pytest.fixture(scope="module")
def pool():
    with Pool(2) as pool:
        yield pool


@pytest.mark.parametrize(("isa", "weight_format", "activation"), KERNELS)
def test_matches_reference(isa, weight_format, activation, pool):
    for number, (hidden, intermediate, num_tokens, top_k, num_experts) in enumerate(SHAPES):
        layout = ExpertLayout(hidden, intermediate, weight_format)
        arena = random_arena(layout, num_experts, seed=number)
        experts = RoutedExperts(layout, arena.addresses, isa=isa, activation=activation, pool=pool, owner=arena)
        x, ids, gates = random_step(np.random.default_rng(number), num_tokens, top_k, num_experts, hidden)
        y = experts.forward(x, ids, gates)
        # The counts come from the kernels: every byte of an active expert is read once, padding too.
        assert experts.bytes_read == len(set(ids.ravel().tolist()) - {NO_EXPERT}) * layout.expert_bytes
        truth = reference_experts(x, ids, gates, arena, layout)
        carried = carried_as(isa, weight_format, activation)
        modelled = reference_experts(
            x, ids, gates, arena, layout, carried, bf16_weights=rounds_weights(isa, activation)
        )
        tolerance = KERNEL_TOLERANCE_INT16 if carried == "int16" else KERNEL_TOLERANCES[weight_format, activation]
        # A few numbers only: one rounding step of one of them is not averaged out.
        few = 10 if hidden * intermediate < 256 else 1
        assert relative_error(y, truth) <= few * TOLERANCES[weight_format, activation], (hidden, intermediate)
        assert relative_error(y, modelled) <= few * tolerance, (hidden, intermediate)


@pytest.mark.parametrize(("isa", "weight_format", "activation"), KERNELS)
def test_same_bits_for_any_split(isa, weight_format, activation, monkeypatch):
    """Worker counts, chunks and batching change nothing: placement never changes results."""
    layout = ExpertLayout(160, 112, weight_format)
    arena = random_arena(layout, 6, seed=3)
    x, ids, gates = random_step(np.random.default_rng(4), 20, 3, 6, 160)
    num_active = len(set(ids.ravel().tolist()) - {NO_EXPERT})
    alone = RoutedExperts(layout, arena.addresses, isa=isa, activation=activation).forward(x, ids, gates)
    monkeypatch.setattr(routed, "ALONE_BYTES", {"numba": 0, "native": 0})
    for num_workers in (1, 2):
        with Pool(num_workers) as pool:
            experts = RoutedExperts(layout, arena.addresses, isa=isa, activation=activation, pool=pool)
            if isa == "numba":
                experts._phases.gate_up_chunk, experts._phases.down_chunk = 1, 3
            np.testing.assert_array_equal(experts.forward(x, ids, gates), alone)
            assert experts.bytes_read == num_active * layout.expert_bytes
    if (isa, weight_format) == ("amx+avx512", "bf16"):
        return  # the number of tokens of an expert decides who computes it, and in which order sums are taken
    experts = RoutedExperts(layout, arena.addresses, isa=isa, activation=activation)
    for t in range(len(x)):
        row = slice(t, t + 1)
        np.testing.assert_array_equal(experts.forward(x[row], ids[row], gates[row]), alone[row])


@pytest.mark.parametrize("weight_format", ["int4_g32", "int8_g32"])
def test_every_isa_gives_the_same_bits_in_int8(weight_format):
    """The header fixes every operation of int8 mode."""
    isas = ISAS if weight_format == "int4_g32" else NATIVE
    for hidden, intermediate, num_tokens in ((256, 128, 1), (100, 70, 6), (7168, 64, 2), (160, 96, 37)):
        layout = ExpertLayout(hidden, intermediate, weight_format)
        arena = random_arena(layout, 4, seed=hidden)
        x, ids, gates = random_step(np.random.default_rng(5), num_tokens, 2, 4, hidden)
        x *= np.float32(30)
        results = [
            RoutedExperts(layout, arena.addresses, isa=isa, activation="int8").forward(x, ids, gates) for isa in isas
        ]
        for isa, result in zip(isas, results, strict=True):
            np.testing.assert_array_equal(result, results[0], err_msg=isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("nibble", [0, 8, 15])
def test_extremes_do_not_overflow(isa, nibble):
    """Every q at -8, 0 or 7 against every activation at +-127: the largest integer sums there are."""
    layout = ExpertLayout(128, 64, "int4_g32")
    word = np.uint32(0x11111111 * nibble).view(np.int32)
    one = np.uint16(0x3F80)
    sources = [(np.full((r, c // 8), word), np.full((r, c // 32), one)) for r, c in layout.shapes]
    with ExpertArena(layout, 1) as arena:
        layout.pack_expert(arena[0], *sources)
        for sign in (1.0, -1.0):
            x = np.full((1, 128), sign * 127 * 2.0**-12, np.float32)
            experts = RoutedExperts(layout, arena.addresses, isa=isa, activation="int8")
            y = experts.forward(x, np.zeros((1, 1), np.uint16), np.ones((1, 1), np.float32))
            gate = (nibble - 8) * 128 * float(x[0, 0])
            hidden = gate / (1 + np.exp(-gate)) * gate
            np.testing.assert_allclose(y, (nibble - 8) * 64 * hidden, rtol=1e-5)
        del experts


@pytest.mark.parametrize("isa", NATIVE)
def test_virtual_nodes_read_their_own_experts_and_change_nothing(isa, monkeypatch):
    monkeypatch.setattr(routed, "ALONE_BYTES", {"numba": 0, "native": 0})
    layout = ExpertLayout(160, 112, "int4_g32")
    arena = random_arena(layout, 6, seed=3)
    x, ids, gates = random_step(np.random.default_rng(4), 5, 3, 6, 160)
    alone = RoutedExperts(layout, arena.addresses, isa=isa).forward(x, ids, gates)
    node_of_expert = np.array([1, 0, 1, 1, 0, 1])
    active = np.unique(ids[ids != NO_EXPERT])
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    with Pool(2, virtual_nodes=2) as pool:
        assert (pool.num_nodes, pool.virtual) == (2, True)
        experts = RoutedExperts(layout, arena.addresses, isa=isa, pool=pool, owner=arena, node_of_expert=node_of_expert)
        np.testing.assert_array_equal(experts.forward(x, ids, gates), alone)
        assert experts.bytes_of_node == [layout.expert_bytes * int((node_of_expert[active] == n).sum()) for n in (0, 1)]
        everyone = RoutedExperts(layout, arena.addresses, isa=isa, pool=pool, owner=arena)
        np.testing.assert_array_equal(everyone.forward(x, ids, gates), alone)
        with pytest.raises(ValueError, match=r"nodes 0..1 of the pool; got \[6\], nodes \[0, 2\]"):
            RoutedExperts(layout, arena.addresses, isa=isa, pool=pool, node_of_expert=np.array([0, 2, 0, 0, 0, 0]))


def test_layers_share_scratch_whatever_the_order_of_shapes():
    layout = ExpertLayout(64, 32, "int4_g32")
    arenas = [random_arena(layout, 4, seed=seed) for seed in (1, 2)]
    layers = [RoutedExperts(layout, arena.addresses, owner=arena) for arena in arenas]
    alone = [RoutedExperts(layout, arena.addresses, owner=arena) for arena in arenas]
    layers[1].share_scratch(layers[0])
    rng = np.random.default_rng(0)
    for num_tokens in (1, 7, 2, 7, 1):
        x, ids, gates = random_step(rng, num_tokens, 2, 4, 64)
        for shared, own in zip(layers, alone, strict=True):
            np.testing.assert_array_equal(shared.forward(x, ids, gates), own.forward(x, ids, gates))
    with pytest.raises(ValueError, match="expected a layer like"):
        layers[0].share_scratch(RoutedExperts(ExpertLayout(64, 64, "int4_g32"), arenas[0].addresses))


@pytest.mark.parametrize("isa", NATIVE)
@pytest.mark.parametrize("q", [-128, 127])
def test_extremes_of_int8_weights(isa, q):
    """The products that saturate where pairs of bytes are multiplied into int16: 2 * 255 * 127 is far beyond it."""
    layout = ExpertLayout(128, 64, "int8_g32")
    one = np.uint16(0x3F80)
    sources = [(np.full(shape, q, np.int8), np.full((shape[0], shape[1] // 32), one)) for shape in layout.shapes]
    with ExpertArena(layout, 1) as arena:
        layout.pack_expert(arena[0], *sources)
        for sign in (1.0, -1.0):
            x = np.full((1, 128), sign * 127 * 2.0**-16, np.float32)
            experts = RoutedExperts(layout, arena.addresses, isa=isa, activation="int8")
            y = experts.forward(x, np.zeros((1, 1), np.uint16), np.ones((1, 1), np.float32))
            gate = q * 128 * float(x[0, 0])
            hidden = gate / (1 + np.exp(-gate)) * gate
            np.testing.assert_allclose(y, q * 64 * hidden, rtol=1e-5)
        del experts


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "amx"])
def test_counters_unrouted_and_empty(isa):
    layout = ExpertLayout(64, 32, "float32")
    arena = random_arena(layout, 4, seed=1)
    experts = RoutedExperts(layout, arena.addresses, isa=isa)
    x = np.ones((2, 64), np.float32)
    nobody = np.full((2, 3), NO_EXPERT, np.uint16)
    np.testing.assert_array_equal(experts.forward(x, nobody, np.ones((2, 3), np.float32)), np.zeros((2, 64)))
    assert experts.bytes_read == 0
    assert experts.forward(x[:0], nobody[:0], np.ones((0, 3), np.float32)).shape == (0, 64)
    ids = np.array([[1, 1, NO_EXPERT], [1, 3, NO_EXPERT]])
    out = np.empty((2, 64), np.float32)
    assert experts.forward(x, ids, np.ones((2, 3)), out=out) is out
    assert relative_error(out, reference_experts(x, ids, np.ones((2, 3)), arena, layout)) < TOLERANCES["float32", "f32"]
    assert experts.bytes_read == 2 * layout.expert_bytes
    assert experts.seconds > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("isa", "weight_format", "activation"), KERNELS)
def test_nan_reaches_the_output(isa, bad, weight_format, activation):
    layout = ExpertLayout(64, 32, weight_format)
    arena = random_arena(layout, 2, seed=1)
    x = np.ones((2, 64), np.float32)
    x[0, 5] = bad
    experts = RoutedExperts(layout, arena.addresses, isa=isa, activation=activation)
    y = experts.forward(x, np.zeros((2, 1), np.uint16), np.ones((2, 1), np.float32))
    assert not np.isfinite(y[0]).any()
    assert np.isfinite(y[1]).all()


def test_wrong_input_names_what_was_expected():
    layout = ExpertLayout(64, 32, "int4_g32")
    arena = random_arena(layout, 2, seed=1)
    experts = RoutedExperts(layout, arena.addresses)
    x, gates = np.ones((1, 64), np.float32), np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match=r"expert_ids of token 0: expected 0..1 or 65535 .* got \[2\]"):
        experts.forward(x, np.array([[2]]), gates)
    experts.forward(x, np.array([[1]]), gates)
    with pytest.raises(ValueError, match=r"expected x \[T, 64\]"):
        experts.forward(x[:, :60], np.array([[1]]), gates)
    with pytest.raises(ValueError, match="expected integers"):
        experts.forward(x, np.array([[1.0]]), gates)
    with pytest.raises(ValueError, match="expected one of int8, bf16; got 'f32'"):
        RoutedExperts(layout, arena.addresses, activation="f32")
    with pytest.raises(ValueError, match="multiples of 64"):
        RoutedExperts(layout, arena.addresses + 1)
