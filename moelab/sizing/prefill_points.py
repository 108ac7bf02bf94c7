"""Published prefill rates, each with its source: what the rates of computing are taken from.  Floor 2.

`unit`: "vector" (AVX2, AVX-512) or "amx", as the page says. `cpu_share` of the routed experts is computed on the CPU,
and everything else too where `mode` is "cpu". `chunk`: tokens that run together, the prompt where nothing is said.
`OVER_LINK`: experts copied to the GPUs layer by layer and computed there, which no model here covers.

It does not know clocks, threads that were left out, or how a page counted its prompt (306: 512 tokens assumed).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PrefillPoint:
    """One published rate. `expert_bits` per weight of the routed experts; GB = 1e9 bytes."""

    id: int
    model: str
    hardware: str
    num_cores: int
    unit: str
    bandwidth_gb_per_s: float
    mode: str
    expert_bits: float
    top_k: int
    cpu_share: float
    prompt: int
    chunk: int
    tok_per_s: float
    source: str


_KT, _K2 = "ktransformers doc/en/DeepseekR1_V3_tutorial.md", "ktransformers doc/en/Kimi-K2-Thinking.md"
_ONE, _TWO = "1 x Xeon 6454S, RTX 4090D", "2 x Xeon 6454S, RTX 4090D"
_LMSYS = "lmsys.org/blog/2025-07-14-intel-xeon-optimization, by way of level1techs"
_P = PrefillPoint

PREFILL_POINTS: tuple[PrefillPoint, ...] = (
    _P(301, "deepseek-v3", _ONE, 32, "vector", 307.2, "hybrid", 4.85, 8, 1.0, 500, 500, 54.21, _KT),
    _P(302, "deepseek-v3", _TWO, 64, "vector", 614.4, "hybrid", 4.85, 8, 1.0, 500, 500, 82.94, _KT),
    _P(303, "deepseek-v3", _ONE, 32, "vector", 307.2, "hybrid", 4.85, 6, 1.0, 500, 500, 65.14, _KT),
    _P(304, "deepseek-v3", _TWO, 64, "vector", 614.4, "hybrid", 4.85, 6, 1.0, 500, 500, 97.32, _KT),
    _P(305, "deepseek-v3", "2 x Xeon 6454S, RTX 4090", 64, "vector", 614.4, "hybrid", 4.85, 8, 1.0, 1930, 1930, 88.5,
       _KT),
    _P(306, "deepseek-r1", "1 x Xeon 6980P", 128, "vector", 512.0, "cpu", 3.483, 8, 1.0, 512, 512, 93.0,
       "ikawrakow/ik_llama.cpp#541"),
    _P(307, "kimi-k2-instruct", "1 x EPYC 9965", 192, "vector", 274.9, "cpu", 2.892, 8, 1.0, 512, 512, 107.63,
       "ikawrakow/ik_llama.cpp#612"),
    _P(311, "deepseek-v3", _TWO, 64, "amx", 614.4, "hybrid", 8.5, 8, 1.0, 1024, 1024, 185.96, _KT),
    _P(312, "deepseek-v3", _TWO, 64, "amx", 614.4, "hybrid", 8.5, 8, 1.0, 2048, 2048, 255.26, _KT),
    _P(313, "deepseek-v3", _TWO, 64, "amx", 614.4, "hybrid", 8.5, 8, 1.0, 4096, 4096, 252.58, _KT),
    _P(314, "deepseek-v3", _TWO, 64, "amx", 614.4, "hybrid", 8.5, 8, 1.0, 8192, 8192, 195.62, _KT),
    _P(315, "deepseek-v3", _TWO, 64, "amx", 614.4, "hybrid", 8.5, 6, 1.0, 2048, 2048, 286.55, _KT),
    _P(316, "deepseek-r1", "2 x Xeon 6980P MRDIMM-8800", 256, "amx", 1689.6, "cpu", 8.0, 8, 1.0, 1024, 1024, 543.2,
       _LMSYS),
    _P(317, "kimi-k2-thinking", "2 x Xeon 6454S, 8 x L20", 64, "amx", 614.4, "hybrid", 4.5, 8, 184 / 384, 37888, 4096,
       577.74, _K2),
)  # fmt: skip


@dataclass(frozen=True)
class LinkPrefill:
    """Experts copied over the links and computed on the GPUs."""

    model: str
    hardware: str
    prompt: int
    tok_per_s: float
    source: str


_NATIVE = "ktransformers doc/en/Kimi-K2-Thinking-Native.md"
_M2 = "ktransformers doc/en/kt-kernel/MiniMax-M2.1-Tutorial.md"
OVER_LINK: tuple[LinkPrefill, ...] = (
    LinkPrefill("kimi-k2-thinking", "1 x RTX 4090 48 GB, PCIe 4", 32768, 290.0, _NATIVE),
    LinkPrefill("kimi-k2-thinking", "2 x RTX 4090 48 GB, PCIe 4", 32768, 529.0, _NATIVE),
    LinkPrefill("kimi-k2-thinking", "4 x RTX 4090 48 GB, PCIe 4", 32768, 775.0, _NATIVE),
    LinkPrefill("kimi-k2-thinking", "8 x RTX 4090 48 GB, PCIe 4", 32768, 1060.0, _NATIVE),
    LinkPrefill("minimax-m2", "1 x RTX 4090 48 GB, PCIe 4", 32768, 1385.0, _M2),
    LinkPrefill("minimax-m2", "1 x RTX 5090, PCIe 5", 32768, 2540.0, _M2),
)
