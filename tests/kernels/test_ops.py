"""A list of operations refuses what it cannot run: sizes of structs, kinds, shapes, NaN; the first failure ends it."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from moelab.kernels import ExpertLayout, Pool, RoutedExperts, native
from moelab.kernels.linear import PackedLinear
from moelab.kernels.native import sized
from moelab.kernels.ops import Add, Attention, Gather, Norm, Op, Ops, Route, attend_address
from tests.kernels.random_experts import random_arena

pytestmark = pytest.mark.skipif(native.library()[0] is None, reason="native kernels are not built")
ONES = np.ones((2, 8), np.float32)


def attention_of(**changes) -> tuple[Attention, list[np.ndarray]]:
    """Two tokens of one head, all buffers there."""
    kept = [np.zeros(4096, np.float32) for _ in range(10)]
    rows, positions = np.array([0, 1], np.int64), np.array([3, 300], np.int64)
    names = ("a", "kv_norm", "cos", "sin", "q", "query_nope", "query_rope", "query", "partial", "mixed")
    cache = np.zeros((2, 400, 6), np.float32)
    fields = {name: array.ctypes.data for name, array in zip(names, kept, strict=True)} | {
        "num_tokens": 2, "num_heads": 1, "kv_rank": 4, "nope_dim": 2, "rope_dim": 2, "a_stride": 6, "eps": 1e-6,
        "softmax_scale": 1.0, "cache": cache.ctypes.data, "row_numbers": 2400, "row_of_token": rows.ctypes.data,
        "position_of_token": positions.ctypes.data, "q_stride": 4, "query_stride": 4, "max_chunks": 2,
        "mixed_stride": 4, "attend": attend_address("generic", False),
    }  # fmt: skip
    return sized(Attention, **(fields | changes)), [*kept, rows, positions, cache]


def route_of(ops: Ops, logits: np.ndarray, n_group: int = 1, top_k: int = 2, topk_group: int = 1) -> np.ndarray:
    ids, gates = np.zeros((len(logits), top_k), np.int32), np.zeros((len(logits), top_k), np.float32)
    ops.route(logits, np.zeros(logits.shape[1], np.float32), ids, gates, n_group, topk_group, True, 1.0)
    return ids


def test_attention_that_fits_runs():
    """The refusals below differ from this one in a single field."""
    attention, kept = attention_of()
    ops = Ops(2, "generic")
    for part in ("latent", "query", "attend", "merge"):
        ops.attention(attention, kept, part=part)
    ops.run(None)


@pytest.mark.parametrize(
    ("part", "changes", "status"),
    [
        ("latent", {"rope_dim": 1026}, "bad shape"),
        ("query", {"rope_dim": 1026}, "bad shape"),
        ("latent", {"rope_dim": 3}, "bad shape"),
        ("attend", {"max_chunks": 1}, "bad shape"),  # position 300 has two
        ("merge", {"max_chunks": 1}, "bad shape"),
        ("attend", {"kv_rank": 2047}, "bad shape"),  # 2,049 numbers with the rotated ones
        ("attend", {"attend": None}, "unsupported"),
    ],
)
def test_attention_that_does_not_fit_is_refused(part, changes, status):
    attention, kept = attention_of(**changes)
    ops = Ops(2, "generic")
    ops.part = "layer 3"
    ops.attention(attention, kept, part=part)
    with pytest.raises(ValueError, match=rf"^layer 3 {part} \({part}\): expected status 0; got -\d \({status}"):
        ops.run(None)


# The last two: one group of four is kept, for five experts; groups of one expert have no second best.
@pytest.mark.parametrize(("n_group", "top_k"), [(513, 2), (0, 2), (3, 2), (1, 9), (1, 0), (2, 5), (8, 1)])
def test_route_that_does_not_fit_is_refused(n_group, top_k):
    ops = Ops(2, "generic")
    route_of(ops, np.zeros((2, 513 * 2 if n_group == 513 else 8), np.float32), n_group, top_k)
    with pytest.raises(ValueError, match=r"router \(route\): .* got -3 \(bad shape\)"):
        ops.run(None)


def test_unknown_kind_is_refused():
    library, failed = native.require_library(), ctypes.c_int64(-1)
    for kind in (-1, 10, 99):
        op = sized(Op, kind=kind)
        assert library.moelab_run_ops(None, ctypes.addressof(op), 1, failed) == -2
        assert failed.value == 0


@pytest.mark.parametrize("field", ["struct_bytes", "abi_version"])
def test_every_struct_has_its_size_and_version_asked(field):
    """Of each the library's own is accepted, one more refused, before anything else of it is read."""
    library = native.require_library()
    layout = ExpertLayout(64, 64, "float32")
    arena = random_arena(layout, 2, seed=0)
    ops = Ops(2, "generic")
    x = np.ones((2, 64), np.float32)
    normed = ops.norm("norm", x, x[0], 1e-6)
    ops.linear("linear", PackedLinear(np.ones((16, 64), np.float32), "float32", "generic"), normed)
    ids = route_of(ops, np.zeros((2, 2), np.float32))
    experts = RoutedExperts(layout, arena.addresses, "generic", owner=arena)
    ops.experts("experts", experts, x, ids, np.ones((2, 2), np.float32))
    for part in ("latent", "query", "attend", "merge"):
        attention, kept = attention_of()
        ops.attention(attention, kept, part=part)
    ops.gather("gather", normed, 2)
    ops.add(x.copy(), normed)
    ops.run(None)
    seen = set()
    for number, (kind, arguments, _) in enumerate(ops._ops):
        structs = [arguments, ops._array[number]]
        if isinstance(arguments, native.Forward):
            structs += [arguments.counters.contents, arguments.table.contents]
        for struct in structs:
            right = getattr(struct, field)
            setattr(struct, field, right + 1)
            with pytest.raises(ValueError, match=r"got -1 \(bad struct\)"):
                ops.run(None)
            setattr(struct, field, right)
            seen.add(type(struct))
        if isinstance(arguments, native.Forward):
            job = (ctypes.c_uint32 * 2).from_address(arguments.job)
            at = ("struct_bytes", "abi_version").index(field)
            job[at] += 1
            with pytest.raises(ValueError, match=r"got -1 \(bad struct\)"):
                ops.run(None)
            function = library.moelab_linear_forward if kind == 1 else library.moelab_moe_forward
            assert function(None, ctypes.addressof(arguments)) == -1
            job[at] -= 1
    assert seen >= {Norm, Attention, Gather, Route, Add, Op, native.Forward, native.Counters, native.KernelTable}
    ops.run(None)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_first_failure_ends_the_run_and_is_named(num_workers):
    """NaN in one row: what stood before has run, what comes after has not, and the list runs again."""
    logits = np.zeros((3, 8), np.float32)
    sums = [np.zeros((3, 8), np.float32) for _ in range(2)]
    ops = Ops(3, "generic")
    ops.add(sums[0], np.ones((3, 8), np.float32))
    ops.part = "layer 5"
    ids = route_of(ops, logits)
    ops.part = "layer 6"
    route_of(ops, np.full((3, 8), np.nan, np.float32))
    ops.add(sums[1], np.ones((3, 8), np.float32))
    logits[1, 6] = np.nan
    ids[:] = -7
    with Pool(num_workers) as pool:
        with pytest.raises(FloatingPointError, match=r"^layer 5 router: expected numbers as logits; got NaN for row 1"):
            ops.run(pool)
        assert (sums[0].max(), sums[1].max()) == (1, 0)
        assert (ids[1:] == -7).all(), "the row and those after it are not routed"
        logits[:] = 0
        with pytest.raises(FloatingPointError, match=r"^layer 6 router: .* for row 0"):
            ops.run(pool)
        assert ids.tolist() == [[0, 1]] * 3
        ops.run(pool, 0, 2)
        assert sums[0].max() == 3
        logits[2, 0] = -np.inf  # has a sigmoid
        ops.run(pool, 1, 2)
        assert ids[2].tolist() == [1, 2]
