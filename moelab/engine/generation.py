"""Generation: what came out of one request, with the times and the choices that made it.  Floor 2."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from moelab.engine.step_rates import StepRates

if TYPE_CHECKING:
    import pandas as pd

    from moelab.engine.engine import Engine
    from moelab.engine.generate import Sequence


@dataclass(frozen=True)
class Generation:
    """`text` is None without a tokenizer. `decode_s`, `decode_rates`: of the steps that the sequence was part of."""

    request: int
    domain: str | None
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str | None
    finish_reason: str
    prefill_s: float
    decode_s: float
    isa: str
    activation: str
    carried: str  # the numbers that the mode's activations are multiplied as
    dense_path: str
    device: str
    fast_tier: str | None = None  # its slots, device (emulated?) and policy
    decode_rates: StepRates | None = None  # counted; None without a decode step
    lossy: str | None = None  # what changed the results on purpose, and its cost in NLL where it is known

    @classmethod
    def of(cls, sequence: Sequence, engine: Engine) -> Generation:
        start = sequence.decode_from
        return cls(
            request=sequence.request,
            domain=sequence.domain,
            prompt_token_ids=tuple(sequence.prompt_token_ids),
            token_ids=tuple(sequence.token_ids),
            text=engine.codec.decode(sequence.token_ids),
            finish_reason=sequence.finish_reason or "cancelled",
            prefill_s=sequence.prefill_s,
            decode_s=sequence.decode_s,
            isa=engine.isa,
            activation=engine.activation,
            carried=engine.carried,
            dense_path=engine.dense_path,
            device=str(engine.device),
            fast_tier=None if engine.fast_tier is None else str(engine.fast_tier),
            decode_rates=None if start is None else engine.decode_rates(start, sequence.decode_until),
            lossy=engine.lossy_with_cost,
        )

    @property
    def prefill_tok_per_s(self) -> float:
        return len(self.prompt_token_ids) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_per_s(self) -> float:
        """Of this sequence alone; the first token belongs to the prefill."""
        return (len(self.token_ids) - 1) / self.decode_s if self.decode_s else 0.0

    def summary(self) -> dict[str, Any]:
        """What `repr` and `_repr_html_` show."""
        return {
            "request": self.request,
            "domain": self.domain or "none",
            "prompt tokens": len(self.prompt_token_ids),
            "new tokens": len(self.token_ids),
            "finished by": self.finish_reason,
            "prefill tok/s": round(self.prefill_tok_per_s, 1),
            "decode tok/s": round(self.decode_tok_per_s, 1),
            **(self.decode_rates.summary() if self.decode_rates else {}),
            "engine": f"dense {self.dense_path}; experts {self.activation} activations"
            + (f" (carried as {self.carried})" if self.carried != self.activation else "")
            + f" on {self.isa}"
            + (f"; fast tier of {self.fast_tier}" if self.fast_tier else "")
            + (f"; {self.lossy}" if self.lossy else ""),
            "text": self.text if self.text is not None else "no tokenizer",
        }

    def __repr__(self) -> str:
        return "Generation\n" + "\n".join(f"  {name}: {value}" for name, value in self.summary().items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left;white-space:pre-wrap'>{escape(str(value))}</td></tr>"
            for name, value in self.summary().items()
        )
        return f"<table><caption>Generation</caption>{rows}</table>"

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        import pandas as pd

        return pd.DataFrame([asdict(self)])
