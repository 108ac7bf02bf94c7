"""row_split: every expert is cut over all nodes by output rows: K / N in bytes without extra memory.  Floor 3.

What KTransformers, lk_moe and ik_llama.cpp's ``--numa tensors`` do (they cut down_proj's reduction axis and add up;
our pieces are output rows, so that no sum changes). In bytes no placement of whole experts beats it. What it costs
beyond bytes, shorter rows and barriers between more workers, is ``cut_price``: measured on the machine, or left at
"not measured", and then the prediction says so.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.step_maximum import CUT


def row_split(trace: Trace, *, score: bool = True, **options: Any) -> Plan:
    """Plan of pieces in proportion to the nodes' rates, in units of 32 rows; ``options``: those of ``node_problem``.

    Raises ``ValueError`` where the intermediate size is not known or has fewer units than there are nodes.
    """
    problem = node_problem(trace, **options)
    begin = time.perf_counter()
    masks = np.full(problem.shape, CUT)
    problem = replace(problem, budget=problem.used(masks))  # uneven where units do not divide
    return node_plan(problem, masks, "row_split", seconds=time.perf_counter() - begin, score=score)
