"""Engine: a loaded model that generates; what it reads is counted, and observers may watch its routing.

Text in and out on top of `stepper`. With a plan's fast tier (`use_plan`) a share of the experts of each layer runs in
its slots, and a decode step is more than one native call. Floor 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moelab.domain.lossy import Lossy
from moelab.domain.plan import Plan, TierFormat
from moelab.domain.summary import summary_html, summary_text
from moelab.domain.trace import Phase, TraceHeader
from moelab.engine.dense import KernelLinears
from moelab.engine.generate import PREFILL_CHUNK, Sequence, run
from moelab.engine.generation import Generation
from moelab.engine.loader import Loaded, load_model
from moelab.engine.sampling import Sampling
from moelab.engine.stepper import Stepper
from moelab.engine.text import TextCodec, TextStream, stop_token_ids
from moelab.kernels.isa import choose_isa
from moelab.kernels.job import Activation
from moelab.kernels.pages import granted

if TYPE_CHECKING:
    from moelab.engine.fast_tier.fast_tier import FastTier
    from moelab.policies import Policy


class Engine(Stepper):
    """A model that runs. Made by `load`; one caller at a time. `observers`: see `Stepper`."""

    def __init__(self, directory: Path, loaded: Loaded) -> None:
        super().__init__(directory, loaded)
        self.codec = TextCodec(directory)
        self.stop_token_ids = stop_token_ids(directory, loaded.configs)
        self._num_requests = 0

    # --- generation ---

    def generate(
        self,
        prompt: str | SequenceOf[Any],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Iterable[int] | None = None,
        domain: str | None = None,
        batch_size: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> Any:
        """Continue one prompt (text or token ids) -> Generation, or a list of them -> list, decoded together.

        `stop` None: the checkpoint's end tokens; `()`: none. `batch_size` None: all prompts at once.
        """
        several = not isinstance(prompt, str) and any(not isinstance(item, int | np.integer) for item in prompt)
        prompts: list[Any] = list(prompt) if several else [prompt]
        sampling = Sampling(temperature, top_k, top_p, seed)
        sequences = [
            self.new_sequence(text, max_new_tokens, sampling, stop, domain=domain, index=index)
            for index, text in enumerate(prompts)
        ]
        with self.held("generate"):
            for _ in run(self, sequences, batch_size or max(len(sequences), 1), prefill_chunk):
                pass
        results = [Generation.of(sequence, self) for sequence in sequences]
        return results if several else results[0]

    def stream(
        self,
        prompt: str | SequenceOf[int],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Iterable[int] | None = None,
        domain: str | None = None,
    ) -> Iterator[tuple[int, str]]:
        """Token ids and text pieces as they come; a piece is empty while a character is unfinished."""
        sampling = Sampling(temperature, top_k, top_p, seed)
        sequence = self.new_sequence(prompt, max_new_tokens, sampling, stop, domain=domain)
        pieces = TextStream(self.codec)
        for state in run(self, [sequence]):
            token = state.token_ids[-1]
            piece = pieces.push(token)
            yield token, piece if state.finish_reason is None else piece + pieces.rest()

    def forward(self, token_ids: Any) -> torch.Tensor:
        """Logits float32 [T, vocab] of one sequence, [B, T, vocab] of several of one length; nothing is kept."""
        tokens = torch.as_tensor(token_ids, dtype=torch.int64)
        batch = tokens if tokens.ndim == 2 else tokens[None]
        sequences = [self.new_sequence(row.tolist(), 1, Sampling(), ()) for row in batch]
        logits = self.step(batch, self.new_cache(len(batch)), 0, sequences, Phase.PREFILL, "all")
        self.end_request()
        assert logits is not None
        return logits if tokens.ndim == 2 else logits[0]

    def new_sequence(
        self,
        prompt: str | SequenceOf[int],
        max_new_tokens: int,
        sampling: Sampling,
        stop: Iterable[int] | None = None,
        *,
        domain: str | None = None,
        index: int = 0,
        request: int | None = None,
    ) -> Sequence:
        """A request that has not started. `request` None: the next free number of this engine."""
        if request is None:
            request = self._num_requests
        self._num_requests = max(self._num_requests, request + 1)
        token_ids = self.codec.encode(prompt)
        wrong = next((token for token in token_ids if not 0 <= token < self.spec.vocab_size), None)
        if wrong is not None:
            size = self.spec.vocab_size
            raise ValueError(f"token id: expected 0..{size - 1}, got {wrong}; use this model's tokenizer")
        stops = self.stop_token_ids if stop is None else frozenset(stop)
        return Sequence(request, token_ids, max_new_tokens, sampling, stops, domain, index)

    # --- placement ---

    def use_plan(
        self,
        plan: Plan | None,
        *,
        policy: Policy | None = None,
        late: str = "home",
        keep_log: bool = False,
        device: str | None = None,
    ) -> FastTier | None:
        """Run under a plan's fast tier from the next step on; None: without one. Returns the tier, also `fast_tier`.

        Pinned and placed experts are in their slots when this returns. `policy`: a record that is not in `POLICIES`, in
        place of the one the plan names. `late`: an expert whose copy is not there yet runs from `home`, or the step
        will `wait` (then the arithmetic does not depend on how fast copies were); `never`: a tier on paper, whose
        policy decides while nothing is copied and all runs from home. `keep_log` keeps every decision.
        `device` None: that of the dense path; a CPU stands in for a device and is marked `emulated`. ValueError for a
        plan that is for another model, or that this engine cannot carry out: then the tier before stays.
        """
        from moelab.engine.placement import check_use

        check_use(self, plan, late)
        return self.change_tier(plan, policy=policy, late=late, keep_log=keep_log, device=device)

    def change_tier(
        self, plan: Plan | None, *, policy: Policy | None = None, late: str = "home", keep_log: bool = False,
        device: str | None = None,
    ) -> FastTier | None:  # fmt: skip
        """`use_plan` for who sees to the homes too: `load` and `moelab.apply`."""
        from moelab.engine.placement import carry_out

        self.check_caller()
        return carry_out(self, plan, policy=policy, late=late, keep_log=keep_log, device=device)

    def prepare_to_give_up(self, plan: Plan) -> Callable[[], int]:
        """Experts that a plan with `keep_home` false has on its fast tier alone lose their homes by the call.

        It tells the bytes that returned. Its tier is in place. For `load` and `moelab.apply`. ValueError on Numba,
        whose homes are arenas only.
        """
        from moelab.engine.homes import planned_homeless, prepare_to_give_up

        if self.isa == "numba":
            raise ValueError("plan has keep_home false; experts on Numba keep their homes: choose a native isa")
        self.forget_programs()
        return prepare_to_give_up(self.routed, planned_homeless(plan))

    def forget_programs(self) -> None:
        """Addresses of experts have changed: native steps are put together anew."""
        self.model.forget_programs()

    @property
    def lossy_with_cost(self) -> str | None:
        """The lossy mode with its cost in NLL, where that was measured; None where results are the model's own."""
        if self.lossy is None:
            return None
        # Brings the store's Parquet library in, which an engine without a lossy mode does not need.
        from moelab.store.lossy_costs import LossyRun, tier_of, with_cost

        tier = tier_of(None if self.fast_tier is None else self.fast_tier.plan)
        layers, experts = self.spec.num_moe_layers, self.spec.n_routed_experts
        run = LossyRun(
            self.name, layers, experts, activation=self.activation, dense_dtype=self.dense_dtype, **tier
        )  # fmt: skip
        return with_cost(self.lossy, run)

    def use_lossy(self, lossy: Lossy | None) -> None:
        """Change what the model computes on purpose from the next step on; None: exact again. See `domain.lossy`.

        `moelab bench nll` says what it costs on nano. ValueError where a token has fewer experts, and for cache-aware
        routing without a fast tier.
        """
        from moelab.engine.placement import check_lossy

        check_lossy(self, lossy, self.fast_tier)
        self.set_lossy(lossy)

    def trace_header(self) -> TraceHeader:
        """What is true of everything that this engine records; `moelab.planner.empty` plans from it."""
        from moelab.engine.recorder import header_of

        return header_of(self, (), "not stated", "not recorded yet")

    def slot_format(self, weight_format: str) -> TierFormat:
        """A format of the fast tier with the bytes that this model's experts take in it, as a plan wants it."""
        from moelab.engine.placement import slot_format

        return slot_format(self, weight_format)

    # --- life and display ---

    def close(self) -> None:
        """End the workers. The engine cannot run afterwards. RuntimeError while another thread holds it."""
        self.check_caller()
        self.set_fast_tier(None)
        self.pool.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def summary(self) -> dict[str, Any]:
        """What `repr` and `_repr_html_` show."""
        return {
            "model": f"{self.name} ({self.spec.label})",
            "dense path": self.dense_path,
            "routed experts": f"{self.weight_format} weights, {self._mode} activations, {self.isa} kernels, "
            f"{self.pool.num_workers} workers",
            "kernels": self.routed[0].isa.why,
            "caller": self._caller(),
            "expert memory": self._expert_memory(),
            "linear memory": self._linear_memory(),
            "decode buffers": f"{self.model.step_memory.num_bytes / 2**20:.1f} MiB",
            "loaded": f"{self.loaded_bytes / 1e9:.2f} GB in {self.load_s:.1f} s "
            f"({self.loaded_bytes / 1e9 / max(self.load_s, 1e-9):.2f} GB/s), "
            + ("repacked" if self.packed is None else f"packed before: {self.packed}"),
            "results": self.lossy_with_cost or "exact",
            "fast tier": "none" if self.fast_tier is None else str(self.fast_tier),
            "tokenizer": "tokenizer.json" if self.codec.tokenizer is not None else "none: give token ids",
            "skipped tensors": ", ".join(f"{n} {kind}" for kind, n in self.num_skipped_tensors.items()) or "none",
        }

    @property
    def _mode(self) -> str:
        carried = self.carried
        return self.activation if carried == self.activation else f"{self.activation} (carried as {carried})"

    def _expert_memory(self) -> str:
        placements = [layer.placement for layer in self.routed if layer.placement is not None]
        num_bytes = len(self.routed) * self.spec.n_routed_experts * self.expert_bytes
        if len(placements) == len(self.routed):
            num_bytes = sum(int(placement.bytes_of_node.sum()) for placement in placements)
        kind = "virtual nodes" if self.pool.virtual else "nodes"
        nodes = f" on {self.routed[0].num_nodes} {kind}" if self.routed[0].num_nodes > 1 else ""
        if nodes and placements and (placements[0].slowness != placements[0].slowness[0]).any():
            nodes += f" (a byte takes {' : '.join(f'{each:.3g}' for each in placements[0].slowness)})"
        if self.pool.num_nodes > 1 and not nodes:
            nodes = f", read by the workers of all {self.pool.num_nodes} {kind}"
        return f"{num_bytes / 2**30:.2f} GiB{nodes}, binding {self.binding}, pages {self.expert_pages}"

    def _caller(self) -> str:
        """Where worker 0 is, which is not pinned."""
        place, home = self.pool.caller_place, self.pool.memory_node_of_node[0]
        if place is None:
            return "worker 0, not pinned"
        away = (
            "" if home is None or place[1] == home else f", and reads the memory of node{home}: pin this thread there"
        )
        return f"worker 0, not pinned, now on core {place[0]} of node{place[1]}{away}"

    def _linear_memory(self) -> str:
        linears = self.model.linears
        if not isinstance(linears, KernelLinears):
            return f"{linears.num_bytes / 2**30:.2f} GiB, torch's"
        shared = ", rows shared out over the nodes" if self.pool.num_nodes > 1 else ""
        bindings = dict.fromkeys(part for made in linears.made for part in made.binding.split(", "))
        pages = ", ".join(dict.fromkeys(made.pages for made in linears.made))
        return f"{linears.num_bytes / 2**30:.2f} GiB{shared}, binding {', '.join(bindings)}, pages {pages}"

    @property
    def binding(self) -> str:
        """What memory of the routed experts is bound to, or why it is not."""
        return ", ".join(dict.fromkeys(part for home in self._homes() for part in home.binding.split(", ")))

    @property
    def huge_pages(self) -> str:
        """The pages that memory of the routed experts was asked for with success, or why not."""
        return ", ".join(dict.fromkeys(home.huge_pages for home in self._homes()))

    @property
    def expert_pages(self) -> str:
        """The same, with the share of what is in memory that is huge now."""
        return granted(self.huge_pages, (block for home in self._homes() for block in home.blocks))

    def _homes(self) -> list[Any]:
        """Arena or placement of each layer."""
        return [layer.owner if layer.placement is None else layer.placement for layer in self.routed]

    def __repr__(self) -> str:
        return summary_text("Engine", self.summary())

    def _repr_html_(self) -> str:
        return summary_html("Engine", self.summary())


def load(
    model_dir: str | Path,
    *,
    packed: str | Path | None = None,
    device: str | None = None,
    isa: str | None = None,
    activation: Activation | None = None,
    dense_dtype: str | None = None,
    dense_weights: str | None = None,
    num_workers: int | None = None,
    virtual_nodes: int | None = None,
    plan: Plan | str | Path | None = None,
    late: str = "home",
    lossy: Lossy | None = None,
    allow_unbound: bool = False,
) -> Engine:
    """The engine of a Hugging Face checkpoint directory; see `loader.load_model` for the choices.

    `packed`: a folder that `moelab pack` made of this checkpoint, read instead of repacking. `plan`: a plan, or its
    file: experts are loaded straight into their homes where it names several nodes, its fast tier as by
    `Engine.use_plan`, with `late`. `lossy`: for `Engine.use_lossy`. `virtual_nodes` divides the cores, to try plans of
    several nodes on a machine of one; a plan of more nodes than the machine has gets as many without being asked, which
    `repr` says. Dispatch is told the rates of nodes that the plan names. `moelab.apply` changes the plan later. OSError
    where the system refuses to bind homes to real nodes (containers), unless `allow_unbound`; see `Engine.binding`.
    Without a plan experts lie round-robin on the nodes of a machine of several, bound where the system allows it; rows
    of linear layers are shared out over the nodes in any case.
    """
    chosen = Plan.load(plan) if isinstance(plan, str | Path) else plan
    make_homes = None
    if on_nodes := chosen is not None and sum(tier.startswith("node") for tier in chosen.tiers) > 1:
        from moelab.engine.homes import homes_of_plan
        from moelab.kernels.plan_nodes import virtual_nodes_for

        assert chosen is not None
        if choose_isa(isa).isa != "numba":  # which `homes_of_plan` refuses
            virtual_nodes = virtual_nodes_for(chosen, asked=virtual_nodes, num_workers=num_workers)
        make_homes = partial(homes_of_plan, chosen, Path(model_dir).name, isa, allow_unbound)
    loaded = load_model(
        model_dir, packed=packed, device=device, isa=isa, activation=activation, dense_dtype=dense_dtype,
        dense_weights=dense_weights, num_workers=num_workers, virtual_nodes=virtual_nodes, make_homes=make_homes,
    )  # fmt: skip
    engine = Engine(Path(model_dir), loaded)
    try:
        # Policies bring Numba, which an engine without a fast tier does not need.
        if chosen is not None and (chosen.fast_tiers or not on_nodes):
            engine.change_tier(chosen, late=late)
        if chosen is not None and not chosen.keep_home:
            engine.prepare_to_give_up(chosen)()
        if lossy is not None:
            engine.use_lossy(lossy)
    except BaseException:
        engine.close()
        raise
    return engine
