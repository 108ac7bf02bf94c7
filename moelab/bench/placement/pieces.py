"""Whole experts, cut ones and a mixture, per expert shape and number of nodes: which is faster?  Floor 6.

One layer-step at one token of K experts, or of one fewer, which a fast tier serves: whole experts dealt as evenly as
they go, which copies everywhere (``mirror``) or a good balance reach, ceil(K / N) on the fullest node; every expert cut
over the nodes (``row_split``); and as many whole ones as the nodes divide, the rest cut (``split_some``). Two nodes run
at once on their cores. More nodes than cores are ``composed``: the work of the fullest runs alone on one core, pieces
of all nodes together, of which it counts the largest; nodes share no memory then, and wait for nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moelab.analysis.bootstrap import basic_interval, resamples
from moelab.calibration.calibrate import shape_of
from moelab.calibration.rounds import in_rounds
from moelab.calibration.shelf import Shelf, pieces_on
from moelab.domain.allowed_cores import allowed_cores
from moelab.domain.free_memory import free_memory_bytes
from moelab.domain.plan_copies import Copies, whole_on
from moelab.kernels import ExpertLayout, Pool, RoutedExperts, choose_isa
from moelab.kernels.pieces import num_units

SHAPES = ("256x128", "deepseek-v2-lite", "gpt-oss-20b", "kimi-k2.6")
NODES = (2, 3, 4, 8)
TOP_K = 8
FORMS = ("whole", "cut", "mixture")
_SHELF_BYTES = 400_000_000
_FEWEST_EXPERTS = 16
_NUM_SAMPLES = 400


def pieces(
    *, shapes: tuple[str, ...] = SHAPES, seconds: float = 40.0, isa: str | None = None, seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows by shape, nodes and experts: microseconds of a layer-step in each form, ratios to whole experts with their
    intervals (95%, rounds drawn again), and which forms no other is surely faster than."""
    chosen = choose_isa(isa).isa
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        layout = ExpertLayout(*shape_of(shape), "int4_g32")
        node_counts = [count for count in NODES if count <= num_units(layout)]
        times = _measured(layout, node_counts, chosen, seconds / len(shapes), seed)
        for count in node_counts:
            for num in (TOP_K, TOP_K - 1):
                rows.append(_row(shape, layout, chosen, count, num, times))
        tell(f"{shape}: whole and cut on {', '.join(map(str, node_counts))} nodes")
    return rows


def remainder(num: int, nodes: int) -> tuple[int, int]:
    """(whole experts on each node, experts that are cut) of the mixture."""
    return divmod(num, nodes)


def _measured(
    layout: ExpertLayout, node_counts: list[int], isa: str, seconds: float, seed: int
) -> dict[str, np.ndarray]:
    """Seconds [R] by what runs: ``whole n`` and ``cut N n`` on one core; ``two whole n``, ``two cut n`` and
    ``two mixture n`` on two, where there are two."""
    units, rng = num_units(layout), np.random.default_rng(seed)
    memory = min(_SHELF_BYTES, free_memory_bytes() // (3 * (3 + len(node_counts))))
    num_experts = int(max(_FEWEST_EXPERTS, min(48, memory // layout.expert_bytes))) // 2 * 2
    x = rng.standard_normal((1, layout.hidden_size)).astype(np.float32)
    cores = min(2, len(allowed_cores()))
    whole_ids, half = np.arange(num_experts), num_experts // 2
    with Pool(1) as one, Pool(cores, virtual_nodes=cores) as two:
        shelf_of_one, shelf_of_two = Shelf(layout, num_experts, one), Shelf(layout, num_experts, two)

        def layer(shelf: Shelf, copies: Copies) -> RoutedExperts:
            placed = shelf.placement(copies)
            return RoutedExperts(layout, placed.addresses, isa, None, shelf.pool, owner=placed, placement=placed)

        def once(of: RoutedExperts, draw: Callable[[], np.ndarray]) -> Callable[[], float]:
            def run() -> float:
                for ids in (draw(), draw()):  # the first call wakes cores that rested; the second one counts
                    before = of.seconds
                    of.forward(x, ids[None], np.full((1, len(ids)), 1 / len(ids), np.float32))
                return of.seconds - before

            return run

        def any_of(num: int) -> Callable[[], np.ndarray]:
            return lambda: rng.permutation(num_experts)[:num]

        def even(num: int, below: int = num_experts) -> np.ndarray:
            """Of experts below a bound that lie on two nodes by turns, as many of each, or one more of either."""
            more = int(rng.integers(2))
            number = [num // 2 + (num % 2 if node == more else 0) for node in range(2)]
            return np.concatenate([2 * rng.permutation(below // 2)[: number[node]] + node for node in range(2)])

        whole = layer(shelf_of_one, whole_on(0 * whole_ids, units))
        cases = {f"whole {num}": once(whole, any_of(num)) for num in range(1, TOP_K + 1)}
        for count in node_counts:
            if count == 2 and cores == 2:
                continue
            cut = layer(shelf_of_one, pieces_on(num_experts, units, [0] * count))
            numbers = {TOP_K, TOP_K - 1, remainder(TOP_K, count)[1], remainder(TOP_K - 1, count)[1]} - {0}
            cases |= {f"cut {count} {num}": once(cut, any_of(num)) for num in sorted(numbers)}
        if cores == 2 and 2 in node_counts:
            dealt, halved = whole_on(whole_ids % 2, units), pieces_on(num_experts, units, [0, 1])
            of_whole, of_cut = layer(shelf_of_two, dealt), layer(shelf_of_two, halved)
            mixed = layer(shelf_of_two, _both(dealt, halved, half))
            for num in (TOP_K, TOP_K - 1):
                cases[f"two whole {num}"] = once(of_whole, lambda num=num: even(num))  # type: ignore[misc]
                cases[f"two cut {num}"] = once(of_cut, any_of(num))
            cases[f"two mixture {TOP_K - 1}"] = once(
                mixed, lambda: np.append(even(TOP_K - 2, half // 2 * 2), rng.integers(half, num_experts))
            )
        return in_rounds(cases, seconds=seconds, most_rounds=2000, seed=seed)


def _both(first: Copies, second: Copies, num_first: int) -> Copies:
    """Copies of experts below ``num_first`` from ``first``, the others' from ``second``."""
    of_first, of_second = first[0] < num_first, second[0] >= num_first
    return tuple(np.concatenate([a[of_first], b[of_second]]) for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


def _seconds(layout: ExpertLayout, nodes: int, num: int, times: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Seconds [R] of the layer-step in each form."""
    if f"two whole {num}" in times and nodes == 2:
        return {
            form: times[f"two {form} {num}"] for form in ("whole", "cut", "mixture") if f"two {form} {num}" in times
        }
    units = num_units(layout)
    largest = float(np.diff(np.rint(np.linspace(0, units, nodes + 1))).max() / units)
    # What a layer-step takes without experts: twice one expert less the time of two.
    fixed = max(0.0, float(np.median(2 * times["whole 1"]) - np.median(times["whole 2"])))

    def cut(number: int) -> np.ndarray:
        return (times[f"cut {nodes} {number}"] - fixed) * largest

    each, rest = remainder(num, nodes)
    forms = {"whole": times[f"whole {-(-num // nodes)}"], "cut": fixed + cut(num)}
    return forms | ({"mixture": times[f"whole {each}"] + cut(rest)} if each and rest else {})


def _row(
    shape: str, layout: ExpertLayout, isa: str, nodes: int, num: int, times: dict[str, np.ndarray]
) -> dict[str, Any]:
    seconds = _seconds(layout, nodes, num, times)
    each, rest = remainder(num, nodes)
    bytes_of = {"whole": -(-num // nodes), "cut": num / nodes, "mixture": each + rest / nodes}
    to_whole = {form: ratio(of, seconds["whole"]) for form, of in seconds.items()}
    beaten = [form for form, of in seconds.items() if any(ratio(b, of)[2] < 1 for b in seconds.values())]
    return {
        "shape": shape, "hidden_size": layout.hidden_size, "intermediate_size": layout.intermediate_size,
        "expert_bytes": layout.expert_bytes, "nodes": nodes, "experts": num, "kernel": isa,
        "composed": not (nodes == 2 and f"two whole {num}" in times),
        "us": {form: 1e6 * float(np.median(of)) for form, of in seconds.items()},
        "over_whole": {form: to_whole[form][0] for form in seconds},
        "over_whole_interval": {form: to_whole[form][1:] for form in seconds},
        "bytes_over_whole": {form: bytes_of[form] / bytes_of["whole"] for form in seconds},
        "wins": " or ".join(form for form in seconds if form not in beaten),
    }  # fmt: skip


def ratio(seconds: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """(median over rounds of ``seconds`` [R] over ``other`` [R], its interval of 95% by rounds drawn again)."""
    of_round = seconds / other
    order = np.argsort(of_round)
    # Median of each draw: where half of its rounds are drawn, in order, between the last of them and the next.
    drawn = np.cumsum(resamples(len(of_round), _NUM_SAMPLES, 0)[:, order], axis=1)
    middle = (drawn >= len(of_round) / 2).argmax(axis=1), (drawn > len(of_round) / 2).argmax(axis=1)
    medians = (of_round[order][middle[0]] + of_round[order][middle[1]]) / 2
    low, high = basic_interval(np.median(of_round), medians)
    return float(np.median(of_round)), float(low), float(high)
