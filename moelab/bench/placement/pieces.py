"""Whole experts beside cut ones, per expert shape and number of nodes: where does cutting pay?  Floor 6.

One layer-step of K experts at one token: every expert cut over the nodes (``row_split``), beside whole experts dealt as
evenly as they go, which copies everywhere (``mirror``) or a good balance reach: ceil(K / N) on the fullest node. Two
nodes run at once on their cores. More nodes than cores run one after the other on one core and are ``composed``: the
node with the largest pieces counts by its part of the units of all pieces; they share no memory then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moelab.calibration.calibrate import shape_of
from moelab.calibration.rounds import in_rounds
from moelab.calibration.shelf import Shelf, pieces_on
from moelab.domain.allowed_cores import allowed_cores
from moelab.domain.free_memory import free_memory_bytes
from moelab.domain.plan_copies import whole_on
from moelab.kernels import ExpertLayout, Pool, RoutedExperts, choose_isa
from moelab.kernels.pieces import num_units

SHAPES = ("256x128", "deepseek-v2-lite", "gpt-oss-20b", "kimi-k2.6")
NODES = (2, 3, 4, 8)
TOP_K = 8
_SHELF_BYTES = 400_000_000
_FEWEST_EXPERTS = 16


def pieces(
    *, shapes: tuple[str, ...] = SHAPES, seconds: float = 40.0, isa: str | None = None, seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows by shape and nodes: microseconds of a layer-step whole and cut, the ratio in each round, and who wins."""
    chosen = choose_isa(isa).isa
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        layout = ExpertLayout(*shape_of(shape), "int4_g32")
        rows += _of_shape(shape, layout, chosen, seconds / len(shapes), seed)
        tell(f"{shape}: cut and whole on {', '.join(str(row['nodes']) for row in rows if row['shape'] == shape)} nodes")
    return rows


def _of_shape(shape: str, layout: ExpertLayout, isa: str, seconds: float, seed: int) -> list[dict[str, Any]]:
    units = num_units(layout)
    node_counts = [count for count in NODES if count <= units]
    memory = min(_SHELF_BYTES, free_memory_bytes() // (3 * (1 + len(node_counts))))
    num_experts = int(max(_FEWEST_EXPERTS, min(48, memory // layout.expert_bytes)))
    cores = len(allowed_cores())
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, layout.hidden_size)).astype(np.float32)
    cases: dict[str, Callable[[], float]] = {}
    with Pool(1) as one, Pool(min(2, cores), virtual_nodes=min(2, cores)) as two:
        shelf_of = {"one": Shelf(layout, num_experts, one), "two": Shelf(layout, num_experts, two)}

        def layer(of: str, node_of_piece: list[int] | None, dealt: int = 1) -> RoutedExperts:
            copies = (
                whole_on(np.arange(num_experts) % dealt, units)
                if node_of_piece is None
                else pieces_on(num_experts, units, node_of_piece)
            )
            placed = shelf_of[of].placement(copies)
            return RoutedExperts(layout, placed.addresses, isa, None, shelf_of[of].pool, owner=placed, placement=placed)

        def once(of: RoutedExperts, num: int, even: bool = False) -> Callable[[], float]:
            def run() -> float:
                ids = rng.permutation(num_experts)[:num]
                if even:
                    ids = np.concatenate([2 * rng.permutation(num_experts // 2)[: num // 2] + n for n in range(2)])
                gates = np.full((1, len(ids)), 1 / len(ids), np.float32)
                before = of.seconds
                of.forward(x, ids[None], gates)
                return of.seconds - before

            return run

        whole = layer("one", None)
        for count in node_counts:
            if count == 2 and cores >= 2:
                cases["whole 2"] = once(layer("two", None, dealt=2), TOP_K, even=True)
                cases["cut 2"] = once(layer("two", [0, 1]), TOP_K)
            else:
                cases[f"whole {count}"] = once(whole, -(-TOP_K // count))
                cases[f"cut {count}"] = once(layer("one", [0] * count), TOP_K)
        cases["single"] = once(whole, 1)
        values = in_rounds(cases, seconds=seconds, most_rounds=2000, seed=seed)
    # What a layer-step takes without experts: twice one expert less the time of two.
    fixed = (
        max(0.0, float(np.median(2 * values["single"]) - np.median(values["whole 4"]))) if "whole 4" in values else 0.0
    )
    rows = []
    for count in node_counts:
        is_composed = not (count == 2 and cores >= 2)
        cut_s = values[f"cut {count}"]
        if is_composed:
            ends = np.rint(np.linspace(0, units, count + 1))
            largest = float(np.diff(ends).max() / units)
            cut_s = fixed + (cut_s - fixed) * largest
        ratio = cut_s / values[f"whole {count}"]
        low, middle, high = np.percentile(ratio, (25, 50, 75))
        rows.append(
            {
                "shape": shape, "hidden_size": layout.hidden_size, "intermediate_size": layout.intermediate_size,
                "expert_bytes": layout.expert_bytes, "nodes": count, "composed": is_composed, "kernel": isa,
                "whole_us": 1e6 * float(np.median(values[f"whole {count}"])), "cut_us": 1e6 * float(np.median(cut_s)),
                "cut_over_whole": float(middle), "cut_over_whole_range": (float(low), float(high)),
                "bytes_over_whole": TOP_K / count / -(-TOP_K // count),
                "wins": "whole" if low > 1 else "cut" if high < 1 else "tie",
            }
        )  # fmt: skip
    return rows
