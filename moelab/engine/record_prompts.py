"""Record a list of prompts: every request runs to its end, and its routing goes to a trace folder.

One call = one capture. Batches are continuous: `batch_size` sequences decode together, and the next
prompt joins as soon as one ends. It does not know the command line. Floor 2.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moelab.domain.trace import Phase, Trace
from moelab.engine.generate import PREFILL_CHUNK, Sequence, check_sizes, run
from moelab.engine.generation import Generation
from moelab.engine.prompts import Prompt, domains_of, read_prompts
from moelab.engine.recording import record
from moelab.engine.sampling import Sampling

if TYPE_CHECKING:
    import pandas as pd

    from moelab.engine.engine import Engine


@dataclass(frozen=True)
class Capture:
    """A recorded trace folder and what was generated. The texts are here only, never in the folder."""

    path: Path
    trace: Trace
    generations: tuple[Generation, ...]
    batch_size: int

    def summary(self) -> dict[str, Any]:
        """Names as in `--json`; `seconds` is about what the generation took, loading left out."""
        phase = self.trace.tokens.phase
        decode_s = sum(g.decode_s for g in self.generations) / self.batch_size
        return {
            "folder": str(self.path),
            "requests": len(self.generations),
            "prefill_tokens": int((phase == Phase.PREFILL).sum()),
            "decode_tokens": int((phase == Phase.DECODE).sum()),
            "domains": ", ".join(self.trace.header.domains) or "none",
            "batch_size": self.batch_size,
            "seconds": round(sum(g.prefill_s for g in self.generations) + decode_s, 1),
        }

    def __repr__(self) -> str:
        return "Capture\n" + "\n".join(f"  {name}: {value}" for name, value in self.summary().items())

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(n)}</th><td>{escape(str(v))}</td></tr>" for n, v in self.summary().items())
        return f"<table><caption>Capture</caption>{rows}</table>"

    def to_frame(self) -> pd.DataFrame:
        """One row per request, texts included."""
        import pandas as pd

        return pd.concat([generation.to_frame() for generation in self.generations], ignore_index=True)


def record_prompts(
    engine: Engine,
    prompts: str | Path | SequenceOf[Prompt],
    out_dir: str | Path,
    *,
    batch_size: int = 1,
    keep_text: bool = False,
    progress: bool = True,
    seed: int = 0,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_at_end_token: bool = True,
    prefill_chunk: int = PREFILL_CHUNK,
    licence: str = "not stated",
    provenance: str | None = None,
    scores: bool | None = None,
    stale_gate: bool | None = None,
) -> Capture:
    """Run `prompts` (a prompts.jsonl or a list) and record into the new folder `out_dir`.

    Arguments and prompts are read, encoded and checked before the folder is made: what is wrong leaves nothing.
    `scores`, `stale_gate`: see `record`.
    """
    from tqdm.auto import tqdm

    check_sizes(batch_size, prefill_chunk)
    listed = list(prompts) if not isinstance(prompts, str | Path) else read_prompts(prompts)
    sampling = Sampling(temperature, top_k, top_p, seed)
    stop = None if stop_at_end_token else ()
    sequences: list[Sequence] = [
        engine.new_sequence(p.prompt, p.max_new_tokens, sampling, stop, domain=p.domain, index=index, request=p.request)
        for index, p in enumerate(listed)
    ]
    how: dict[str, float | None] = {"batch_size": batch_size, "prefill_chunk": prefill_chunk, "seed": seed}
    how |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    said = f"{provenance or 'moelab record'} {json.dumps(how)}"
    domains = domains_of(listed)
    total = sum(sequence.max_new_tokens for sequence in sequences)
    with (
        record(
            engine,
            out_dir,
            domains=domains,
            keep_text=keep_text,
            licence=licence,
            provenance=said,
            scores=scores,
            stale_gate=stale_gate,
        ) as trace,
        tqdm(total=total, unit="tok", desc="record", disable=not progress) as bar,
    ):
        for sequence in run(engine, sequences, batch_size, prefill_chunk):
            skipped = sequence.max_new_tokens - len(sequence.token_ids) if sequence.finish_reason == "stop" else 0
            bar.update(1 + skipped)
    return Capture(Path(out_dir), trace, tuple(Generation.of(sequence, engine) for sequence in sequences), batch_size)
