"""Published rates outside the fit that was fixed beforehand: checks of it, other families, batches.  Floor 2.

Checks: hybrid rates of DeepSeek and Kimi that were found after the fit; it has never seen them.
Other families: grouped attention, narrower layers, engines of late 2025 and 2026. They have a fit of their own.
Batches: never fitted; what `size` says of each stands beside it. Read from the pages that each row names (2026-11-26),
which leave out much: GPU-resident experts where "unknown", memory speed where "assumed".

It does not know what those pages leave out, nor the context of a row beyond its note.
"""

from __future__ import annotations

from dataclasses import dataclass

from moelab.sizing.validation_points import ValidationPoint

OTHER_FAMILIES = "hybrid, other families"

_M2 = "ktransformers doc/en/kt-kernel/MiniMax-M2.1-Tutorial.md"
_XEON, _EPYC = "2 x Xeon 8488C", "2 x EPYC 9355"
_P = ValidationPoint

OTHER_FAMILY_POINTS: tuple[ValidationPoint, ...] = (
    _P(101, "minimax-m2", "FP8", f"{_XEON}, RTX 4090 48 GB", 614.4, "peak, 16 x DDR5-4800", OTHER_FAMILIES, 7.02, 21.8,
       _M2, "prompt 2K; experts on the GPU unknown", 62),
    _P(102, "minimax-m2", "FP8", f"{_XEON}, 2 x RTX 4090 48 GB", 614.4, "peak, 16 x DDR5-4800", OTHER_FAMILIES, 7.02,
       23.6, _M2, "prompt 2K; experts on the GPUs unknown", 62),
    _P(103, "minimax-m2", "FP8", f"{_EPYC}, RTX 5090", 1075.2, "peak, 24 x DDR5-5600", OTHER_FAMILIES, 7.02, 32.1, _M2,
       "prompt 2K; experts on the GPU unknown", 62),
    _P(104, "minimax-m2", "FP8", f"{_EPYC}, 2 x RTX 5090", 1075.2, "peak, 24 x DDR5-5600", OTHER_FAMILIES, 7.02, 35.9,
       _M2, "prompt 2K; experts on the GPUs unknown", 62),
    _P(105, "qwen3-30b-a3b", "bf16", "1 x EPYC 9355, 16 threads, RTX 5090", 537.6, "assumed 12 x DDR5-5600",
       OTHER_FAMILIES, 2.83, 52.5, "kvcache-ai/ktransformers#1914", "prompt 1K; 28 of 128 experts on the GPU", 48),
    _P(106, "gpt-oss-120b", "mxfp4", "Core i9-14900K, GPU of 8 GB used", 102.4, "assumed 2 x DDR5-6400",
       OTHER_FAMILIES, 1.90, 25.62, "gokawiil.com/article/74814 (llama.cpp, --n-cpu-moe 36)", "prompt 12.7K", 36),
    _P(107, "GLM-4.5-Air", "bf16", "2 sockets, unnamed, one consumer GPU", 614.4, "assumed 16 x DDR5-4800",
       OTHER_FAMILIES, 12.46, 11.0, "ktransformers doc/en/SmallThinker_and_Glm4moe.md", "about 11", 46),
)  # fmt: skip

CHECK_POINTS: tuple[ValidationPoint, ...] = (
    _P(111, "deepseek-r1", "Q4_K_M", "2 x EPYC 9135 24 x DDR5-6400, RTX 4090", 1228.8, "peak", "hybrid", 12.39, 17.3,
       "kvcache-ai/ktransformers#797", "2025-03, USE_NUMA=1, 57 ms between tokens"),
    _P(112, "deepseek-r1", "Q4_K_M", "Xeon 6, MRDIMM-8800, RTX 4090D", 1689.6, "peak, two sockets assumed", "hybrid",
       12.39, 17.0, "ktransformers doc/en/balance-serve.md", "0.2.4, one stream"),
    _P(113, "deepseek-v3", "Q4_K_M", "2 x Xeon 6454S, RTX 4090", 614.4, "peak", "hybrid", 12.39, 13.5,
       "ktransformers doc/en/DeepseekR1_V3_tutorial.md", "0.2.1, prompt 1K: the box of points 1 to 4, another GPU"),
    _P(114, "kimi-k2-instruct", "UD-Q4_K_XL", "2 x EPYC 9355, RTX PRO 6000", 1177.6, "assumed 23 x DDR5-6400",
       "hybrid", 10.9, 22.05, "ggml-org/llama.cpp#14642", "six of 60 layers of experts on the GPU; NPS4"),
)  # fmt: skip


@dataclass(frozen=True)
class BatchPoint:
    """A published rate of many streams. `machine`: a preset with the same memory and GPUs of the same rate and size.
    `model_tok_per_s`: what `size` says for it (a test computes it anew)."""

    id: int
    model: str
    weights: str
    hardware: str
    machine: str
    batch: int
    experts_on_gpus: int
    tok_per_s: float
    model_tok_per_s: float
    source: str
    note: str = ""


BATCH_POINTS: tuple[BatchPoint, ...] = (
    BatchPoint(201, "kimi-k2-thinking", "native", "2 x Xeon 6454S, 8 x L20 48 GB", "2x-xeon-gen4-ddr5-4800+8x-l20", 37,
               200, 45.91, 58.1, "ktransformers doc/en/Kimi-K2-Thinking.md (2025-11)",
               "AMXINT4, random tokens, prompts of 10, 800 ms between tokens"),
    BatchPoint(202, "deepseek-r1", "Q4_K_M", "Xeon 6, MRDIMM-8800 (two sockets assumed), RTX 4090D",
               "2x-xeon-gen6-mrdimm-8800+rtx-4090", 4, 0, 40.0, 37.3, "ktransformers doc/en/balance-serve.md (0.2.4)",
               "17 tok/s alone; four streams assumed, as in its example"),
)  # fmt: skip
