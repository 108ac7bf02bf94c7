"""moelab size and cost: the fields of the issue, tables, GGUF files, traces, refusals in one line."""

import json

import pytest

from moelab.cli import main
from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.sizing import size
from tests.gguf_files import deepseek2, write_gguf
from tests.sizing.test_gguf_model import random_sizes

PRICES = [
    "--input-price", "0.95", "--cached-price", "0.16", "--output-price", "4", "--price-date", "2026-08",
    "--price-source", "a price list", "--per-month", "1000", "--machine-date", "2026-11", "--machine-source", "assumed",
]  # fmt: skip


def run(capsys, *arguments: str) -> str:
    code = main(list(arguments))
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def refuse(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_the_fields_of_the_issue(capsys):
    fields = json.loads(run(capsys, "size", "kimi-k2.6", "--machine", "forge-moe-gen4", "--json"))
    assert fields["total_params"] == 1_026_408_232_448
    assert fields["active_params"] == ModelSpec.preset("kimi-k2.6").active_params
    assert fields["weight_bytes"]["native"] / 1e9 == pytest.approx(594.2, abs=0.05)
    assert set(fields["weight_bytes"]) >= {"bf16", "int8", "native", "fp8", "mxfp4", "Q8_0", "Q4_K_M", "UD-Q2_K_XL"}
    assert fields["kv_bytes_per_token"] == 70272
    assert fields["fits"] is True
    low, high = fields["predicted_tok_per_s_interval"]
    assert low < fields["predicted_tok_per_s"] < high < fields["ceiling_tok_per_s"]
    assert fields["leave_one_out_median_error"] <= 0.08
    assert fields["leave_one_out_mean_error"] > 0
    library = size("kimi-k2.6", "forge-moe-gen4")
    assert fields["predicted_tok_per_s"] == library.prediction.tok_per_s


def test_options_reach_the_library(capsys):
    fields = json.loads(
        run(
            capsys, "size", "deepseek-v3", "--machine", "2x-epyc-9005-ddr5-6400+h200", "--format", "Q4_K_M",
            "--context", "32768", "--batch", "4", "--kv-format", "Q8_0", "--layout", "replicate", "--fast-slots", "3",
            "--system-bytes", "1GiB", "--json",
        )
    )  # fmt: skip
    spec = ModelSpec.preset("deepseek-v3")
    assert fields["kv_bytes"] == spec.kv_cache_bytes(32768, 4, "Q8_0")
    assert fields["routed_fast_bytes"] / fields["routed_bytes"] == pytest.approx(3 / 256, rel=1e-6)
    assert fields["node_room_bytes"][0] == 767 * 2**30
    assert fields["layout"] == "replicate"
    given = json.loads(
        run(capsys, "size", "kimi-k2.6", "--machine", "forge-moe-gen6", "--reads-per-layer-step", "5", "--json")
    )
    assert given["reads_per_layer_step"] == 5


def test_people_read_prediction_error_and_ceiling_together(capsys):
    text = " ".join(run(capsys, "size", "kimi-k2.6", "--machine", "forge-moe-gen4", "--points").split())
    for words in (
        "predicted tok/s",
        "leave-one-out median",
        "ceiling tok/s",
        "never reached",
        "kvcache-ai",
        "bandwidth alone",
    ):
        assert words in text


def test_tables_of_all_presets(capsys):
    rows = json.loads(run(capsys, "size", "kimi-k2.6", "deepseek-v3", "--machine", "all", "--json"))["rows"]
    assert len(rows) == 2 * len(Machine.presets())
    text = run(capsys, "size", "kimi-k2.6", "--machine", "all+rtx-4090", "--markdown")
    lines = [line for line in text.splitlines() if "|" in line]
    unified = sum(Machine.preset(name).unified_memory for name in Machine.presets())
    assert len(lines) == 2 + len(Machine.presets()) - unified
    assert all("+rtx-4090" in line for line in lines[2:])
    assert "GB/s" in run(capsys, "size", "kimi-k2.6", "--machine", "all")


def test_a_gguf_file_is_its_own_format(capsys, tmp_path):
    path = tmp_path / "small.gguf"
    metadata, tensors = deepseek2(random_sizes(4))
    write_gguf(path, metadata, tensors)
    fields = json.loads(run(capsys, "size", str(path), "--machine", "forge-moe-gen4", "--json"))
    assert fields["format"] == "small.gguf"
    assert sum(fields["bytes_of_part"].values()) == fields["weight_bytes"]["small.gguf"]
    other = json.loads(run(capsys, "size", str(path), "--machine", "forge-moe-gen4", "--format", "bf16", "--json"))
    assert other["format"] == "bf16"


def test_traces_give_unions_and_hits(capsys, tmp_path):
    """nano's own trace, at nano's own config: held-out reads of a simulation, measured unions."""
    import moelab

    model = str(moelab.shipped("nano/model"))
    trace = str(moelab.shipped("nano/capture"))
    base = ["size", model, "--machine", "desktop-ddr5-6000+rtx-4090", "--json", "--trace", trace, "--context", "512"]
    alone = json.loads(run(capsys, *base))
    assert alone["distinct_experts"] <= ModelSpec.from_hf_config(model).num_experts_per_tok
    hits = json.loads(run(capsys, *base, "--fast-slots", "12"))
    assert hits["reads_per_layer_step"] < alone["distinct_experts"]
    assert "simulated static at 12 slots" in hits["hits_from"]
    assert "held-out" in hits["hits_from"]
    moved = json.loads(run(capsys, *base, "--fast-slots", "12", "--policy", "lru"))
    assert "simulated lru" in moved["hits_from"]
    assert moved["reads_per_layer_step"] > hits["reads_per_layer_step"]  # it uploads what it misses
    batch = json.loads(run(capsys, *base, "--batch", "8"))
    assert "requests" in batch["distinct_from"]
    spec = ModelSpec.from_hf_config(model)
    uniform = spec.n_routed_experts * (1 - (1 - spec.num_experts_per_tok / spec.n_routed_experts) ** 8)
    assert batch["distinct_experts"] < uniform  # real routing shares experts
    assert "record one at this batch" in refuse(capsys, *base, "--batch", "8", "--fast-slots", "12")


def test_a_trace_of_prefill_has_unions_that_say_so_and_no_hits(capsys, tmp_path):
    from moelab.store import save_trace
    from tests.seeded_traces import seeded_trace

    trace = seeded_trace(5, num_layers=26, num_experts=64, top_k=6, num_requests=6, prefill_tokens=5, decode_tokens=0)
    save_trace(trace, tmp_path / "prefill")
    base = ["size", "deepseek-v2-lite", "--machine", "desktop-ddr5-6000+rtx-3090", "--format", "bf16"]
    base += ["--trace", str(tmp_path / "prefill")]
    fields = json.loads(run(capsys, *base, "--batch", "3", "--json"))
    assert "prefill tokens only" in fields["distinct_from"]
    assert "only prefill: record decode" in refuse(capsys, *base, "--fast-slots", "4")


def test_cost(capsys):
    fields = json.loads(run(capsys, "cost", "--tok-per-s", "15", *PRICES, "--input-share", "0", "--json"))
    assert fields["break_even_tok_per_s"] == pytest.approx(95, abs=0.5)
    assert fields["machine_can_break_even"] is False
    assert {row["input"] for row in fields["sensitivity"]} >= {"as given", "output price", "machine", "tok/s"}
    assert fields["price_date"] == "2026-08"
    by_model = json.loads(run(capsys, "cost", "kimi-k2.6", "--machine", "forge-moe-gen4", *PRICES, "--json"))
    assert by_model["tok_per_s"] == size("kimi-k2.6", "forge-moe-gen4").prediction.tok_per_s
    assert by_model["tok_per_s_interval"][0] < by_model["tok_per_s"]
    prefill = size("kimi-k2.6", "forge-moe-gen4").prefill.tok_per_s
    assert by_model["prefill"] == f"{prefill:g} tok/s"
    assert fields["prefill"] == "free: no rate given"
    assert fields["rates_from"] == "given"
    assert "output 7.0%, 15.1%; prefill" in by_model["rates_from"]
    text = run(capsys, "cost", "--tok-per-s", "15", *PRICES, "--tokens-per-month", "5e7")
    assert "api per month" in text
    assert "Break-even curve" in text


def test_refusals(capsys, tmp_path):
    assert "expected a config.json, a GGUF file or one of" in refuse(capsys, "size", "kimi", "--machine", "all")
    assert "--machine is nowhere" in refuse(capsys, "size", "kimi-k2.6", "--machine", "nowhere")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama"}))
    assert "model_type: expected one of" in refuse(capsys, "size", str(config), "--machine", "forge-moe-gen4")
    forge = ["--machine", "forge-moe-gen4"]
    assert "expected 0 to 384" in refuse(capsys, "size", "kimi-k2.6", *forge, "--fast-slots", "385")
    assert "give both" in refuse(capsys, "size", "kimi-k2.6", *forge, "--policy", "lru")
    assert "expected at most --fast-slots 1" in refuse(
        capsys, "size", "kimi-k2.6", *forge, "--fast-slots", "1", "--reads-per-layer-step", "3"
    )
    assert "either MODEL with --machine or --tok-per-s" in refuse(capsys, "cost", *PRICES)
    no_fit = refuse(capsys, "cost", "kimi-k2.6", "--machine", "desktop-ddr5-6000", *PRICES)
    assert "no rate is predicted" in no_fit
    assert "would stream from disk" in no_fit
