"""size: the facts' cross-checks, every preset on every machine, monotone in what it should be, refusals by name."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.domain.machine import Machine
from moelab.domain.machine_presets import GPUS
from moelab.domain.model import ModelSpec, presets
from moelab.sizing import size
from moelab.sizing.prefill import bandwidth_gb_per_s
from moelab.sizing.reads import cache_read_bytes, step_reads, uniform_union
from moelab.sizing.recipes import recipe
from moelab.sizing.unions import measured_union
from tests.seeded_traces import seeded_trace

EXACT = [name for name in presets() if ModelSpec.preset(name).sizes_exact]
MACHINES = Machine.presets()

# Facts section 2: roofline of K2.6 and V3, tok/s: hybrid | CPU-only, at GB/s 96, 614 stands between 600 and 700.
ROOFLINE = [  # preset, recipe, GB/s, hybrid, CPU-only, tolerance: the table has 4.85 bits for all of Q4_K_M
    ("kimi-k2.6", "native", 96, 8.1, 2.9, 0.02),
    ("kimi-k2.6", "native", 600, 50.5, 18.2, 0.01),
    ("kimi-k2.6", "native", 1700, 143, 51.5, 0.01),
    ("kimi-k2.6", "Q4_K_M", 600, 46.8, 31.2, 0.03),
    ("kimi-k2.6", "UD-Q2_K_XL", 600, 88, 33.3, 0.01),
    ("kimi-k2.6", "Q8_0", 600, 26.7, 17.8, 0.01),
    ("deepseek-v3", "Q4_K_M", 600, 48.4, 27.0, 0.02),
    ("qwen3-235b-a22b", "Q4_K_M", 600, 69.7, 45.9, 0.02),
    ("glm-4.6", "Q4_K_M", 600, 58.9, 30.1, 0.02),
]


def with_bandwidth(gb_per_s: float, gpu: bool) -> Machine:
    machine = Machine.preset("mac-studio-m3-ultra-512gb").model_copy(update={"unified_memory": False})
    node = machine.nodes[0].model_copy(update={"read_gb_per_s": {8: gb_per_s}, "memory_bytes": 2**42})
    tiers = Machine.preset("desktop-ddr5-6000+h200").fast_tiers if gpu else ()
    tiers = tuple(tier.model_copy(update={"read_gb_per_s": 1e9}) for tier in tiers)
    return machine.model_copy(update={"nodes": (node,), "fast_tiers": tiers})


@pytest.mark.parametrize(("name", "weights", "gb_per_s", "hybrid", "alone", "tolerance"), ROOFLINE)
def test_ceilings_are_the_facts_rooflines(name, weights, gb_per_s, hybrid, alone, tolerance):
    beside_gpu = size(name, with_bandwidth(gb_per_s, True), format=weights, context=0)
    assert beside_gpu.places.mode == "hybrid"
    assert beside_gpu.ceiling_tok_per_s == pytest.approx(hybrid, rel=tolerance)
    by_cpu = size(name, with_bandwidth(gb_per_s, False), format=weights, context=0)
    assert by_cpu.ceiling_tok_per_s == pytest.approx(alone, rel=tolerance)


def test_batches_of_the_facts():
    """K2: B = 8 59.5 of 64 picks, 32 188 of 256, 64 284 of 512; gains of 1.08, 1.36 and 1.80."""
    for batch, distinct, gain in ((8, 59.5, 1.08), (32, 188, 1.36), (64, 284, 1.80)):
        union = uniform_union(384, 8, batch)
        assert union == pytest.approx(distinct, abs=0.5)
        assert 8 * batch / union == pytest.approx(gain, abs=0.01)
    one, many = size("kimi-k2.6", "forge-moe-gen4"), size("kimi-k2.6", "forge-moe-gen4", batch=8, context=1024)
    assert many.reads.home_bytes / one.reads.home_bytes == pytest.approx(59.5 / 8, rel=0.001)
    assert many.reads.union_from == "uniform routing"
    assert many.prediction.coverage is None
    assert many.prediction.interval_tok_per_s[0] >= one.prediction.interval_tok_per_s[0] * 0.99
    assert many.prediction.tok_per_s > one.prediction.tok_per_s
    assert any("batch 8" in text for text in many.caveats)


def test_glm_5_with_its_mtp_layer_is_79_layers():
    """unsloth PR#4757 gets 17.18 GiB at its whole context."""
    spec = ModelSpec.preset("glm-5")
    cache = spec.memory(202752).bytes_of_part["kv_cache"]
    assert cache * 79 / 78 / 2**30 == pytest.approx(17.18, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_uniform_union_against_drawing(seed):
    rng = np.random.default_rng(seed)
    experts = int(rng.integers(8, 60))
    top_k, batch = int(rng.integers(1, experts)), int(rng.integers(1, 12))
    drawn = [
        len(set(np.concatenate([rng.permutation(experts)[:top_k] for _ in range(batch)]).tolist())) for _ in range(4000)
    ]
    assert uniform_union(experts, top_k, batch) == pytest.approx(np.mean(drawn), rel=0.02)


def test_articles_nodes_run_k26():
    for name in ("forge-moe-gen4", "forge-moe-gen6"):
        one = size("kimi-k2.6", name)
        assert one.places.fits
        assert one.prediction is not None
        low, high = one.prediction.interval_tok_per_s
        assert low < one.prediction.tok_per_s < high < one.ceiling_tok_per_s
    gen4, gen6 = (size("kimi-k2.6", f"forge-moe-gen{n}+rtx-4090").prediction.tok_per_s for n in (4, 6))
    assert 1.1 < gen6 / gen4 < 1.5  # 2.75 times the bandwidth: "roughly doubles" does not hold today


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["kimi-k2.6", "deepseek-v3"])
def test_every_machine_sizes(name, machine):
    one = size(name, machine)
    fields = one.to_dict()
    assert fields["total_params"] == ModelSpec.preset(name).total_params
    assert sum(fields["bytes_of_part"].values()) == fields["weight_bytes"]["native"]
    assert fields["fits"] == (not fields["lacks"])
    assert (fields["predicted_tok_per_s"] is None) == (not fields["fits"])
    assert name in str(one)
    assert machine in one._repr_html_()


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(EXACT), st.sampled_from(MACHINES), st.sampled_from([*sorted(GPUS), ""]),
    st.sampled_from(["native", "bf16", "Q8_0", "UD-Q2_K_XL"]), st.integers(0, 10**5), st.integers(1, 40),
)  # fmt: skip
def test_sizes_behave(name, base, gpu, weights, context, batch):
    machine = Machine.preset(f"{base}+2x-{gpu}" if gpu else base)
    one = size(name, machine, format=weights, context=context, batch=batch)
    fields = one.to_dict()
    assert fields["kv_bytes"] == ModelSpec.preset(name).kv_cache_bytes(context, batch)
    assert fields["distinct_experts"] <= min(batch * one.spec.num_experts_per_tok, one.spec.n_routed_experts) + 1e-9
    if one.prediction:
        low, high = one.prediction.interval_tok_per_s
        assert 0 < low <= one.prediction.tok_per_s <= high <= one.ceiling_tok_per_s * (1 + 1e-12)
    faster = machine.model_copy(
        update={
            "nodes": tuple(
                node.model_copy(update={"read_gb_per_s": {1: 2 * node.best_read_gb_per_s}}) for node in machine.nodes
            )
        }
    )
    again = size(name, faster, format=weights, context=context, batch=batch)
    assert (again.prediction is None) == (one.prediction is None)
    if one.prediction:
        assert again.prediction.tok_per_s >= one.prediction.tok_per_s
    longer = size(name, machine, format=weights, context=context + 1000, batch=batch)
    assert one.places.fits or not longer.places.fits
    if one.prediction and longer.prediction and longer.places.mode == one.places.mode:
        assert longer.prediction.tok_per_s <= one.prediction.tok_per_s * (1 + 1e-12)


def test_hits_enter_as_reads_per_layer_step():
    spec = ModelSpec.preset("kimi-k2.6")
    machine = Machine.preset("forge-moe-gen4+h200")
    plain = size(spec, machine)
    assert plain.reads.reads_per_layer_step == 8
    assert plain.reads.fast_expert_bytes == 0
    some = size(spec, machine, reads_per_layer_step=5.0)
    assert some.reads.home_bytes == pytest.approx(plain.reads.home_bytes * 5 / 8)
    assert some.reads.fast_expert_bytes == pytest.approx(plain.reads.home_bytes * 3 / 8)
    assert some.prediction.tok_per_s > plain.prediction.tok_per_s
    worse = size(spec, machine, reads_per_layer_step=10.0)  # uploads are reads too
    assert worse.prediction.tok_per_s < plain.prediction.tok_per_s
    told = size(spec, machine, reads_per_layer_step=7.0, hits_per_layer_step=3.0)  # two of the reads are uploads
    assert told.reads.fast_expert_bytes == pytest.approx(some.reads.fast_expert_bytes)
    with pytest.raises(ValueError, match=r"hits per layer-step are 2\.0, expected 3 to 8"):
        size(spec, machine, reads_per_layer_step=5.0, hits_per_layer_step=2.0)
    share = size(spec, machine, routed_fast_bytes=57 * 10**9)
    assert share.reads.reads_per_layer_step == pytest.approx(8 * (1 - 57e9 / plain.places.need.routed_bytes))
    assert "uniform routing" in share.reads.hits_from


def test_layouts_of_experts_over_nodes():
    split, whole, copies = (size("kimi-k2.6", "forge-moe-gen4", layout=one) for one in ("split", "whole", "replicate"))
    assert split.prediction.tok_per_s == copies.prediction.tok_per_s > whole.prediction.tok_per_s
    assert whole.imbalance == pytest.approx(1.27, abs=0.01)
    assert sum(copies.places.node_bytes) > 1.9 * sum(split.places.node_bytes)


def test_what_does_not_fit_has_no_prediction():
    desktop = size("kimi-k2.6", "desktop-ddr5-6000")
    assert not desktop.places.fits
    assert desktop.prediction is None
    assert desktop.ceiling_tok_per_s is None
    streamed = size("kimi-k2.6", "desktop-ddr5-6000", disk_gb_per_s=7.0)
    assert streamed.ceiling_tok_per_s == pytest.approx(
        7e9 / (streamed.places.streamed_share * streamed.reads.home_bytes), rel=1e-9
    )
    mac = size("kimi-k2.6", "mac-studio-m2-ultra-192gb", format="UD-Q2_K_XL")
    assert not mac.places.fits  # article 3: 340 GB do not go into 192
    assert size("kimi-k2.6", "4x-rtx-3090-256gb", format="UD-Q2_K_XL").places.fits


def test_everything_on_gpus_is_a_ceiling_only():
    """Facts section 3: five H200 by capacity."""
    assert size("kimi-k2.6", "forge-moe-gen6+5x-h200", context=262144).places.mode == "fast"
    four = size("kimi-k2.6", "forge-moe-gen6+4x-h200", context=262144)
    assert four.places.mode == "hybrid"
    fast = size("kimi-k2.6", "forge-moe-gen6+8x-h200")
    assert fast.prediction is None
    assert fast.ceiling_tok_per_s == pytest.approx(
        8 * 4800e9 / (fast.reads.fast_expert_bytes + 21.1e9 + 0.58e9), rel=0.001
    )


def test_a_measured_machine_brings_the_eta_of_its_format():
    preset = Machine.preset("forge-moe-gen4")
    kernels = {"avx512/bf16/bf16": 0.9, "avx512/int4_g32/int8": 0.5, "avx512/int8_g32/int8": 0.4}
    measured = preset.model_copy(update={"source": "calibration", "kernel_efficiency": kernels})
    one = size("kimi-k2.6", measured)
    assert one.prediction.eta == 0.5
    assert one.prediction.tok_per_s < size("kimi-k2.6", preset).prediction.tok_per_s
    assert any("measured on this machine, eta 0.50 (avx512/int4_g32/int8)" in text for text in one.caveats)
    other = size("kimi-k2.6", measured, format="Q4_K_M")
    assert other.prediction.eta == 0.4
    assert any("none of Q4_K_M" in text for text in other.caveats)
    nothing = size("kimi-k2.6", measured.model_copy(update={"kernel_efficiency": {}}))
    assert nothing.prediction.eta == 1
    assert any("no kernel measured" in text for text in nothing.caveats)
    assert one.prediction.coverage is None
    assert "nobody knows" in one.summary()["its error"]


def test_models_unlike_the_points_say_so():
    def told(*arguments, **options):
        return " | ".join(size(*arguments, **options).caveats)

    assert "MiniMax-M2, Qwen3-30B" in told("qwen3-235b-a22b", "forge-moe-gen4+rtx-4090")
    assert "scaled to 78 layers" in told("glm-5", "forge-moe-gen6+2x-h200")
    assert size("glm-5", "forge-moe-gen6+2x-h200").prediction.coverage is None
    alone = size("qwen3-30b-a3b", "desktop-ddr5-6000")
    assert "ends at the ceiling" in " ".join(alone.caveats)
    assert alone.prediction.interval_tok_per_s[1] == alone.ceiling_tok_per_s
    assert "t0 is theirs" not in told("kimi-k2.6", "forge-moe-gen4")
    mac = size("deepseek-v3", "mac-studio-m3-ultra-512gb", format="Q4_K_M")
    assert "unified" in " ".join(mac.caveats)
    assert mac.prediction.coverage is None
    assert mac.prefill.tok_per_s is None


def test_losses_stand_beside_the_prediction():
    one = size("kimi-k2.6", "forge-moe-gen4")
    rows = one.other_losses()
    assert rows["relative time"]["tok_per_s"] == pytest.approx(one.prediction.tok_per_s, rel=0.01)
    assert set(one.to_dict()["by_other_losses"]) == {"relative speed", "logarithm", "absolute time"}
    assert "12.5%, 17.1%" in one.summary()["other losses"]
    assert size("kimi-k2.6", "desktop-ddr5-6000").other_losses() == {}


def test_hits_without_the_memory_for_them_are_told():
    few = size("kimi-k2.6", "forge-moe-gen6", reads_per_layer_step=1.0)
    assert any("their memory is not counted" in text for text in few.caveats)
    spec = few.spec
    slots = round(12 * spec.num_moe_layers * recipe("native").expert_bytes(spec))
    with_slots = size("kimi-k2.6", "forge-moe-gen6", reads_per_layer_step=1.0, routed_fast_bytes=slots)
    assert not any("their memory is not counted" in text for text in with_slots.caveats)
    assert with_slots.places.fast_bytes - few.places.fast_bytes == slots


def test_sparse_attention_reads_its_keys_and_the_chosen_tokens():
    spec = ModelSpec.preset("deepseek-v3.2")
    read, held = cache_read_bytes(spec, 100_000, 1), spec.kv_cache_bytes(100_000)
    assert read == 2048 * 70272 + spec.memory(100_000).bytes_of_part["indexer_keys"]
    assert read < held
    assert cache_read_bytes(spec, 1000, 2) == spec.kv_cache_bytes(1000, 2)


def test_measured_unions_come_from_the_trace():
    rng = random.Random(3)
    trace = seeded_trace(rng.randrange(10**6), num_requests=6)
    header = trace.header
    spec = ModelSpec.preset("olmoe-1b-7b").model_copy(
        update={"n_routed_experts": header.num_experts, "num_experts_per_tok": header.top_k}
    )
    alone, _ = measured_union(trace, spec, 1)
    assert alone <= header.top_k
    last = alone
    for batch in (2, 4, 6):
        distinct, told = measured_union(trace, spec, batch)
        assert last < distinct <= batch * header.top_k
        assert f"one token of each of {batch} requests" in told
        last = distinct
    _, told = measured_union(trace, spec, 7)
    assert "consecutive tokens of one request" in told
    with pytest.raises(ValueError, match="its unions say nothing here"):
        measured_union(trace, ModelSpec.preset("kimi-k2.6"), 2)


def test_refusals_by_name():
    with pytest.raises(ValueError, match=r"model is .*expected one of"):
        size("kimi", "forge-moe-gen4")
    with pytest.raises(ValueError, match="machine preset is forge"):
        size("kimi-k2.6", "forge")
    with pytest.raises(ValueError, match="format: expected one of"):
        size("kimi-k2.6", "forge-moe-gen4", format="Q3")
    with pytest.raises(ValueError, match="context: expected an integer"):
        size("kimi-k2.6", "forge-moe-gen4", context=-1)
    with pytest.raises(ValueError, match="of kimi-k3: expected a model whose tensors are all known"):
        size("kimi-k3", "forge-moe-gen4")
    with pytest.raises(ValueError, match="reads per layer-step are -1"):
        size("kimi-k2.6", "forge-moe-gen4", reads_per_layer_step=-1)
    with pytest.raises(ValueError, match="distinct experts of a layer are 9, expected at most 8"):
        size("kimi-k2.6", "forge-moe-gen4", distinct=9)
    with pytest.raises(ValueError, match="disk rate is 0"):
        size("kimi-k2.6", "desktop-ddr5-6000", disk_gb_per_s=0)
    bare = Machine.detect()
    with pytest.raises(ValueError, match="has no read rate"):
        bandwidth_gb_per_s(bare)
    places = size("kimi-k2.6", "forge-moe-gen4").places
    with pytest.raises(ValueError, match="expected at most 8"):
        step_reads(ModelSpec.preset("kimi-k2.6"), recipe("native"), places, context=1, distinct=8.5)


def test_sizing_needs_neither_torch_nor_pandas():
    import subprocess
    import sys

    code = (
        "import sys\n"
        "for name in ('torch', 'pandas', 'transformers', 'plotly'): sys.modules[name] = None\n"
        "from moelab.sizing import size\n"
        "print(round(size('kimi-k2.6', 'forge-moe-gen4').prediction.tok_per_s, 1))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 8 < float(done.stdout) < 16
