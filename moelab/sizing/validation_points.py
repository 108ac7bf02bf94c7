"""Published decode rates at batch 1, each with its source: what the speed model is fitted on.  Floor 2.

Retyped from the sources that each row names, by way of facts/models_and_sizing.md section 4, which keeps the ids.
`mode`: "hybrid" (a GPU holds what every token uses, the CPU reads the routed experts) or "cpu" (the CPU reads all).
`cpu_gb_per_token` is computed from the architecture and the file's bits per weight. Bandwidths are the peak of the
memory channels except where `bandwidth_kind` says measured or assumed.

It does not know prompt lengths beyond the notes, nor engine versions, and no row was measured by moelab. Rates of other
families and of batches: `outside_points`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ValidationPoint:
    """One published rate. GB = 1e9 bytes."""

    id: int
    model: str
    weights: str
    hardware: str
    bandwidth_gb_per_s: float | None
    bandwidth_kind: str
    mode: str
    cpu_gb_per_token: float
    tok_per_s: float
    source: str
    note: str = ""
    num_layers: int = 61  # of the model: DeepSeek-V3 and Kimi K2 both have 61

    @property
    def ceiling_tok_per_s(self) -> float | None:
        """Bandwidth over bytes: what reading alone would allow."""
        return None if self.bandwidth_gb_per_s is None else self.bandwidth_gb_per_s / self.cpu_gb_per_token


_KT = "ktransformers doc/en/DeepseekR1_V3_tutorial.md"
_K2 = "ktransformers doc/en/Kimi-K2.md"
_OSDI = "arXiv 2606.10493 (OSDI 26), abstract"
_P = ValidationPoint

VALIDATION_POINTS: tuple[ValidationPoint, ...] = (
    _P(1, "deepseek-v3", "Q4_K_M", "1 x Xeon 6454S, RTX 4090D", 307.2, "peak", "hybrid", 12.39, 8.73, _KT,
       "KT 0.2, prompt of 500 tokens"),
    _P(2, "deepseek-v3", "Q4_K_M", "2 x Xeon 6454S, RTX 4090D", 614.4, "peak", "hybrid", 12.39, 12.21, _KT,
       "KT 0.2, experts replicated on both sockets"),
    _P(3, "deepseek-v3", "Q4_K_M, 6 of 8 experts", "2 x Xeon 6454S, RTX 4090D", 614.4, "peak", "hybrid", 9.29, 13.69,
       _KT, "ablation of top-k"),
    _P(4, "deepseek-v3", "Q4_K_M, 6 of 8 experts", "1 x Xeon 6454S, RTX 4090D", 307.2, "peak", "hybrid", 9.29, 10.3,
       _KT, "ablation of top-k"),
    _P(5, "deepseek-v3", "Q4_K_M", "2 x Xeon 6454S", 614.4, "peak", "cpu", 22.2, 4.51, _KT,
       "llama.cpp, not aware of NUMA"),
    _P(6, "deepseek-r1", "Q4_K_M", "1 x EPYC 9654 12 x DDR5-4800, RTX 4090", 460.8, "peak", "hybrid", 12.39, 14.0,
       "kvcache-ai/ktransformers#314", "context 1K; 10 tok/s at 10K"),
    _P(7, "deepseek-r1", "Q4_K_M", "Threadripper PRO 7975WX 8 x DDR5-5200, RTX 4090D", 332.8, "peak", "hybrid", 12.39,
       10.48, "kvcache-ai/ktransformers#1115"),
    _P(9, "deepseek-r1", "Q4_K_M", "2 x Xeon Gold 6330 16 x DDR4, L40", 375.4, "peak, DDR4-2933 assumed", "hybrid",
       12.39, 7.0, "kvcache-ai/ktransformers#824", "USE_NUMA=1; 4 tok/s without"),
    _P(11, "kimi-k2.5", "native int4", "Xeon w7-3465X 8 x DDR5-5600, RTX PRO 6000", 358.4, "peak", "hybrid", 11.89,
       10.3, "kvcache-ai/ktransformers#1816", "28 threads; 11.8 with 52; about 14 with dynamic expert update"),
    _P(13, "kimi-k2-thinking", "native int4", "2 x Xeon 6960P 24 x MRDIMM-8800, SNC3", 1689.6, "peak", "hybrid",
       11.89, 12.8, "kvcache-ai/ktransformers#1730", "STREAM triad 380 GB/s in SNC3; 0.5 tok/s in HEX mode"),
    _P(14, "kimi-k2-instruct", "Q4_K_M", "1 socket, unnamed, one consumer GPU", 307.2, "assumed 8 x DDR5-4800",
       "hybrid", 12.82, 10.0, _K2, "about 10"),
    _P(15, "kimi-k2-instruct", "Q4_K_M", "2 sockets, unnamed, one consumer GPU", 614.4, "assumed 16 x DDR5-4800",
       "hybrid", 12.82, 14.0, _K2, "about 14"),
    _P(17, "kimi-k2-instruct", "IQ2_KL 2.892 bits", "1 x EPYC 9965", 274.9, "measured (mlc, 256 GiB/s)", "cpu", 14.39,
       13.39, "ikawrakow/ik_llama.cpp#612", "empty context"),
    _P(18, "deepseek-r1", "IQ3_KT 3.483 bits", "1 x Xeon 6980P", 512.0, "measured (PR#534)", "cpu", 19.36, 8.22,
       "ikawrakow/ik_llama.cpp#541", "a trellis format, bound by computing"),
    _P(20, "deepseek-r1", "INT8", "2 x Xeon 6980P MRDIMM-8800", 1689.6, "peak", "cpu", 36.63, 14.71,
       "lmsys blog 2025-07-14, by way of level1techs", "SGLang, 67.99 ms a token; llama.cpp 172.01"),
    _P(21, "deepseek-r1", "Q8_0", "1 x EPYC 9135 or 9115 12 x DDR5-5600", 537.6, "peak", "cpu", 38.91, 7.17,
       "xlab.tencent.com 2025-03-16", "its highest rate"),
    _P(22, "deepseek-r1", "Q4 of ollama", "AWS Graviton4, 96 cores, 12 x DDR5-5600", 537.6, "peak", "cpu", 22.2, 10.0,
       "kvcache-ai/ktransformers#646"),
    _P(24, "deepseek-v3", "int4", "2 commodity sockets, RTX 5090", None, "not in the abstract", "hybrid", 11.49, 28.0,
       _OSDI),
    _P(25, "deepseek-v3", "FP8", "2 commodity sockets, RTX 5090", None, "not in the abstract", "hybrid", 20.43, 21.5,
       _OSDI),
)  # fmt: skip
