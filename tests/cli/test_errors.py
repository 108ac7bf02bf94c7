"""Everything that can go wrong at the door: one message (expected, got, fix), exit code 2, nothing half-written.

Four commands run in a process of their own, which imports for two seconds: for the exit code, for all that is said on
standard error from the first import on, for what stays behind when it ends. The others run in this one.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import moelab
from moelab import first_compile
from moelab.cli import doctor, main
from moelab.domain.plan import Plan
from moelab.domain.trace import TokenTable, Trace, TraceHeader
from moelab.store import TraceWriter


def in_a_process(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "moelab", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def moelab_command(capfd, monkeypatch):
    """The same here, with what native code writes too; `compiling ..` is said as in a process that has just begun."""

    def run(*arguments):
        monkeypatch.setattr(first_compile.LISTENER, "spent_s", 0.0)
        monkeypatch.setattr(first_compile.LISTENER, "is_told", False)
        capfd.readouterr()
        code = main([*map(str, arguments)])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def foreign_trace(tmp_path_factory):
    """A store of another model: 2 layers x 6 experts."""
    header = TraceHeader(
        model="stranger", model_type="mixtral", num_layers=2, num_experts=6, top_k=2, model_layer_of_layer=(0, 1),
        expert_bytes=(100, 100), engine="test", quantization="none", licence="CC0-1.0", provenance="test",
        synthetic=True,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    experts = np.stack([[rng.choice(6, 2, replace=False) for _ in range(2)] for _ in range(64)]).astype(np.uint16)
    tokens = TokenTable.build(step=np.arange(64), request=np.arange(64) // 16, position=np.arange(64) % 16, phase=1)
    trace = Trace(header, experts, np.full(experts.shape, 0.5, np.float16), tokens)
    path = tmp_path_factory.mktemp("foreign") / "trace"
    with TraceWriter(path, header) as writer:
        writer.append(trace.experts, trace.gate_weights, trace.tokens)
    return path


def check(done, *words):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.strip() and "%|" not in line]  # a busy machine shows bars
    assert len(said) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_wrong_path():
    check(in_a_process("replay", "nowhere"), "nowhere does not exist", "give a trace folder")


def test_folder_that_is_no_trace(tmp_path, moelab_command):
    check(moelab_command("simulate", tmp_path), str(tmp_path))


def test_file_that_no_format_reads(tmp_path, moelab_command):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    check(moelab_command("simulate", path), "no known format", "moelab record")


def test_trace_of_another_model_than_the_checkpoint(foreign_trace, moelab_command):
    done = moelab_command("replay", foreign_trace, "--model", moelab.shipped("nano/model"), "--expert-shape", "own")
    check(done, "stranger (2 x 6)", "give the checkpoint that was recorded")


def test_plan_of_another_shape(foreign_trace, moelab_command):
    done = moelab_command("simulate", foreign_trace, "--plan", moelab.shipped("nano/plan.json"))
    check(done, "plan is for nano", "stranger (2 x 6)", "re-plan")


def test_trace_without_expert_bytes_is_simulated_without_a_prediction(tmp_path, moelab_command):
    """vLLM's file says no bytes: counts and rates are there, a time is not, and it says why."""
    path = tmp_path / "request.npy"
    rng = np.random.default_rng(0)
    np.save(path, np.argsort(rng.random((50, 3, 8)), axis=2)[:, :, :2].astype(np.uint8))
    done = moelab_command("simulate", path, "--slots", 3, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert 0 < document["hit_rate_per_request"] < 1
    assert "neither trace nor plan says the bytes" in document["prediction"]
    assert document["bytes_of_node"].startswith("unknown: nobody said the bytes of an expert")
    assert document["bytes_of_link"] == document["bytes_of_node"]
    plain = moelab_command("simulate", path, "--slots", 3).stdout
    assert "bytes_of_node           unknown: nobody said" in plain
    assert "node0 0" not in plain
    check(moelab_command("simulate", path, "--bytes", "10kB"), "does not say the bytes of an expert", "--slots")
    check(moelab_command("simulate", path, "--slots", 3, "--check-residency"), "carries no recorded residency")


def test_unknown_names(moelab_command):
    check(moelab_command("simulate", "--policy", "magic"), "policy is magic, expected one of")
    check(moelab_command("replay", "--expert-shape", "kimi-k9"), "kimi-k9")
    check(moelab_command("replay", "--isa", "mmx"), "mmx")
    check(moelab_command("replay", "--machine", "toaster"), "toaster", "presets")


def test_checkpoint_with_a_missing_tensor(tmp_path, moelab_command):
    model = tmp_path / "model"
    shutil.copytree(moelab.shipped("nano/model"), model)
    path = model / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    lost = next(name for name in header if name.endswith("experts.7.up_proj.weight_packed"))
    del header[lost]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    path.write_bytes(data[:8] + text + data[8 + size :])
    check(moelab_command("generate", model, "hello"), lost)


def test_nothing_half_written(foreign_trace, tmp_path):
    out = tmp_path / "plan.json"
    done = in_a_process("plan", foreign_trace, "--planner", "frequency", "--slots", 99, "--out", out)
    check(done, "99")
    assert list(tmp_path.iterdir()) == []


def test_report_into_a_missing_folder_is_refused_before_the_work(tmp_path, moelab_command):
    done = moelab_command("replay", "--report", tmp_path / "no" / "report.html")
    check(done, "its folder does not exist")


def test_debug_shows_the_traceback():
    done = in_a_process("simulate", "nowhere", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_plan_and_simulate_write_what_they_say(foreign_trace, tmp_path):
    out = tmp_path / "plan.json"
    done = in_a_process("plan", foreign_trace, "--slots", 2, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    plan = Plan.load(out)
    assert plan.resident("fast0").sum(axis=1).tolist() == [2, 2]
    done = in_a_process("simulate", foreign_trace, "--plan", out, "--json")
    document = json.loads(done.stdout)
    assert 0 < document["hit_rate_per_routing"] < 1
    # A static plan uploads nothing: reads are misses.
    assert document["uploads_per_layer_step"] == 0
    np.testing.assert_allclose(document["reads_per_layer_step"], 2 * (1 - document["hit_rate_per_request"]))


def test_record_of_a_wrong_size_leaves_nothing(tmp_path, moelab_command):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"request": 0, "domain": "code", "prompt": "hello", "max_new_tokens": 2}) + "\n")
    done = moelab_command("record", "nano", "--prompts", prompts, "--out", tmp_path / "out", "--batch-size", 0)
    check(done, "batch_size", "expected 1 or more", "got 0")
    assert list(tmp_path.iterdir()) == [prompts]


def test_record_says_what_it_wrote_in_names_with_units(tmp_path, moelab_command):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"request": 0, "domain": "code", "prompt": "hello", "max_new_tokens": 2}) + "\n")
    done = moelab_command("record", "nano", "--prompts", prompts, "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    names = {"folder", "requests", "prefill_tokens", "decode_tokens", "domains", "batch_size", "seconds"}
    assert set(document) == names | {"fast_tier", "lossy"}
    assert document["requests"] == document["batch_size"] == 1
    assert document["fast_tier"] is document["lossy"] is None


def test_package_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["bench", "parity"]) == 2
    said = capsys.readouterr().err
    assert "transformers" in said
    assert "pip install -e '.[test]'" in said


def test_bug_of_ours_keeps_its_traceback(monkeypatch):
    def broken(options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(doctor, "run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])
