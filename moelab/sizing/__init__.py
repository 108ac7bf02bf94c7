"""Floor 2. What a model needs, how fast a machine runs it, and what that costs, from sizes alone; no torch.

recipes     whole-model formats: Q4_K_M, UD-Q2_K_XL, native int4
places      what must sit in fast memory, in RAM, or may stream from disk; does it fit
reads       what one step reads; unions of a batch
speed       the fitted time of a token, its interval and leave-one-out errors; other losses beside it (losses)
computing   GFLOP/s of a core from published prefill rates
decode      one step of one or many streams
prefill     the rate of a prompt on the CPU, and ceilings
size        all of it for one model on one machine
"""

from __future__ import annotations

from moelab.sizing.article_claims import ARTICLE_CLAIMS, price_claims
from moelab.sizing.claims import Claim, judge, judge_all
from moelab.sizing.computing import compute_fit
from moelab.sizing.cost import CostComparison
from moelab.sizing.losses import loss_table
from moelab.sizing.outside_points import BATCH_POINTS, CHECK_POINTS, OTHER_FAMILY_POINTS
from moelab.sizing.places import imbalance, need_of, place
from moelab.sizing.prices import MachineCost, TokenPrices, Traffic
from moelab.sizing.recipes import RECIPES, recipe, weight_bytes_of_recipe
from moelab.sizing.size import size
from moelab.sizing.sizing import Sizing
from moelab.sizing.speed import ablation, speed_fit
from moelab.sizing.validation_points import VALIDATION_POINTS

__all__ = [
    "ARTICLE_CLAIMS",
    "BATCH_POINTS",
    "CHECK_POINTS",
    "OTHER_FAMILY_POINTS",
    "RECIPES",
    "VALIDATION_POINTS",
    "Claim",
    "CostComparison",
    "MachineCost",
    "Sizing",
    "TokenPrices",
    "Traffic",
    "ablation",
    "compute_fit",
    "imbalance",
    "judge",
    "judge_all",
    "loss_table",
    "need_of",
    "place",
    "price_claims",
    "recipe",
    "size",
    "speed_fit",
    "weight_bytes_of_recipe",
]
