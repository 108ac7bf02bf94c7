"""SlotMemory: S experts on a torch device, and what the expert in a slot makes of tokens.

One expert is gate_proj and up_proj as one matrix and down_proj as another. Memory is taken once. A write comes from the
copy thread, on a stream of its own where the device has streams, and is over when it returns; before it touches the
slot it waits for the products that were queued when the copy was asked for. It does not know what lies in which slot
(`slot_table`), nor when it is read. Floor 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from moelab.engine.device import has_bf16_products
from moelab.engine.fast_tier.matrices import MATRICES
from moelab.kernels.layout import ExpertLayout


class SlotMemory:
    """`num_slots` experts of `layout` on `device`; products in `dtype` (None: bf16 where the device multiplies it).

    Raises `MemoryError` where the device has no room.
    """

    def __init__(
        self, layout: ExpertLayout, num_slots: int, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        on_cuda = device.type == "cuda"
        if dtype is None:
            dtype = torch.bfloat16 if on_cuda or has_bf16_products(device) else torch.float32
        self.layout, self.num_slots, self.device, self.dtype = layout, num_slots, device, dtype
        self._up_rows = layout.offsets[1] // layout.projection_bytes(16, layout.hidden_size) * 16
        kind = MATRICES[layout.weight_format]
        try:
            shared = (layout.weight_format, device, dtype)
            self.gate_up = kind(num_slots, 2 * self._up_rows, layout.padded_hidden_size, *shared)
            self.down = kind(num_slots, layout.output_stride, layout.padded_intermediate_size, *shared)
        except RuntimeError as error:  # torch has no MemoryError of its own on a CPU, and OutOfMemoryError on cuda
            size = num_slots * layout.expert_bytes / 2**30
            raise MemoryError(
                f"fast tier of {num_slots} slots ({size:.1f} GiB) does not fit on {device}: plan fewer"
            ) from error
        self._stream = torch.cuda.Stream(device) if on_cuda else None
        self._pinned = torch.empty(layout.expert_bytes, dtype=torch.uint8, pin_memory=True) if on_cuda else None
        self._arrived = torch.empty(layout.expert_bytes, dtype=torch.uint8, device=device) if on_cuda else None

    @property
    def num_bytes(self) -> int:
        """Device memory of all slots."""
        return self.gate_up.num_bytes + self.down.num_bytes

    def mark(self) -> Any:
        """Where the queue of products stands now: a later write must not overtake it. None without queues."""
        return torch.cuda.current_stream(self.device).record_event() if self._stream is not None else None

    @torch.inference_mode()
    def write(self, slot: int, block: np.ndarray, after: Any = None) -> None:
        """One packed expert (uint8 [expert_bytes], format of the slots) into a slot; returns when it is there."""
        if self._stream is None:
            self._take(slot, torch.from_numpy(block))
            return
        assert self._pinned is not None
        assert self._arrived is not None
        self._pinned.numpy()[:] = block
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            self._arrived.copy_(self._pinned, non_blocking=True)
            self._take(slot, self._arrived)
        self._stream.synchronize()

    def _take(self, slot: int, tiles: torch.Tensor) -> None:
        up_bytes = self.layout.offsets[2]
        self.gate_up.write(slot, tiles[:up_bytes])
        self.down.write(slot, tiles[up_bytes:])

    def forward(self, slot: int, x: torch.Tensor) -> torch.Tensor:
        """x [T, padded H] of `dtype` on the device -> float32 [T, H]: down(silu(gate(x)) * up(x))."""
        gate, up = self.gate_up.product(slot, x).split(self._up_rows, dim=1)
        # The rows and columns that fill up tiles may hold anything: they meet zeros.
        size, padded = self.layout.intermediate_size, self.layout.padded_intermediate_size
        hidden = (F.silu(gate) * up)[:, :size]
        y = self.down.product(slot, F.pad(hidden, (0, padded - size)) if padded > size else hidden)
        return y[:, : self.layout.hidden_size].float()

    def padded(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, H] of any float type, anywhere -> [T, padded H] of `dtype` on the device."""
        x = x.to(self.device, self.dtype, non_blocking=True)
        spare = self.layout.padded_hidden_size - x.shape[1]
        return F.pad(x, (0, spare)) if spare else x

    def weights(self, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """gate_proj over up_proj, and down_proj, as the products of a slot use them: float32, padded."""
        sizes = (self.layout.padded_hidden_size, self.layout.padded_intermediate_size)
        unit = [torch.eye(size, dtype=self.dtype, device=self.device) for size in sizes]
        return self.gate_up.product(slot, unit[0]).float().T, self.down.product(slot, unit[1]).float().T
