"""FastTier: the plan's fast tier in a running engine; the same policy function as in the simulator moves its experts.

For each layer-step: the policy is asked with what the layer routed (`policies.session`); what lay in a slot before is a
hit and is computed on the device, unless its copy has not arrived: then it is late and runs from home like a miss
(`late="wait"` waits for it instead, so that the arithmetic of a run does not depend on how fast the copies were). Then
victims give their slots back and what was admitted or prefetched is sent to the copy thread. Residency follows the
policy's logical clock, copies follow wall time; only `late` tells them apart. `late="never"` is a tier on paper: the
policy decides, no copy is made, all runs from home, so that results are those without a tier.

With several fast tiers the policy moves experts in and out of fast0; the others hold what the plan placed there.

Sums: float32. The kernels add the experts that run from home in slot order; the device adds its own in rising order of
their ids, starting from 0; the second sum is added to the first. So a result depends on which experts were where,
within the rounding of float32 and the slots' format, and on nothing else. It does not know models or requests. Floor 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from moelab.domain.plan import Plan
from moelab.domain.trace import Phase
from moelab.engine.fast_tier.copy_thread import Copy, CopyThread
from moelab.engine.fast_tier.divider import Divider
from moelab.engine.fast_tier.late_reads import LateReads
from moelab.engine.fast_tier.payload import home_block, in_format
from moelab.engine.fast_tier.plan import fast_tier_names, num_slots_of, slot_layout
from moelab.engine.fast_tier.report import FastTierReport
from moelab.engine.fast_tier.slot_banks import SlotBanks, device_of_tier
from moelab.engine.fast_tier.slot_memory import SlotMemory
from moelab.engine.fast_tier.slot_table import NOWHERE, SlotTable
from moelab.engine.share import Share
from moelab.kernels.routed import RoutedExperts
from moelab.policies import Policy
from moelab.policies.counts import (
    EVICTIONS,
    HITS,
    LATE,
    MISSES,
    NUM_COLUMNS,
    PREFETCHES,
    ROUTED_HITS,
    ROUTINGS,
    UPLOADS,
)
from moelab.policies.policy import PolicyState
from moelab.policies.session import PolicySession
from moelab.policies.signature import ADMIT, EVICT, FLAG_REQUEST_ENDED, PREFETCH

BEFORE_ALL_STEPS = -1  # kind and clock of the copies that the plan itself asks for


class FastTier:
    """Made by `Engine.use_plan`, which has checked the plan (`plan.check_plan`); one caller at a time, `serve` once for
    each MoE layer of each step.

    `log` (with `keep_log`) has the columns and the order of `simulate(..., log=True)`, `requests` int64 [R, 8] those of
    `policies.counts`; both are written by what moves and computes, not by the policy. `state` is the policy's.
    """

    def __init__(
        self,
        routed: Sequence[RoutedExperts],
        plan: Plan,
        session: PolicySession,
        device: torch.device,
        *,
        late: str = "home",
        keep_log: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.plan, self.late = plan, late
        self._routed = list(routed)
        self._session = session
        num_layers, num_experts = len(routed), routed[0].num_experts
        self._banks = SlotBanks(
            [
                SlotMemory(
                    slot_layout(plan, number, routed[0].layout), num_slots, device_of_tier(number, device), dtype
                )
                for number, num_slots in enumerate(num_slots_of(plan))
            ]
        )
        self._table = SlotTable(num_layers, num_experts, self._banks.num_slots_of_tier)
        self._counts = np.zeros((len(Phase), num_layers, NUM_COLUMNS), np.int64)
        self._num_layer_steps = np.zeros((len(Phase), num_layers), np.int64)
        self._moves: list[tuple[int, int, int, int, int]] | None = [] if keep_log else None
        self._requests: list[np.ndarray] | None = [] if keep_log else None
        self._late_reads = LateReads(self._routed)
        self._divider = Divider(num_experts)
        self._phase, self._flags = Phase.PREFILL, 0
        self._in_the_middle = False
        self.num_steps = self.num_failed_steps = 0
        self._copies = CopyThread(self._banks.num_slots, self._copy, _one_torch_thread, keep_log=keep_log)
        try:
            for number, fast in enumerate(fast_tier_names(plan)):
                for layer, expert in np.argwhere(plan.resident(fast)).tolist():
                    self._send(layer, expert, BEFORE_ALL_STEPS, BEFORE_ALL_STEPS, number)
            self._copies.drain()
        except BaseException:
            self._copies.close()
            raise
        # The copy thread set torch's number of threads to 1, for itself and for all threads that are still to come.
        torch.set_num_threads(torch.get_num_threads())
        self._initial = (self._copies.num_copied, self._copies.link_bytes)

    # --- what it is ---

    @property
    def policy(self) -> Policy:
        return self._session.policy

    @property
    def state(self) -> PolicyState:
        return self._session.state

    @property
    def device(self) -> torch.device:
        """Of fast0."""
        return self._banks.devices[0]

    @property
    def emulated(self) -> bool:
        """Does the CPU stand in for a device of its own?"""
        return self.device.type == "cpu"

    @property
    def num_slots(self) -> int:
        return self._banks.num_slots

    @property
    def resident(self) -> np.ndarray:
        """bool [L, E]: experts that have a slot, as the slots have it."""
        return self._table.resident

    def __str__(self) -> str:
        if self.late == "never":
            return f"{self.num_slots} slots of {self._banks.weight_format} on paper, policy {self.policy.name}"
        where = f"emulated on the {self.device.type.upper()}" if self.emulated else f"on {self.device}"
        return f"{self.num_slots} slots of {self._banks.weight_format} {where}, policy {self.policy.name}"

    # --- steps ---

    def begin_step(self, phase: Phase, flags: int) -> None:
        """The next `serve` calls belong to a new forward pass. CopyError or RuntimeError where it cannot go on."""
        self._copies.check()
        if self._in_the_middle:
            raise RuntimeError(
                "fast tier: expected every decision to be carried out, got one that was interrupted; give the engine "
                "its plan again"
            )
        # A request that ended before the plan came was none of its own.
        self._phase, self._flags = phase, flags if self.num_steps else flags & ~FLAG_REQUEST_ENDED

    def end_step(self, *, failed: bool = False) -> None:
        """The forward pass is over. After a failed one the policy has seen steps that no trace has."""
        session = self._session
        session.clock += -session.clock % session.num_layers
        self.num_steps += 1
        self.num_failed_steps += failed

    def serve(
        self, layer: int, expert_ids: np.ndarray, gate_weights: np.ndarray, scores: np.ndarray | None = None,
        stale: np.ndarray | None = None,
    ) -> Share:  # fmt: skip
        """Ask the policy, move experts, and divide the layer-step. Integer ids and float32 gate weights [T, K].

        `scores`: candidate scores float16 [T, E]; `stale`: ids [T, K] that the stale gate names for the next layer.
        """
        self._in_the_middle = True
        session, table, copies = self._session, self._table, self._copies
        clock = session.clock
        session.ask(
            np.ascontiguousarray(expert_ids[:, None], np.uint16),
            np.ascontiguousarray(gate_weights[:, None], np.float16),
            layer=layer, step=self.num_steps, flags=self._flags, candidate_scores=scores, stale_experts=stale,
        )  # fmt: skip
        divided = self._divider.divide(
            session.experts, table.slot_of_expert[layer], copies, expert_ids, wait=self.late == "wait"
        )
        late = [] if self.late == "never" else divided.late_slots
        self._late_reads.note(layer, [int(table.expert_of_slot[slot, 1]) for slot in late])
        counts = np.zeros(NUM_COLUMNS, np.int64)
        counts[HITS] = divided.num_held
        counts[MISSES] = len(session.experts) - divided.num_held
        counts[ROUTED_HITS], counts[ROUTINGS] = divided.num_routed_hits, divided.num_routings
        counts[LATE] = 0 if self.late == "never" else divided.num_late
        counts[EVICTIONS] = self._release(session.evict, clock)
        counts[UPLOADS] = self._admit([(layer, expert) for expert in session.admit.tolist()], clock, ADMIT)
        counts[PREFETCHES] = self._admit(session.prefetch.tolist(), clock, PREFETCH)
        self._counts[self._phase, layer] += counts
        self._num_layer_steps[self._phase, layer] += len(session.experts) > 0
        if self._requests is not None:
            self._requests.append(counts)
        self._in_the_middle = False
        return Share(divided.experts, divided.slots, expert_ids, gate_weights, divided.home_ids)

    def compute(self, share: Share, x: torch.Tensor) -> torch.Tensor | None:
        """x [T, H], anywhere -> the device's part of the sum, float32 [T, H] on the device; None where there is none.

        On cuda the work is queued and this returns before it is done.
        """
        if not share.experts:
            return None
        sums = [self._compute_on(number, share, x) for number in range(len(self._banks.memories))]
        parts = [part for part in sums if part is not None]
        total = parts[0]
        for part in parts[1:]:
            total += part.to(total.device)
        return total

    def _compute_on(self, tier: int, share: Share, x: torch.Tensor) -> torch.Tensor | None:
        """The part of one tier, float32 [T, H] on its device."""
        memory, first, stop = self._banks.memories[tier], self._banks.first[tier], self._banks.first[tier + 1]
        mine = [(e, slot - first) for e, slot in zip(share.experts, share.slots, strict=True) if first <= slot < stop]
        if not mine:
            return None
        device = memory.device
        x = memory.padded(x)
        total = torch.zeros((len(x), memory.layout.hidden_size), dtype=torch.float32, device=device)
        for expert, slot in mine:
            token, rank = np.nonzero(share.expert_ids == expert)
            gates = torch.from_numpy(share.gate_weights[token, rank].astype(np.float32)).to(device)[:, None]
            if len(token) == len(x):
                total += gates * memory.forward(slot, x)
            else:
                rows = torch.from_numpy(token).to(device)
                total.index_add_(0, rows, gates * memory.forward(slot, x[rows]))
        return total

    # --- moves ---

    def _release(self, victims: np.ndarray, clock: int) -> int:
        for layer, expert in victims.tolist():
            self._copies.forget(self._table.release(layer, expert))
            if self._moves is not None:
                self._moves.append((clock, EVICT, layer, expert, -1))
        return len(victims)

    def _admit(self, experts: Sequence[Sequence[int]], clock: int, kind: int) -> int:
        for layer, expert in experts:
            self._send(layer, expert, clock, kind)
        return len(experts)

    def _send(self, layer: int, expert: int, clock: int, kind: int, tier: int = 0) -> None:
        slot = self._table.take(layer, expert, tier)
        if self.late == "never":
            self._copies.forget(slot)
            if self._moves is not None and kind != BEFORE_ALL_STEPS:
                self._moves.append((clock, kind, layer, expert, 0))
            return
        self._copies.ask(slot, layer, expert, clock, kind, self._banks.memories[tier].mark())

    def _copy(self, job: Copy) -> int:
        """In the copy thread."""
        routed, (memory, slot) = self._routed[job.layer], self._banks.place(job.slot)
        block = in_format(home_block(routed, job.expert), routed.layout, memory.layout)
        memory.write(slot, block, job.after)
        return memory.layout.expert_bytes

    def settle(self) -> None:
        """Until no copy is under way, so that nobody reads homes."""
        self._copies.settle()

    # --- results ---

    @property
    def counts(self) -> np.ndarray:
        """int64 [phases, L, 8], as `report().counts`, so far: copies that are under way go on meanwhile."""
        return self._counts.copy()

    @property
    def requests(self) -> np.ndarray:
        """int64 [R, 8]: counts of every request."""
        if self._requests is None:
            raise ValueError("this tier kept no log: use_plan(..., keep_log=True)")
        return np.array(self._requests, np.int64).reshape(-1, NUM_COLUMNS)

    @property
    def log(self) -> np.ndarray:
        """int64 [*, 5] (clock, kind, layer, expert, tier): evictions and copies as they were carried out."""
        if self._moves is None:
            raise ValueError("this tier kept no log: use_plan(..., keep_log=True)")
        self._copies.drain()
        copied = [(clock, kind, layer, expert, 0) for clock, kind, layer, expert, _ in self._copies.log]
        rank = {EVICT: 0, ADMIT: 1, PREFETCH: 2}  # within a request, as the contract applies them
        rows = sorted(self._moves + copied, key=lambda row: (row[0], rank[row[1]]))
        return np.array(rows, np.int64).reshape(-1, 5)

    def slot_weights(self, layer: int, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """gate_proj over up_proj, and down_proj, of an expert in a slot, as its products use them: float32, padded.

        Waits for its copy. ValueError where the expert has no slot, or nothing is copied.
        """
        slot = int(self._table.slot_of_expert[layer, expert])
        if slot == NOWHERE or self.late == "never":
            raise ValueError(
                f"layer {layer} expert {expert}: expected it in a slot, got none, or a tier on paper; see `resident`"
            )
        self._copies.wait(slot)
        memory, place = self._banks.place(slot)
        return memory.weights(place)

    def report(self) -> FastTierReport:
        """What happened since the engine got the plan; waits for the copies that are under way."""
        self._copies.drain()
        copies, banks = self._copies, self._banks
        return FastTierReport(
            policy=self.policy.name,
            plan=self.plan.fingerprint(),
            device=", ".join(dict.fromkeys(map(str, banks.devices))),
            emulated=self.emulated,
            late_copies=self.late,
            weight_format=banks.weight_format,
            products=str(banks.memories[0].dtype).removeprefix("torch."),
            num_slots=self.num_slots,
            slot_bytes=banks.num_bytes,
            num_steps=self.num_steps,
            num_failed_steps=self.num_failed_steps,
            num_initial_copies=self._initial[0],
            num_copied=copies.num_copied - self._initial[0],
            num_superseded=copies.num_superseded,
            link_bytes=copies.link_bytes - self._initial[1],
            late_bytes_of_node=tuple(self._late_reads.bytes_of_node().tolist()),
            counts=self._counts.copy(),
            num_layer_steps=self._num_layer_steps.copy(),
        )

    def close(self) -> None:
        """End the copy thread; the slots' memory goes with the last reference."""
        self._copies.close()


def _one_torch_thread() -> None:
    """A team of torch's threads beside the pool would fight for its cores (docs/log.md, 2026-11-22, engine)."""
    torch.set_num_threads(1)
