"""``moelab export PLAN --format NAME --out FILE``: a placement as another engine reads it.

``eplb-table``: experts on nodes, for SGLang's ``--init-expert-location`` and other readers of EPLB's map.
``ktransformers``: the fast tier, as activation counts from which its strategy ``frequency`` chooses the same experts.
What is written is read back and compared with the plan before the command says that it is done.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.cli.output import print_json, print_rows

if TYPE_CHECKING:
    from moelab.domain.plan import Plan

FORMATS = ("eplb-table", "ktransformers")
HELP = "write a plan as another engine reads it: EPLB's table, or KTransformers' activation statistics"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="a plan file")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write")
    parser.add_argument("--out", required=True, metavar="FILE", help=".json for eplb-table, .pt for ktransformers")
    parser.add_argument(
        "--model", metavar="MODEL",
        help="a preset, a config.json or its folder: rows of all hidden layers, dense ones too, as SGLang and "
        "KTransformers (which needs it) count them; without it rows of the layers with experts",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    from moelab.domain.plan import Plan

    if not Path(options.out).resolve().parent.is_dir():
        raise ValueError(f"--out is {options.out}, but its folder does not exist: create it or choose another path")
    plan = Plan.load(options.plan)
    layers = _layers(plan, options.model)
    write = {"eplb-table": _eplb_table, "ktransformers": _ktransformers}[options.format]
    says = {"file": options.out, "format": options.format, **write(plan, options.out, layers)}
    if options.json:
        print_json(says)
    else:
        print_rows(f"{options.plan} written to {options.out}", says)


def _layers(plan: Plan, model: str | None) -> dict[str, Any]:
    """Where the plan's layers lie among all hidden ones; empty where no model was named."""
    if model is None:
        return {}
    from moelab.cli.size import read_model

    spec, _ = read_model(model)
    plan.check_matches(
        what="--model", model=spec.name, num_layers=spec.num_moe_layers, num_experts=spec.n_routed_experts,
        top_k=spec.num_experts_per_tok,
    )  # fmt: skip
    return {"model_layer_of_layer": spec.model_layer_of_layer, "num_hidden_layers": spec.num_hidden_layers}


def _eplb_table(plan: Plan, path: str, layers: dict[str, Any]) -> dict[str, Any]:
    from moelab.formats import eplb_table

    table = eplb_table.write(plan, path, **layers)
    num_nodes, num_experts = len(plan.tiers), plan.model.num_experts
    columns = plan.placements.arrays()
    planned = np.zeros((plan.model.num_layers, num_experts), np.int64)
    np.bitwise_or.at(planned, (columns["layer"], columns["expert"]), np.int64(1) << columns["tier"])
    got = eplb_table.read(
        path, num_nodes=num_nodes, num_experts=num_experts, model_layer_of_layer=layers.get("model_layer_of_layer")
    )
    _check(planned, got, path)
    return {
        "rows": f"{len(table)} " + ("hidden layers" if layers else "layers with experts"),
        "devices": num_nodes,
        "physical_experts": table.shape[1],
        "redundant_experts": table.shape[1] - num_experts,
        "slots_that_repeat_the_devices_own_copy": int(
            plan.model.num_layers * table.shape[1] - len(plan.placements)
        ),
    }  # fmt: skip


def _ktransformers(plan: Plan, path: str, layers: dict[str, Any]) -> dict[str, Any]:
    from moelab.formats import ktransformers_statistics

    if not layers:
        raise ValueError(
            "KTransformers' statistics have a row for every hidden layer, and a plan knows only those with experts: "
            "give --model (a preset or a config.json)"
        )
    number = ktransformers_statistics.write(plan, path, **layers)
    got = ktransformers_statistics.read_resident(
        path, per_layer=number, model_layer_of_layer=layers["model_layer_of_layer"]
    )
    _check(plan.resident(plan.fast_tiers[0].tier), got, path)
    return {
        "rows": f"{layers['num_hidden_layers']} hidden layers",
        "start_with": f"--init-expert-location {path} --kt-expert-placement-strategy frequency "
        f"--kt-num-gpu-experts {number}",
    }


def _check(planned: np.ndarray, got: np.ndarray, path: str) -> None:
    if not np.array_equal(planned, got):
        layer, expert = np.argwhere(planned != got)[0]
        raise RuntimeError(
            f"{path} read back has {got[layer, expert]} for layer {layer} expert {expert}, the plan "
            f"{planned[layer, expert]}: a bug of moelab, please report it"
        )
