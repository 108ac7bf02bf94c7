"""batch_union: distinct experts that B tokens of one step need, from real consecutive tokens.  Floor 1.

What a batch of several tokens of one request reads (speculative decoding, multi-token prediction) is the union of their
experts. Under uniform routing it is E (1 - (1 - K/E)^B), an upper bound that real routing stays below, because
neighbours share experts; so the sets are taken from the trace: every window of B consecutive decode tokens of one.
Does not know whether a drafted token is accepted, nor batches of several requests (record those: their steps are real).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moelab.domain.trace import NO_EXPERT, Phase, Trace

if TYPE_CHECKING:
    import pandas as pd


def batch_union(trace: Trace, sizes: Sequence[int] = (1, 2, 4, 8)) -> pd.DataFrame:
    """One row for each B: mean distinct experts of a layer, beside uniform routing, and bytes beside those of B = 1.

    Windows do not cross requests and every start counts. Decode tokens, or all where there are none. Raises
    ``ValueError`` for a size below 1 or longer than every request.
    """
    import pandas as pd

    header, tokens = trace.header, trace.tokens
    decode = tokens.phase == Phase.DECODE
    rows = np.flatnonzero(decode if decode.any() else np.ones(len(decode), bool))
    rows = rows[np.lexsort((tokens.position[rows], tokens.request[rows]))]
    request = tokens.request[rows]
    used = np.zeros((len(rows), header.num_layers, header.num_experts + 1), bool)
    ids = np.where(trace.experts[rows] == NO_EXPERT, header.num_experts, trace.experts[rows])
    np.put_along_axis(used, ids.astype(np.int64), True, axis=2)
    used = used[:, :, :-1]
    out = []
    for size in sizes:
        if size < 1:
            raise ValueError(f"size is {size}, expected at least 1 token")
        starts = np.flatnonzero(request[: len(rows) - size + 1] == request[size - 1 :])
        if not len(starts):
            raise ValueError(f"size is {size}, but no request has so many tokens: take fewer")
        union = used[starts].copy()
        for ahead in range(1, size):
            union |= used[starts + ahead]
        mean = float(union.sum(2).mean())
        uniform = header.num_experts * (1 - (1 - header.top_k / header.num_experts) ** size)
        out.append({"tokens": size, "windows": len(starts), "distinct_experts": mean, "uniform_routing": uniform})
    one = float(used.sum(2).mean())
    frame = pd.DataFrame(out)
    return frame.assign(times_one_token=frame.distinct_experts / one, routing=_kind(trace))


def _kind(trace: Trace) -> str:
    return "synthetic" if trace.header.synthetic else "recorded"
