"""c_face: ``dispatch`` as a C function (``moelab_dispatch_fn`` of kernels/moelab_kernels.h), for the native layer-step.

The same compiled code that simulator and planner call, so that a prediction and a run choose the same copies. Called
without the GIL, from whatever thread prepares a step. Floor 1.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypedDict

from numba import carray, cfunc, types

from moelab.dispatch.dispatch import dispatch, scratch_length

_integers, _numbers = types.CPointer(types.int64), types.CPointer(types.float64)
_SIGNATURE = types.int64(
    types.int64, _integers, _integers, types.int64, _numbers, types.CPointer(types.int32), _numbers, _integers
)


@cache
def _compiled() -> Any:
    @cfunc(_SIGNATURE)
    def of_pointers(num_jobs, masks, sizes, num_tiers, slowness, tier_of, loads, scratch):
        return dispatch(
            carray(masks, num_jobs),
            carray(sizes, num_jobs),
            carray(slowness, num_tiers),
            carray(tier_of, num_jobs),
            carray(loads, num_tiers),
            carray(scratch, 5 * num_tiers + 4 * num_jobs + 1),
        )

    return of_pointers


def dispatch_address() -> int:
    """Of the C function; it lives as long as the process."""
    return int(_compiled().address)


class DispatchArguments(TypedDict):
    """Address of the C function and int64 numbers of scratch."""

    dispatch: int
    dispatch_scratch: int


def dispatch_arguments(num_copies: int, num_nodes: int) -> DispatchArguments:
    """What ``kernels.NodePlacement`` wants to know for a layer of so many copies."""
    return {"dispatch": dispatch_address(), "dispatch_scratch": scratch_length(num_copies, num_nodes)}
