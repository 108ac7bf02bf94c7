"""The AMX kernels, executed: same bits as NumPy and the other ISAs, and exactly as many instructions as must be."""

from __future__ import annotations

import ctypes
import os

import numpy as np
import pytest

from moelab.kernels import NO_EXPERT, ExpertArena, ExpertLayout, PackedLinear, Pool, RoutedExperts, linear, routed
from moelab.kernels.layout import float32_to_bf16
from moelab.kernels.quantise import quantise_int4, quantise_int8
from tests.kernels.amx import twin
from tests.kernels.amx.library import BESIDE_AMX
from tests.kernels.random_experts import random_step

INTEGER = [("int4_g32", "int8"), ("int8_g32", "int8")]
FLOATING = [("int4_g32", "bf16"), ("int8_g32", "bf16"), ("bf16", "bf16")]
MIN_TOKENS = 5  # MOELAB_AMX_MIN_TOKENS


def tiles(size: int, tile: int) -> int:
    return -(-size // tile)


def expected_counts(layout: ExpertLayout, tokens_of_expert, activation: str, num_workers: int = 1) -> dict[str, int]:
    """Instructions of one layer-step but for loads: a tile operation is 16 rows x 16 tokens x 32 columns."""
    hidden, intermediate = layout.hidden_size, layout.intermediate_size
    rows_of = (2 * tiles(intermediate, 16), tiles(hidden, 16))
    groups_of = (2 * tiles(hidden, 64), 2 * tiles(intermediate, 64))
    blocks = sum(tiles(tokens, 16) for tokens in tokens_of_expert)
    dots = blocks * sum(rows * groups for rows, groups in zip(rows_of, groups_of, strict=True))
    stored = dots if activation == "int8" else blocks * sum(rows_of)
    dot = "TDPBSUD" if activation == "int8" else "TDPBF16PS"
    return {
        "LDTILECFG": num_workers, "TILERELEASE": num_workers, dot: dots, "TILEZERO": stored, "TILESTORED": stored,
    }  # fmt: skip


def expected_loads(layout: ExpertLayout, tokens_of_expert) -> int:
    """On one worker: weights once for 32 tokens, activations once for the rows that share them."""

    def of_rows(num_rows: int, groups: int, tokens: int) -> int:
        blocks = tiles(tokens, 16)
        runs = tiles(num_rows, 2) if blocks == 2 else 1  # 2 x 2 tiles of sums, or 4 x 1
        return groups * (num_rows + runs * blocks)

    loads = 0
    gate_up_groups, down_groups = 2 * tiles(layout.hidden_size, 64), 2 * tiles(layout.intermediate_size, 64)
    for tokens in tokens_of_expert:
        for rest in range(tokens, 0, -32):
            block = min(rest, 32)
            num_units, num_tile_rows = tiles(layout.intermediate_size, 32), tiles(layout.intermediate_size, 16)
            pairs = [(j, num_units // 2 + j) for j in range(num_units // 2)]
            units = [*pairs, *([(num_units - 1,)] if num_units % 2 else [])]
            for unit in units:  # two groups of 32 rows together, but for one that is short
                short = [u for u in unit if 2 * u + 2 > num_tile_rows]
                for together in [unit] if not short else [tuple(u for u in unit if u not in short), tuple(short)]:
                    for n in range(2):
                        rows = sum(2 * u + n < num_tile_rows for u in together)
                        loads += of_rows(2 * rows, gate_up_groups, block) if rows else 0
            down = tiles(layout.hidden_size, 16)
            loads += (down // 4) * of_rows(4, down_groups, block) + (down % 4) * of_rows(1, down_groups, block)
    return loads


def assert_counts(emulator, executed: dict[str, int], expected: dict[str, int]) -> None:
    """On a CPU with AMX nothing is counted."""
    if emulator.active:
        assert executed == expected


def tokens_of(ids: np.ndarray) -> list[int]:
    return np.unique(ids[ids != NO_EXPERT], return_counts=True)[1].tolist()


@pytest.mark.parametrize(("weight_format", "activation"), INTEGER + FLOATING)
def test_every_number_of_tokens_has_the_bits_and_instructions_that_it_must(amx, weight_format, activation):
    """M 1..33, one expert of them without tokens, rows and columns that do not fill tiles."""
    shapes = [(100, 70), (33, 17), (64, 32), (160, 112), (1, 1), (200, 40)]
    for num_tokens in range(1, 34):
        layout = ExpertLayout(*shapes[num_tokens % len(shapes)], weight_format)
        rng = np.random.default_rng(num_tokens)
        arena, experts = twin.random_experts(rng, layout, 3)
        x = rng.standard_normal((num_tokens, layout.hidden_size)).astype(np.float32)
        # Expert 0 has every token, expert 1 some, expert 2 none.
        ids = np.stack([np.zeros(num_tokens), np.where(rng.random(num_tokens) < 0.3, 1, NO_EXPERT)], axis=1).astype(int)
        gates = rng.random(ids.shape).astype(np.float32)
        layer = RoutedExperts(layout, arena.addresses, "amx", activation, owner=arena)
        assert layer.isa.why == "forced by argument"
        with amx.counted() as executed:
            y = layer.forward(x, ids, gates)
        expected = expected_counts(layout, tokens_of(ids), activation)
        assert_counts(amx, executed, {**expected, "TILELOADD": expected_loads(layout, tokens_of(ids))})
        np.testing.assert_array_equal(y, twin.forward(x, ids, gates, experts, activation), err_msg=str(num_tokens))
        for isa in ("generic", BESIDE_AMX) if activation == "int8" else ():
            other = RoutedExperts(layout, arena.addresses, isa, activation, owner=arena).forward(x, ids, gates)
            np.testing.assert_array_equal(y, other, err_msg=f"{isa}, {num_tokens} tokens")


@pytest.mark.parametrize(("weight_format", "activation"), INTEGER + FLOATING)
@pytest.mark.parametrize("num_nodes", [None, 2])
def test_workers_and_nodes_change_nothing(amx, weight_format, activation, num_nodes, monkeypatch):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    monkeypatch.setattr(routed, "ALONE_BYTES", {"numba": 0, "native": 0})
    layout = ExpertLayout(160, 112, weight_format)
    rng = np.random.default_rng(1)
    arena, _ = twin.random_experts(rng, layout, 6)
    x, ids, gates = random_step(rng, 20, 3, 6, 160)
    alone = RoutedExperts(layout, arena.addresses, "amx", activation).forward(x, ids, gates)
    nodes = None if num_nodes is None else np.array([1, 0, 1, 1, 0, 1])
    with Pool(2, virtual_nodes=num_nodes) as pool:
        layer = RoutedExperts(layout, arena.addresses, "amx", activation, pool, arena, nodes)
        for _ in range(3):
            with amx.counted() as executed:
                y = layer.forward(x, ids, gates)
            executed.pop("TILELOADD", None)  # the chunks that workers draw decide which rows share activations
            assert_counts(amx, executed, expected_counts(layout, tokens_of(ids), activation, num_workers=2))
            np.testing.assert_array_equal(y, alone)


@pytest.mark.parametrize("activation", [1.0, -1.0])
@pytest.mark.parametrize(
    ("weight_format", "q"), [("int4_g32", -8), ("int4_g32", 7), ("int8_g32", -128), ("int8_g32", 127)]
)
def test_extremes(amx, weight_format, q, activation):
    """The sign trick that other AMX kernels use is wrong for q = -8 in the high nibble times a negative activation."""
    layout = ExpertLayout(128, 64, weight_format)
    one = np.uint16(0x3F80)
    matrices = [twin.Matrix(np.full((r, c), q), np.full((r, c // 32), one)) for r, c in layout.shapes]
    with ExpertArena(layout, 1) as arena:
        layout.pack_expert(arena[0], *(matrix.source(weight_format) for matrix in matrices))
        x = np.full((17, 128), activation * 127 * 2.0**-18, np.float32)
        x[3] *= -1
        step = x, np.zeros((17, 1), np.uint16), np.ones((17, 1), np.float32)
        y = RoutedExperts(layout, arena.addresses, "amx", "int8").forward(*step)
        np.testing.assert_array_equal(y, twin.forward(*step, [matrices], "int8"))
        assert np.isfinite(y).all()
        assert (y != 0).all()


@pytest.mark.parametrize(("weight_format", "activation"), INTEGER + FLOATING)
def test_linear(amx, weight_format, activation, monkeypatch):
    monkeypatch.setattr(linear, "ALONE_BYTES", {"native": 0})
    rng = np.random.default_rng(3)
    with Pool() as pool:
        for rows, columns, num_tokens in ((1, 1, 1), (70, 33, 3), (33, 500, 33), (16, 64, 2), (48, 96, 17)):
            weights = rng.standard_normal((rows, columns)).astype(np.float32)
            x = rng.standard_normal((num_tokens, columns)).astype(np.float32)
            packed = PackedLinear(weights, weight_format, "amx", activation, pool)
            quantise = {"int4_g32": quantise_int4, "int8_g32": quantise_int8, "bf16": float32_to_bf16}[weight_format]
            source = quantise(weights)
            if weight_format == "int4_g32":
                words, shifts = source[0].view(np.uint32), 4 * np.arange(8, dtype=np.uint32)
                numbers = ((words[:, :, None] >> shifts & 15).astype(int) - 8).reshape(rows, -1)[:, :columns]
                matrix = twin.Matrix(numbers, source[1])
            else:
                matrix = twin.Matrix(*source) if weight_format == "int8_g32" else twin.Matrix(source, None)
            with amx.counted() as executed:
                y = packed.forward(x)
            np.testing.assert_array_equal(y, getattr(twin, f"dot_{activation}")(x, matrix))
            blocks = tiles(num_tokens, 16) * tiles(rows, 16) * 2 * tiles(columns, 64)
            if amx.active:
                assert executed["TDPBSUD" if activation == "int8" else "TDPBF16PS"] == blocks


@pytest.mark.parametrize("weight_format", ["int4_g32", "int8_g32"])
def test_what_amx_would_round_goes_to_the_isa_beside_it(amx, weight_format):
    """Quantised weights x bf16, however many tokens: exact weights, and a token's result is its own."""
    layout = ExpertLayout(96, 80, weight_format)
    rng = np.random.default_rng(5)
    arena, _ = twin.random_experts(rng, layout, 2)
    x = rng.standard_normal((40, 96)).astype(np.float32)
    step = x, np.repeat([0, 1], [7, 33])[:, None], np.ones((40, 1), np.float32)
    with amx.counted() as executed:
        y = RoutedExperts(layout, arena.addresses, "amx+avx512", "bf16").forward(*step)
    assert not any(name.startswith("TDP") for name in executed)
    np.testing.assert_array_equal(y, RoutedExperts(layout, arena.addresses, BESIDE_AMX, "bf16").forward(*step))


@pytest.mark.parametrize(("weight_format", "activation"), [*INTEGER, ("bf16", "bf16")])
def test_experts_of_few_tokens_go_to_the_isa_beside_amx(amx, weight_format, activation):
    layout = ExpertLayout(96, 80, weight_format)
    rng = np.random.default_rng(2)
    arena, _ = twin.random_experts(rng, layout, 4)
    num_of_expert = [MIN_TOKENS - 1, MIN_TOKENS, 1, 20]
    ids = np.repeat(np.arange(4), num_of_expert)[:, None]
    x = rng.standard_normal((len(ids), 96)).astype(np.float32)
    gates = np.ones(ids.shape, np.float32)
    with amx.counted() as executed:
        y = RoutedExperts(layout, arena.addresses, "amx+avx512", activation).forward(x, ids, gates)
    executed.pop("TILELOADD", None)
    assert_counts(amx, executed, expected_counts(layout, [n for n in num_of_expert if n >= MIN_TOKENS], activation))
    beside = RoutedExperts(layout, arena.addresses, BESIDE_AMX, activation).forward(x, ids, gates)
    forced = RoutedExperts(layout, arena.addresses, "amx", activation).forward(x, ids, gates)
    many = np.isin(ids[:, 0], [1, 3])
    np.testing.assert_array_equal(y[many], forced[many])
    np.testing.assert_array_equal(y[~many], beside[~many])
    with amx.counted() as executed:  # forced: tiles for one token too
        RoutedExperts(layout, arena.addresses, "amx", activation).forward(x[:1], ids[:1], gates[:1])
    executed.pop("TILELOADD", None)
    assert_counts(amx, executed, expected_counts(layout, [1], activation))


def test_float32_has_no_tiles(amx):
    layout = ExpertLayout(64, 32, "float32")
    with ExpertArena(layout, 1) as arena:
        arena[0][:] = 0
        with pytest.raises(ValueError, match="isa amx has no kernel for float32 x f32: choose amx\\+avx512 or avx512"):
            RoutedExperts(layout, arena.addresses, "amx")
        step = np.ones((9, 64), np.float32), np.zeros((9, 1), int), np.ones((9, 1), np.float32)
        with amx.counted() as executed:
            RoutedExperts(layout, arena.addresses, "amx+avx512").forward(*step)
        assert executed == {}


class Shape(ctypes.Structure):
    """The operand of LDTILECFG."""

    _fields_ = (
        ("palette", ctypes.c_uint8), ("start_row", ctypes.c_uint8), ("reserved", ctypes.c_uint8 * 14),
        ("row_bytes", ctypes.c_uint16 * 16), ("rows", ctypes.c_uint8 * 16),
    )  # fmt: skip


@pytest.mark.parametrize("activation", ["int8", "bf16"])
def test_palette_of_another_library_is_survived_and_ours_released(amx, activation):
    layout = ExpertLayout(64, 48, "int4_g32")
    rng = np.random.default_rng(5)
    arena, experts = twin.random_experts(rng, layout, 2)
    step = random_step(rng, 7, 2, 2, 64)
    foreign = Shape(palette=1)
    foreign.rows[0], foreign.row_bytes[0] = 3, 20  # one small tile: all of ours would be missing
    amx.library.configure(ctypes.byref(foreign))
    y = RoutedExperts(layout, arena.addresses, "amx", activation).forward(*step)
    np.testing.assert_array_equal(y, twin.forward(*step, experts, activation))
    now = Shape(palette=9)
    amx.library.read_configuration(ctypes.byref(now))
    assert bytes(now) == bytes(64), "tiles are still configured after the step"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("weight_format", "activation"), INTEGER + FLOATING)
def test_nan_reaches_the_output_of_its_token_only(amx, weight_format, activation, bad):
    layout = ExpertLayout(64, 32, weight_format)
    arena, _ = twin.random_experts(np.random.default_rng(1), layout, 1)
    x = np.ones((6, 64), np.float32)
    x[2, 5] = bad
    layer = RoutedExperts(layout, arena.addresses, "amx", activation)
    y = layer.forward(x, np.zeros((6, 1), np.uint16), np.ones((6, 1), np.float32))
    assert not np.isfinite(y[2]).any()
    assert np.isfinite(np.delete(y, 2, axis=0)).all()
