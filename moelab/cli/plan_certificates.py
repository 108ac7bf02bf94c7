"""``--certificate`` of ``moelab plan``: one layer's proof, or that of all layers with what they come to.

Knows how to ask and to print; what is proven and how stands in ``planner/certificate.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moelab.planner.certificate import Certificate

ALL = "all"
FLAGS = ("--certificate-steps", "--certificate-layer", "--certificate-gap")


def add_certificates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--certificate", type=float, metavar="SECONDS",
        help="prove a layer's gap on a sample of steps, at most so long (of CPU on two nodes)",
    )  # fmt: skip
    parser.add_argument(
        "--certificate-steps", type=int, metavar="S", help="steps of that sample, at most 256 (default: 128)"
    )
    parser.add_argument(
        "--certificate-layer", metavar="L", help=f"its layer (default: the one in the middle), or {ALL}: one by one"
    )
    parser.add_argument(
        "--certificate-gap", type=float, metavar="F", help="on two nodes: end where this gap is proven (0.02)"
    )


def check_certificates(options: argparse.Namespace, num_layers: int | None = None) -> None:
    """Raises ``ValueError`` for flags without ``--certificate`` and for a layer that is none."""
    if not options.certificate and any(getattr(options, flag[2:].replace("-", "_")) is not None for flag in FLAGS):
        raise ValueError(f"{', '.join(FLAGS)} say of what and how far --certificate SECONDS is: give that")
    layer = options.certificate_layer
    if layer is None or layer == ALL:
        return
    if not layer.isdecimal() or (num_layers is not None and int(layer) >= num_layers):
        below = f"0 to {num_layers - 1}" if num_layers else "a layer's number"
        raise ValueError(f"--certificate-layer is {layer}, expected {below}, or {ALL}")


def certificates_of(
    trace: Any, plan: Any, shared: dict[str, Any], options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the plan keeps, what is printed): ``certificate`` of one layer; ``certificates`` of all, and their sums."""
    from tqdm import tqdm

    from moelab.planner.certificate import certificate
    from moelab.planner.node_plan import masks_of_plan
    from moelab.planner.node_problem import node_problem

    problem, masks = node_problem(trace, **shared), masks_of_plan(plan)
    asked = options.certificate_layer
    middle = trace.header.num_layers // 2
    layers = range(trace.header.num_layers) if asked == ALL else [middle if asked is None else int(asked)]
    proofs = [
        certificate(
            problem, masks, layer=layer, num_steps=options.certificate_steps or 128, time_limit_s=options.certificate,
            end_at=options.certificate_gap or 0.0,
        )
        for layer in tqdm(layers, desc="certificates", unit="layer", disable=options.json or len(layers) == 1)
    ]  # fmt: skip
    if asked != ALL:
        of = f"layer {proofs[0].layer} on {proofs[0].num_steps} planning steps: this plan, and an annealing of these"
        one = {"of": f"{of} steps alone", **asdict(proofs[0])}
        return {"certificate": one}, one
    sums = summary_of(proofs)
    return {"certificates": [asdict(each) for each in proofs], "certificates_summary": sums}, sums


def summary_of(proofs: Sequence[Certificate]) -> dict[str, Any]:
    """Of the certificates of all layers."""
    from moelab.findings.placement_page import TARGET_GAP

    worst = max(proofs, key=lambda each: each.gap)
    return {
        "certificates": len(proofs),
        f"within_{TARGET_GAP:.0%}": sum(each.gap <= TARGET_GAP for each in proofs),
        "optimum_proven": sum(each.is_optimal for each in proofs),
        "annealed_at_the_optimum": sum(each.gap < 1e-9 for each in proofs),
        "largest_gap": worst.gap,
        "its_layer": worst.layer,
        "certificates_s": sum(each.milp_s for each in proofs),
        "annealings_s": sum(each.anneal_s for each in proofs),
    }


def print_certificates(proofs: Sequence[dict[str, Any]]) -> None:
    """A row for each layer."""
    from moelab.findings.markdown import markdown_table
    from moelab.findings.placement_page import within_target

    head = ("layer", "steps", "dual bound", "annealed alone", "its gap", "plan", "its gap", "better found", "proven",
            "within 2%", "s")  # fmt: skip
    rows = [
        (
            f"{each['layer']}", f"{each['num_steps']}", f"{each['bound']:.3f}", f"{each['annealed']:.3f}",
            f"{each['gap']:.2%}", f"{each['plan']:.3f}", f"{each['plan_gap']:.2%}",
            "none" if each["milp"] is None else f"{each['milp']:.3f}", "optimum" if each["is_optimal"] else "bound",
            within_target(each["gap"], each["is_optimal"]), f"{each['anneal_s'] + each['milp_s']:.1f}",
        )
        for each in proofs
    ]  # fmt: skip
    print(markdown_table(head, rows))
