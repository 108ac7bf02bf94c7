"""`moelab plan`: the fields of the issue for planners of nodes, slots as before, and what contradicts itself."""

import json

import numpy as np
import pytest

import moelab
from moelab.cli import main
from moelab.domain.plan import Plan
from moelab.store import TraceWriter
from tests.seeded_traces import seeded_trace

FIELDS = (
    "heldout_mean_max", "heldout_mean_max_interval", "ideal", "heldout_ratio_to_ideal", "train_mean_max",
    "train_mean_max_interval", "train_ratio_to_ideal", "bound",
    "gap", "bytes_per_node", "extra_memory_bytes", "seconds", "gain_over", "baseline_mean_max",
    "ties_with",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    trace = seeded_trace(1, num_requests=8, num_experts=12)
    path = tmp_path_factory.mktemp("traces") / "trace"
    with TraceWriter(path, trace.header) as writer:
        writer.append(trace.experts, trace.gate_weights, trace.tokens)
    return path


def test_nodes(folder, tmp_path, capsys):
    out = tmp_path / "plan.json"
    arguments = ["plan", str(folder), "--planner", "anneal", "--nodes", "2", "--extra-memory", "0.25", "--steps",
                 "token", "--machine", "2x-xeon-gen4-ddr5-4800", "--certificate", "20",
                 "--out", str(out), "--json"]  # fmt: skip
    assert main(arguments) == 0
    says = json.loads(capsys.readouterr().out)
    assert not set(FIELDS) - set(says)
    plan = Plan.load(out)
    assert says["heldout_mean_max"] == plan.prediction["heldout_mean_max"]
    assert says["planner"]["steps"] == "token"
    assert says["planner"]["rates"] == "preset of 2x-xeon-gen4-ddr5-4800"
    assert plan.planner["phase"] == "decode"
    assert says["certificate"]["gap"] <= 0.02
    assert says["extra_memory_bytes"] <= 0.25 * 36_000
    assert plan.tiers == ("node0", "node1")


def test_bytes_and_rates_of_unequal_nodes_and_a_batch(folder, tmp_path, capsys):
    """36 experts of 1000 bytes: node 0 may hold 30, reads twice as fast; requests four at a time."""
    out = tmp_path / "plan.json"
    arguments = ["plan", str(folder), "--planner", "best", "--node-bytes", "30kB", "10000", "--node-rates", "2", "1",
                 "--batch", "4", "--held-out", "0.5", "--out", str(out), "--json"]  # fmt: skip
    assert main(arguments) == 0
    says = json.loads(capsys.readouterr().out)
    planner = says["planner"]
    assert planner["node_bytes"] == [30_000, 10_000]
    assert planner["extra_memory"] == pytest.approx(4 / 36)
    assert (planner["nodes"], planner["batch"], planner["rates"]) == (2, 4, "as given")
    assert planner["chosen"] in planner["judged_mean_max"]
    assert all(used <= most for used, most in zip(says["bytes_per_node"], (30_000, 10_000), strict=True))
    assert says["bytes_per_node"][0] >= 24_000  # as its rate, and what node 1 cannot hold
    assert "in batches of 4" in says["scored_on"]


def test_certificate_is_of_the_plan(folder, tmp_path, capsys):
    out = tmp_path / "plan.json"
    arguments = ["plan", str(folder), "--planner", "round_robin", "--nodes", "2", "--certificate", "20",
                 "--certificate-steps", "30", "--certificate-layer", "2", "--out", str(out), "--json"]  # fmt: skip
    assert main(arguments) == 0
    proof = json.loads(capsys.readouterr().out)["certificate"]
    assert Plan.load(out).prediction["certificate"] == proof  # kept with the plan, not only printed
    assert (proof["layer"], proof["num_steps"]) == (2, 30)
    assert proof["bound"] - 1e-9 <= proof["annealed"] <= proof["plan"]
    assert proof["plan_gap"] >= proof["gap"]


def test_certificates_of_all_layers(folder, tmp_path, capsys):
    """Three layers, each as it is proven alone; what they come to; and a row for each."""
    out = tmp_path / "plan.json"
    arguments = ["plan", str(folder), "--planner", "round_robin", "--nodes", "2", "--extra-memory", "0.1",
                 "--certificate", "20", "--certificate-steps", "30", "--out", str(out), "--overwrite"]  # fmt: skip
    assert main([*arguments, "--certificate-layer", "all", "--json"]) == 0
    says = json.loads(capsys.readouterr().out)
    assert Plan.load(out).prediction["certificates"] == says["certificates"]
    assert [each["layer"] for each in says["certificates"]] == [0, 1, 2]
    assert main([*arguments, "--certificate-layer", "2", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)["certificate"]
    assert [says["certificates"][2][key] for key in ("bound", "annealed")] == [alone["bound"], alone["annealed"]]
    sums, gaps = says["certificates_summary"], [each["gap"] for each in says["certificates"]]
    assert (sums["certificates"], sums["largest_gap"]) == (3, max(gaps))
    assert sums["within_2%"] == sum(gap <= 0.02 for gap in gaps)
    assert main([*arguments, "--certificate-layer", "all", "--certificate-gap", "0.02"]) == 0
    printed = capsys.readouterr().out
    assert [f"| {layer} | 30 |" in printed for layer in range(4)] == [True, True, True, False]
    assert "within 2%" in printed


def test_joint_takes_slots_of_each_fast_tier(folder, tmp_path):
    out = tmp_path / "plan.json"
    assert main(["plan", str(folder), "--planner", "joint", "--slots", "2", "1", "--out", str(out)]) == 0
    plan = Plan.load(out)
    assert plan.tiers == ("node0", "node1", "fast0", "fast1")
    assert [fast.slots <= most for fast, most in zip(plan.fast_tiers, (6, 3), strict=True)] == [True, True]


def test_joint_may_give_up_homes(folder, tmp_path):
    """An expert on the fast tier is nowhere else; nodes use the room for copies of others."""
    plans = []
    for flags in ([], ["--no-keep-home"]):
        out = tmp_path / f"plan{len(flags)}.json"
        arguments = ["plan", str(folder), "--planner", "joint", "--slots", "2", "--expert-bytes", "1000"]
        assert main([*arguments, "--out", str(out), *flags]) == 0
        plans.append(Plan.load(out))
    kept, given_up = plans
    assert (kept.keep_home, given_up.keep_home) == (True, False)
    tiers = {(layer, expert): set() for layer in range(3) for expert in range(30)}
    rows = given_up.placements
    for layer, expert, tier in zip(rows.layer, rows.expert, rows.tier, strict=True):
        tiers[layer, expert].add(given_up.tiers[tier])
    on_fast = [where for where in tiers.values() if "fast0" in where]
    assert len(on_fast) == 6
    assert all(where == {"fast0"} for where in on_fast)
    copies = [sum(len(where - {"fast0"}) for where in tiers.values())]
    copies += [sum(given_up.prediction["bytes_per_node"]) // 1000]
    assert 30 <= copies[0] == copies[1] <= 36


def test_words_begin_with_what_was_scored(folder, tmp_path, capsys):
    for flags, said in (
        (["--held-out", "0"], "the planning requests (in sample): the fullest node reads"),
        (["--steps", "token"], "held-out requests, each token its own step: the fullest node reads"),
    ):
        out = tmp_path / f"{flags[0]}.json"
        assert main(["plan", str(folder), "--planner", "round_robin", "--nodes", "2", "--out", str(out), *flags]) == 0
        assert said in capsys.readouterr().out


def test_prefill_trace_without_a_phase(tmp_path):
    trace = seeded_trace(1, num_requests=8).phase(0)
    path = tmp_path / "prefill"
    with TraceWriter(path, trace.header) as writer:
        writer.append(trace.experts, trace.gate_weights, trace.tokens)
    out = tmp_path / "plan.json"
    assert main(["plan", str(path), "--planner", "replicate", "--steps", "token", "--out", str(out)]) == 0
    assert Plan.load(out).planner["phase"] == "prefill"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--planner", "frequency"], "expected --slots N"),
        (["--planner", "frequency", "--slots", "2", "3"], "expected --slots N; got [2, 3]"),
        (["--planner", "frequency", "--slots", "2", "--nodes", "2"], "--nodes: planner frequency fills a fast tier"),
        (["--planner", "anneal", "--slots", "2"], "leave --slots out"),
        (["--planner", "frequency", "--slots", "2", "--batch", "2"], "--batch: planner frequency fills a fast tier"),
        (["--planner", "anneal", "--certificate-steps", "9"], "give that"),
        (["--planner", "anneal", "--certificate-gap", "0.02"], "give that"),
        (["--planner", "anneal", "--certificate", "9", "--certificate-layer", "3"], "expected 0 to 2, or all"),
        (["--planner", "anneal", "--certificate", "9", "--certificate-layer", "two"], "a layer's number, or all"),
        (["--planner", "anneal", "--node-bytes", "30kB", "30kB", "--extra-memory", "0.1"], "expected one of both"),
        (["--planner", "anneal", "--node-bytes", "30kB", "--nodes", "2"], "expected 2 numbers that hold all experts"),
        (["--planner", "joint"], "needs --slots N"),
        (["--planner", "anneal", "--no-keep-home"], "expected planner joint"),
        (["--planner", "magic"], "expected one of frequency"),
        (["--planner", "anneal", "--extra-memory", "3"], "extra_memory is 3.0"),
    ],
)
def test_refusals(folder, tmp_path, capsys, arguments, text):
    assert main(["plan", str(folder), *arguments, "--out", str(tmp_path / "plan.json")]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "plan.json").exists()


def test_names_of_the_package():
    assert {"anneal", "frequency"} <= set(moelab.PLANNERS)


def test_planned_by_the_time_of_a_calibrated_machine(tmp_path, capsys):
    """`--machine` with times of the shape: predicted ms printed and in the plan; without them it says what to run."""
    from moelab.domain.expert_times import ExpertTimes
    from moelab.domain.machine import Machine, NumaNode

    trace = seeded_trace(2, num_requests=8, num_experts=12)
    header = trace.header.model_copy(update={"hidden_size": 64, "moe_intermediate_size": 128})
    path = tmp_path / "trace"
    with TraceWriter(path, header) as writer:
        writer.append(trace.experts, trace.gate_weights, trace.tokens)
    times = ExpertTimes(
        kernel="generic/int4_g32/int8", hidden_size=64, intermediate_size=128, expert_bytes=1000, workers_of_node=1,
        layer_s=1e-5, token_s=0, expert_s={1: 1e-3}, piece_factor={2: 1.5}, read_gb_per_s=1.0, residual=0.0,
        num_calls=1,
    )  # fmt: skip
    nodes = tuple(NumaNode(name=f"node{n}", cores=(n,), memory_bytes=10**9) for n in range(2))
    machine = Machine(name="m", source="calibration", date="2026-01-01", nodes=nodes, expert_times=(times,))
    machine.save(tmp_path / "machine.json")
    out = tmp_path / "plan.json"
    arguments = ["plan", str(path), "--planner", "fastest", "--out", str(out), "--overwrite"]
    assert main([*arguments, "--machine", str(tmp_path / "machine.json")]) == 0
    assert "predicted ms_per_step" in capsys.readouterr().out
    plan = Plan.load(out)
    assert plan.prediction["predicted_by"] == "generic/int4_g32/int8 at 64 x 128"
    assert plan.prediction["predicted_ms_per_step"] >= 1e3 * (1e-5 + 1e-3) * header.num_layers
    assert set(plan.prediction["planning_ms_per_step"]) >= {"anneal", "coact", "row_split"}
    machine.model_copy(update={"expert_times": ()}).save(tmp_path / "machine.json")
    assert main([*arguments, "--machine", str(tmp_path / "machine.json")]) == 2
    assert "moelab calibrate --expert-shape 64x128" in capsys.readouterr().err


def test_a_trace_without_expert_bytes_gets_a_plan_and_no_time(tmp_path, capsys):
    """A fast tier too; a machine that is named, or bytes that are given, are another matter."""
    trace = seeded_trace(1, num_requests=8, num_experts=12)
    np.savez(tmp_path / "mine.npz", experts=trace.experts, num_experts=12, request=trace.tokens.request)
    out = tmp_path / "plan.json"
    start = ["plan", str(tmp_path / "mine.npz"), "--out", str(out), "--overwrite"]
    for budget in (["--slots", "4"], ["--nodes", "2"]):
        assert main([*start, *budget]) == 0
        assert "the trace does not say the bytes of an expert: --expert-bytes SIZE" in capsys.readouterr().out
        plan = Plan.load(out)
        assert "predicted_ms_per_token" not in plan.prediction
        assert len(plan.placements) >= 36
    machine = ["--machine", "1x-epyc-9004-ddr5-4800"]
    assert main([*start, "--slots", "4", *machine]) == 2
    assert "nobody said the bytes of an expert" in capsys.readouterr().err
    assert main([*start, "--slots", "4", *machine, "--expert-bytes", "2 MB"]) == 0
    assert "unknown" not in capsys.readouterr().out.replace("unknown (3 x 12", "")
    plan = Plan.load(out)
    assert plan.format_of_tier["fast0"].expert_bytes == (2_000_000,) * 3
    assert plan.prediction["predicted_ms_per_token"] > 0


def test_a_plan_that_is_there_stays_unless_it_is_to_be_replaced(folder, tmp_path, capsys):
    out = tmp_path / "plan.json"
    arguments = ["plan", str(folder), "--planner", "round_robin", "--nodes", "2", "--out", str(out)]
    assert main(arguments) == 0
    before = out.read_bytes()
    other = ["plan", str(folder), "--planner", "random_nodes", "--nodes", "2", "--out", str(out)]
    capsys.readouterr()
    assert main(other) == 2
    assert (
        f"--out is {out}, which is there, expected a new file: --overwrite, or another name" in capsys.readouterr().err
    )
    assert out.read_bytes() == before
    assert main([*other, "--overwrite"]) == 0
    assert Plan.load(out).planner["name"] == "random_nodes"


@pytest.mark.parametrize(
    ("num_requests", "held_out", "batch", "said"),
    [
        (8, "0.25", 1, "none: fewer than 10 held-out clusters"),
        (1, "0.25", 1, "none: its one request was cut in time"),
        (8, "0.25", 8, "none: its requests share steps, so that it was cut in time"),
        (8, "0", 1, "none: nothing was held out"),
        (40, "0.5", 1, None),
    ],
)
def test_where_an_interval_is_missing_the_table_says_why(tmp_path, capsys, num_requests, held_out, batch, said):
    trace = seeded_trace(1, num_requests=num_requests, num_experts=8, batch=batch)
    with TraceWriter(tmp_path / "trace", trace.header) as writer:
        writer.append(trace.experts, trace.gate_weights, trace.tokens)
    arguments = ["plan", str(tmp_path / "trace"), "--planner", "round_robin", "--nodes", "2", "--held-out", held_out]
    assert main([*arguments, "--out", str(tmp_path / "plan.json")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert ("heldout_mean_max_interval none" in printed) == (said is not None)
    assert ("train_mean_max_interval none" in printed) == (num_requests < 40)
    if said is not None:
        assert f"heldout_mean_max_interval {said}" in printed
        assert "ties_with not known without intervals" in printed


def test_signs_are_words(folder, tmp_path, capsys):
    """Less, more, or as long; no percentage has a sign."""
    says = {}
    for name in ("anneal", "random_nodes", "round_robin"):
        out = tmp_path / f"{name}.json"
        assert main(["plan", str(folder), "--planner", name, "--nodes", "2", "--out", str(out)]) == 0
        says[name] = " ".join(capsys.readouterr().out.split())
        prediction = Plan.load(out).prediction
        for other, mean in prediction["baseline_mean_max"].items():
            if other == "mirror":
                continue
            part = 100 * (prediction["heldout_mean_max"] / mean - 1)
            words = "as long" if abs(part) < 0.05 else f"{abs(part):.1f}% {'less' if part < 0 else 'more'}"
            assert f"{other} {mean:.2f}, so that ours takes {words}" in says[name]
    assert "round_robin" in says["round_robin"]
    assert "so that ours takes as long" in says["round_robin"]
    assert not [text for text in says.values() if "takes -" in text or "takes +" in text]
