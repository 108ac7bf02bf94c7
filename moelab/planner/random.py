"""random: experts drawn without looking live on fast0: the floor under every static placement.  Floor 3.

Reference: KTransformers ``--kt-expert-placement-strategy random``: the first of ``torch.randperm(L * E)`` with
seed 42, over all layers together, so layers get unequal numbers. torch may not be imported here: ``randperm``
draws the same permutation with NumPy's generator of the same family (tested against torch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moelab.domain.plan import FastTier, Plan
from moelab.domain.trace import Trace
from moelab.planner.placements import FAST_TIER
from moelab.planner.static_plan import split, static_plan, total_slots


def random(
    trace: Trace,
    *,
    slots_per_layer: int | Sequence[int] | None = None,
    slots: int | None = None,
    held_out: float = 0.25,
    seed: int = 0,
    placement_seed: int = 42,
    **options: Any,
) -> Plan:
    """Plan with ``slots`` experts drawn with ``placement_seed`` on ``fast0``.

    Exactly one of ``slots_per_layer`` (added up) and ``slots``. ``held_out`` and ``seed`` choose the requests that the
    prediction is scored on; ``options``: those of ``static_plan`` (``machine``, ``phase``, ``expert_bytes``, ...).
    """
    num_layers, num_experts = trace.header.num_layers, trace.header.num_experts
    total = total_slots(trace, slots_per_layer, slots)
    chosen = sorted(divmod(int(key), num_experts) for key in randperm(num_layers * num_experts, placement_seed)[:total])
    train, test, how = split(trace, held_out=held_out, seed=seed)
    planner = {"name": "random", "held_out": held_out, "seed": seed, "placement_seed": placement_seed, **how}
    return static_plan(trace, chosen, FastTier(tier=FAST_TIER, slots=total), planner, train=train, test=test, **options)


def randperm(num: int, seed: int) -> np.ndarray:
    """int64 [num]: what ``torch.manual_seed(seed); torch.randperm(num)`` gives on a CPU.

    torch seeds a 32-bit Mersenne twister (Matsumoto and Nishimura 1998) as NumPy's ``RandomState`` does, and
    swaps place i with place i + draw mod (num - i). Below 2**32 / 20 numbers; raises ``ValueError`` beyond
    (torch draws 64 bits there).
    """
    if not 0 <= num < 2**32 // 20:
        raise ValueError(f"num is {num}, expected 0..{2**32 // 20 - 1}")
    draws = np.random.RandomState(seed).randint(0, 2**32, max(0, num - 1), np.uint32).tolist()
    out = list(range(num))
    for i, draw in enumerate(draws):
        j = i + draw % (num - i)
        out[i], out[j] = out[j], out[i]
    return np.array(out, np.int64)
