"""The claims of five articles about Kimi K2.6 on one machine, each with the formula that recomputes it.  Floor 2.

Articles, as the facts number them: 0 "Running Kimi 2.6 on a single Forge MoE node", 1 the KTransformers pattern on dual
Xeon, 2 "Kimi K2.6 Local Deployment: Hardware Requirements and Cost Analysis", 3 a RAM calculator, 4 a VRAM
calculator. Numbers of the articles stand here as stated; everything else comes from this room. Benchmark scores
and dates are left out: nothing here can recompute them. Claims about prices: `price_claims`, with prices given.
"""

from __future__ import annotations

from collections.abc import Callable

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.domain.units import GB
from moelab.sizing.claims import Claim, Range
from moelab.sizing.cost import CostComparison
from moelab.sizing.places import need_of
from moelab.sizing.prefill import bandwidth_gb_per_s
from moelab.sizing.prefill_points import OVER_LINK, PREFILL_POINTS
from moelab.sizing.prices import MachineCost, TokenPrices, Traffic
from moelab.sizing.recipes import recipe
from moelab.sizing.size import size
from moelab.sizing.speed import ablation, with_bandwidth

_K26 = "kimi-k2.6"
_LONGEST = 262144
_INFINITE = float("inf")


def _spec(name: str = _K26) -> ModelSpec:
    return ModelSpec.preset(name)


def _weights(name: str) -> Callable[[], float]:
    return lambda: recipe(name).weight_bytes(_spec()) / GB


def _cache(context: int) -> Callable[[], float]:
    return lambda: _spec().kv_cache_bytes(context) / GB


def _tb(*presets: str) -> Range:
    rates = [bandwidth_gb_per_s(Machine.preset(name)) / 1000 for name in presets]
    return min(rates), max(rates)


def _predicted(machine: str, format_name: str = "native", context: int = 8192, model: str = _K26) -> Range:
    predicted = size(model, machine, format=format_name, context=context).prediction
    assert predicted is not None
    return predicted.interval_tok_per_s


def _gen6_over_gen4() -> Range:
    """By the fit of all points, and by the two terms that the ablation of one box gives."""
    rates, ratios = [], []
    for generation in (6, 4):
        predicted = size(_K26, f"forge-moe-gen{generation}+rtx-4090").prediction
        assert predicted is not None
        rates.append(predicted.tok_per_s)
    ratios.append(rates[0] / rates[1])
    gb_per_token = recipe("native").expert_bytes(_spec()) * _spec().num_moe_layers * _spec().num_experts_per_tok / GB
    for eta, t0_s in ablation().values():
        gen4, gen6 = (
            gb_per_token / (eta * bandwidth_gb_per_s(Machine.preset(f"forge-moe-gen{number}"))) + t0_s
            for number in (4, 6)
        )
        ratios.append(gen4 / gen6)
    return min(ratios), max(ratios)


def _two_sockets_over_one() -> float:
    point = {point.id: point.tok_per_s for point in with_bandwidth("hybrid")}
    return point[2] / point[1]


def _best_one_socket() -> float:
    return max(p.tok_per_s for p in with_bandwidth("hybrid") if p.hardware.startswith(("1 x", "Threadripper")))


def _cpu_ceiling(gb_per_s: float, format_name: str) -> Callable[[], float]:
    """Bandwidth over all bytes that one token reads, everything in one memory."""

    def ceiling() -> float:
        spec = _spec()
        need = need_of(spec, recipe(format_name), 0)
        read = need.always_bytes + need.routed_bytes * spec.num_experts_per_tok / spec.n_routed_experts
        return gb_per_s * GB / read

    return ceiling


def _fits(machine: str, format_name: str, context: int = 8192) -> Callable[[], float]:
    return lambda: float(size(_K26, machine, format=format_name, context=context).places.fits)


def _gpus_for_everything(gpu: str) -> float:
    """Fewest GPUs of a kind that hold weights and cache at 256K, by capacity alone."""
    need = need_of(_spec(), recipe("Q4_K_M"), _LONGEST).total_bytes
    room = size(_K26, f"forge-moe-gen6+{gpu}").places.fast_room_bytes
    return float(-(-need // room))


def _per_layer_step() -> float:
    """MB that cross the link in a token where experts compute at home: one activation down and one up, each layer."""
    spec = _spec()
    return spec.num_moe_layers * 2 * 2 * spec.hidden_size / 1e6


def _prefill_minutes() -> Range:
    """Minutes of 32K tokens: the fastest published for Kimi K2, and the slowest by a CPU alone."""
    fastest = max(one.tok_per_s for one in OVER_LINK if one.model.startswith("kimi"))
    alone = min(one.tok_per_s for one in PREFILL_POINTS if one.mode == "cpu")
    return 32768 / 60 / fastest, 32768 / 60 / alone


_READ = "bandwidth / (always + K of E routed bytes), a ceiling"
_KV = "L x (kv_lora_rank + qk_rope_head_dim) x 2 B x context"

ARTICLE_CLAIMS: tuple[Claim, ...] = (
    Claim("0", "roughly a trillion parameters", 1000, "B", lambda: _spec().total_params / 1e9, "sum over all tensors"),
    Claim("0", "a few tens of billions active", (20, 50), "B", lambda: _spec().active_params / 1e9,
          "always-active + L x K x 3 H I, without the embedding"),
    Claim("0", "aggregate bandwidth of 0.6 to 1.7 TB/s", (0.6, 1.7), "TB/s", lambda: _tb("forge-moe-gen4",
          "forge-moe-gen6"), "sockets x channels x 8 B x MT/s", "peaks; one owner measured 380 and 840 GB/s of 1,690"),
    Claim("0", "about 500 GB at roughly 4 bits", 500, "GB", _weights("native"), "native int4 with scales, rest bf16",
          "4.0 bits leave out scales (4.5) and what stays bf16", tolerance=0.1),
    Claim("0", "full precision does not fit in 1.5 to 3 TB", (3000, _INFINITE), "GB", _weights("bf16"), "2 B a value",
          "and the release itself is int4: 594 GB are its full precision"),
    Claim("0", "Gen 6 roughly doubles Gen 4", 2.0, "times", _gen6_over_gen4,
          "bytes / (eta x BW) + t0 of both, by the fit and by the ablation",
          "t0 does not shrink with bandwidth (2.75 times here); newer engines have less of it and gain more", 0.15),
    Claim("1", "current generation: 0.6 to 0.7 TB/s", (0.6, 0.7), "TB/s",
          lambda: _tb("2x-xeon-gen4-ddr5-4800", "2x-xeon-gen5-ddr5-5600"), "2 x 8 channels x 8 B x MT/s", "peak"),
    Claim("1", "newer generation: 1.2 to 1.7 TB/s", (1.2, 1.7), "TB/s",
          lambda: _tb("2x-xeon-gen6-ddr5-6400", "2x-xeon-gen6-mrdimm-8800"), "2 x 12 channels x 8 B x MT/s", "peak"),
    Claim("1", "two to three times the decode of the older", (2, 3), "times", _gen6_over_gen4,
          "bytes / (eta x BW) + t0 of both, by the fit and by the ablation",
          "the fixed part of a token is not bandwidth"),
    Claim("1", "throughput tracks bandwidth almost linearly: twice the sockets", 2.0, "times", _two_sockets_over_one,
          "published: one box, one and two sockets", "12.21 / 8.73 tok/s with replicated experts", 0.15),
    Claim("1", "one socket is too slow for what two sockets serve", (0, 12.21), "tok/s", _best_one_socket,
          "best published rate of one socket, beside point 2's two"),
    Claim("1", "experts must be replicated per socket", 2, "copies",
          lambda: 1.0 if size(_K26, "forge-moe-gen4", layout="split").places.fits else 2.0,
          "a row split reads at the bandwidth of all nodes", "replicas do too, for 2 x 571 GB", 0.0),
    Claim("1", "671 billion parameters", 671, "B", lambda: _spec("deepseek-v3").total_params / 1e9,
          "sum over all tensors", "684.5 with the MTP layer on disk", 0.001),
    Claim("1", "0.6 to 0.7 TB/s: usable interactive decode on 671B", (8, _INFINITE), "tok/s",
          lambda: _predicted("2x-xeon-gen4-ddr5-4800+rtx-4090", "Q4_K_M", 1024, "deepseek-v3"),
          "fit, its interval", "reading speed, about 8 tok/s, taken as usable", is_prediction=True),
    Claim("2", "UD-Q2_K_XL is 340 GB", 340, "GB", _weights("UD-Q2_K_XL"), "experts 2.58 bits, rest Q8_0",
          "our bits for it come from this size", 0.01),
    Claim("2", "350 GB of RAM and VRAM are enough for it", (0, 350), "GB",
          lambda: need_of(_spec(), recipe("UD-Q2_K_XL"), 32768).total_bytes / GB, "weights + cache at 32K", "", 0.0),
    Claim("2", "UD-Q4_K_XL is 585 GB", 585, "GB", _weights("UD-Q4_K_XL"), "experts 4.5 bits, rest Q8_0", "", 0.01),
    Claim("2", "UD-Q8_K_XL is 595 GB", 595, "GB", _weights("UD-Q8_K_XL"), "experts 4.5 bits, rest bf16",
          "only 11.7 B parameters change between the two; the vision tower adds 0.9 GB", 0.01),
    Claim("2", "Q4 doubles the memory of Q2", 2, "times",
          lambda: _weights("UD-Q4_K_XL")() / _weights("UD-Q2_K_XL")(), "585 / 340"),
    Claim("2", "bf16 takes about 2 TB", 2000, "GB", _weights("bf16"), "2 B a value"),
    Claim("2", "1.04 trillion parameters", 1040, "B", lambda: _spec().total_params / 1e9, "sum over all tensors",
          "1,043 if all 61 layers were MoE; the first is dense", 0.01),
    Claim("2", "32 billion active", 32, "B", lambda: _spec().active_params / 1e9, "without the embedding", "", 0.02),
    Claim("2", "384 experts", 384, "", lambda: _spec().n_routed_experts, "config", "and one shared", 0.0),
    Claim("2", "eight active parameters", 8, "", lambda: float(_spec().active_params), "active parameters",
          "eight experts a layer, and one shared"),
    Claim("2", "the router must access the complete weight matrix", 1.0, "of the weights",
          lambda: _spec().params_of_part["router"] / _spec().total_params, "router parameters / all"),
    Claim("2", "36% fewer active parameters than K2.5", 0.36, "fewer",
          lambda: 1 - _spec().active_params / _spec("kimi-k2.5").active_params, "1 - active / active of K2.5",
          "the two configs are the same architecture"),
    Claim("2", "DDR5 gives about 100 GB/s", 100, "GB/s",
          lambda: bandwidth_gb_per_s(Machine.preset("desktop-ddr5-6000")), "2 channels x 8 B x 6000",
          "a desktop; servers have 8 to 24 channels"),
    Claim("2", "384 GB of DDR5 and 16 cores: 8 to 12 tok/s at Q2", (8, 12), "tok/s", _cpu_ceiling(100, "UD-Q2_K_XL"),
          _READ, "with the article's own 100 GB/s; possible on 12 channels"),
    Claim("2", "a prompt of 32K takes 17 minutes", 17, "min", _prefill_minutes,
          "32,768 / published prefill rates, GPUs' best to CPU alone", "prefill is not decode", 0.2),
    Claim("2", "4 x RTX 3090 and 256 GB hold 340 GB", 1, "fits", _fits("4x-rtx-3090-256gb", "UD-Q2_K_XL", 32768),
          "weights + cache at 32K within RAM and GPUs, system left out", "GiB are 7% more than GB"),
    Claim("2", "about 7 tok/s on it", 7, "tok/s", lambda: _predicted("4x-rtx-3090-256gb", "UD-Q2_K_XL", 32768),
          "fit, its interval; experts on GPUs by uniform routing", "", 0.0, True),
    Claim("2", "weights are shuttled over PCIe as experts change", 6800, "MB a token", _per_layer_step,
          "L x 2 x 2 B x H: activations down and up", "experts compute where they lie"),
    Claim("3", "768 GB of RAM for Q4_K_M at 8K", (0, 768), "GB",
          lambda: need_of(_spec(), recipe("Q4_K_M"), 8192).total_bytes / GB, "weights + cache", "", 0.0),
    Claim("3", "Q4_K_M weights are 562.5 GB", 562.5, "GB", _weights("Q4_K_M"), "llama-quantize's mixture, 4.84 bits",
          "1,000 B at 4.5 bits", 0.02),
    Claim("3", "FP16 is about 2,000 GB", 2000, "GB", _weights("bf16"), "2 B a value"),
    Claim("3", "and runs in 1,024 GB", (0, 1024), "GB", _weights("bf16"), "2 B a value", "contradicts itself"),
    Claim("3", "45 GB/s: 0.5 tok/s", 0.5, "tok/s", _cpu_ceiling(45, "Q4_K_M"), _READ),
    Claim("3", "96 GB/s: 1.0 tok/s", 1.0, "tok/s", _cpu_ceiling(96, "Q4_K_M"), _READ),
    Claim("3", "300 GB/s: 3.0 tok/s", 3.0, "tok/s", _cpu_ceiling(300, "Q4_K_M"), _READ),
    Claim("3", "1,008 GB/s: 5.0 tok/s", 5.0, "tok/s", _cpu_ceiling(1008, "Q4_K_M"), _READ,
          "the four imply 90, 96, 100 and 202 GB a token: neither active nor total"),
    Claim("3", "cache of 0.08 GB at 8K", 0.08, "GB", _cache(8192), _KV),
    Claim("3", "cache past hundreds of GB at 262K", (100, _INFINITE), "GB", _cache(_LONGEST), _KV,
          "655 GB only where an engine expands the latent into heads"),
    Claim("3", "a Mac Studio of 192 GB is a profile for it", 1, "fits",
          _fits("mac-studio-m2-ultra-192gb", "UD-Q2_K_XL"), "340 GB within 192 GiB"),
    Claim("4", "1.1 trillion parameters", 1100, "B", lambda: _spec().total_params / 1e9, "sum over all tensors"),
    Claim("4", "616 GB at Q4_K_M", 616, "GB", _weights("Q4_K_M"), "llama-quantize's mixture, 4.84 bits",
          "1,100 B at 4.48 bits: two errors cancel", 0.01),
    Claim("4", "80 layers", 80, "", lambda: _spec().num_hidden_layers, "config", "", 0.0),
    Claim("4", "hidden size 8,192", 8192, "", lambda: _spec().hidden_size, "config", "", 0.0),
    Claim("4", "8 key-value heads: 2,048 cached values a layer", 2048, "values",
          lambda: (_spec().kv_lora_rank or 0) + (_spec().qk_rope_head_dim or 0), "kv_lora_rank + qk_rope_head_dim",
          "MLA keeps a latent, not heads", 0.0),
    Claim("4", "cache of 85.9 GB at 256K", 85.9, "GB", _cache(_LONGEST), _KV, "2 x 80 x 8 x 128 x 2 B x 262,144"),
    Claim("4", "772 GB in all", 772, "GB", lambda: need_of(_spec(), recipe("Q4_K_M"), _LONGEST).total_bytes / GB,
          "weights + cache at 256K", "10% overhead on top of a wrong cache"),
    Claim("4", "active-only: 114 GB of GPU memory at 256K", 114, "GB",
          lambda: (need_of(_spec(), recipe("native"), _LONGEST).always_bytes + need_of(_spec(), recipe("native"),
          _LONGEST).cache_bytes) / GB, "what every token reads + cache",
          "which experts are active changes with every token"),
    Claim("4", "six H200", 6, "GPUs", lambda: _gpus_for_everything("h200"), "(weights + cache) / room of one",
          "by capacity; engines that split by heads want eight", 0.0),
    Claim("4", "ten GPUs of 80 GB", 10, "GPUs", lambda: _gpus_for_everything("h100-80gb"),
          "(weights + cache) / room of one", "by capacity", 0.0),
    Claim("4", "cache of MLA right to about 10%", (0, 0.10), "off", lambda: 85.9 / _cache(_LONGEST)() - 1,
          "85.9 / recomputed - 1"),
    Claim("4", "192 GB of unified memory run it in active-only mode", 1, "fits",
          _fits("mac-studio-m2-ultra-192gb", "Q4_K_M"), "weights + cache within 192 GiB",
          "the rest would stream from disk at every token"),
)  # fmt: skip


def price_claims(prices: TokenPrices, rent: MachineCost, box: MachineCost, machine: str) -> tuple[Claim, ...]:
    """The claims about money: `prices` of the API, `rent` per month or the purchase of a `box`, `machine` a preset."""
    predicted = size(_K26, machine).prediction
    assert predicted is not None
    rate = predicted.tok_per_s
    low, high = predicted.interval_tok_per_s
    output_only, input_only = Traffic(), Traffic(input_share=1.0)

    def payback_years() -> Range:
        years = []
        for traffic in (output_only, input_only):
            months = CostComparison(prices, box, traffic, rate, prefill_tok_per_s=100.0).payback_months(50e6)
            years.append(_INFINITE if months is None else months / 12)
        return min(years), max(years)

    def needed() -> float:
        wanted = CostComparison(prices, rent, output_only, rate).break_even_tok_per_s
        return _INFINITE if wanted is None else wanted

    source = f"prices of {prices.date}: {prices.source}"
    return (
        Claim("0", "a fixed monthly node beats the per-token price once use is steady", (0, high), "tok/s", needed,
              "rate, day and night, at which output pays the rent",
              f"one stream makes {low:.0f} to {high:.0f} tok/s; batches shift it; {source}"),
        Claim("2", "950 dollars per million input tokens", 950, prices.currency, lambda: prices.input_per_million,
              "price list", f"its own summary says 0.95; {source}"),
        Claim("2", "0.95 dollars per million input tokens", 0.95, prices.currency, lambda: prices.input_per_million,
              "price list", f"leaves out output, {prices.output_per_million:g}"),
        Claim("2", "50 million tokens a month soon exceed the price of the hardware", (0, 2), "years", payback_years,
              "purchase / (API - running), all input to all output", f"{source}; {box.source}"),
    )  # fmt: skip
