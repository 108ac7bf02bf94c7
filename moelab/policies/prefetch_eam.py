"""prefetch_eam: LRU, and copying ahead what the most similar earlier request used in the next layers.

Reference: MoE-Infinity (Xue et al. 2024, arXiv 2401.14361), the match as its code has it: the running request's expert
activation matrix M (EAM: tokens by layer and expert) against a collection of those of earlier requests; similarity is
the sum of the layers' cosines over the layers that are still to come in this pass. So it compares what the request's
EARLIER tokens did there, and at the first token it knows nothing: then nothing is copied. Predicted are the most used
experts of the best row; a full collection gives up the row that matched least. Where we differ: ``width`` experts of
each of the next ``depth`` layers, the nearest layer first (the code orders counts times a decay with distance over all
layers); several requests of a batch share one M, which is stored and begun anew whenever a request starts; equal
similarities: the older row; equal counts: the lower expert. Serving, room and accounting: ``prefetch_lru``: every copy
is charged.

Cosines are kept by their exact integer dot products, so a request costs O(M rows) and a pass O(L rows), whatever E is.
State of its own, R rows: M [L, E], squared norms of M [L], matched row [L] or -1, rows used [1], matches of each row
[R], squared norms [L, R], dot products [L, R], most used experts [R, L, width] or -1, the collection [L, E, R] as
int32; ``float_state`` [R] similarities. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.prefetch_lru import copy_ahead, new_lists, num_words, serve_lru
from moelab.policies.signature import FLAG_REQUEST_STARTS


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """The lists of ``prefetch_lru``; an empty collection."""
    width, depth, rows = (int(setup.parameters[name]) for name in ("width", "depth", "rows"))
    if min(width, depth) < 0 or rows < 1:
        raise ValueError(f"width, depth and rows are {width}, {depth} and {rows}, expected at least 0, 0 and 1")
    num_layers, num_keys = setup.num_layers, setup.num_layers * setup.num_experts
    num_top = rows * num_layers * min(width, setup.num_experts)
    num_ints = num_keys + 2 * num_layers + 1 + rows + 2 * rows * num_layers + num_top + (rows * num_keys + 1) // 2
    return np.zeros(rows, np.float64), new_lists(setup, num_ints)


@compiled
def _store(matrix, norms, row_norms, top, collection, row, rows, num_layers, num_experts, width):
    """M becomes a row of the collection: its norms, its most used experts."""
    for layer in range(num_layers):
        row_norms[at(layer * rows + row)] = norms[at(layer)]
        best = top[(row * num_layers + layer) * width : (row * num_layers + layer + 1) * width]
        num_best = 0
        for expert in range(num_experts):
            count = matrix[at(layer * num_experts + expert)]
            collection[at((layer * num_experts + expert) * rows + row)] = count
            if count == 0 or width == 0:
                continue
            if num_best == width and count <= matrix[at(layer * num_experts + best[at(width - 1)])]:
                continue
            k = min(num_best, width - 1)
            while k > 0 and matrix[at(layer * num_experts + best[at(k - 1)])] < count:
                best[at(k)] = best[at(k - 1)]
                k -= 1
            best[at(k)] = expert
            num_best = min(num_best + 1, width)
        for k in range(num_best, width):
            best[at(k)] = -1


@compiled
def _match(similarity, norms, row_norms, dots, match, num_used, rows, num_layers):
    """The most similar row for each layer of this pass, from the cosines of the layers behind it; -1: none is."""
    for row in range(num_used):
        similarity[at(row)] = 0
    match[at(num_layers - 1)] = -1
    for layer in range(num_layers - 2, -1, -1):
        best = -1
        highest = 0.0
        of_running = np.sqrt(np.float64(norms[at(layer + 1)]))
        for row in range(num_used):
            dot = np.float64(dots[at((layer + 1) * rows + row)])
            if dot > 0:
                of_row = np.sqrt(np.float64(row_norms[at((layer + 1) * rows + row)]))
                similarity[at(row)] += dot / (of_running * of_row)
            if similarity[at(row)] > highest:
                best, highest = row, similarity[at(row)]
        match[at(layer)] = best


@compiled
def decide(view):
    """Begin anew or match at the first layer; serve, copy what the match used, count."""
    if len(view.free_slots) == 0:
        return
    (num_layers, num_experts), num_keys, layer = view.resident.shape, view.resident.size, view.layer
    rows, similarity = len(view.float_state), view.float_state
    depth, width = view.int_parameters[1], min(view.int_parameters[0], num_experts)
    matrix = view.int_state[num_words(num_keys, view.free_slots.shape[1]) :]
    norms = matrix[num_keys:]
    match, num_used = norms[num_layers:], norms[2 * num_layers :]
    num_matches = num_used[1:]
    row_norms = num_matches[rows:]
    dots = row_norms[rows * num_layers :]
    top = dots[rows * num_layers :]
    collection = top[rows * num_layers * width :].view(np.int32)
    if layer == 0:
        if view.flags & FLAG_REQUEST_STARTS:
            is_empty = True
            for each in range(num_layers):
                is_empty &= norms[at(each)] == 0
            if not is_empty:
                row = num_used[0]
                if row == rows:
                    row = 0
                    for each in range(1, rows):
                        if num_matches[at(each)] < num_matches[at(row)]:
                            row = each
                else:
                    num_used[0] += 1
                _store(matrix, norms, row_norms, top, collection, row, rows, num_layers, num_experts, width)
                num_matches[at(row)] = 1
            matrix[: num_keys + num_layers] = 0
            dots[: rows * num_layers] = 0
        _match(similarity, norms, row_norms, dots, match, num_used[0], rows, num_layers)
    serve_lru(view)
    row = match[at(layer)]
    if row >= 0:
        num_matches[at(row)] += 1
        for ahead in range(layer + 1, min(num_layers, layer + 1 + depth)):
            best = top[(row * num_layers + ahead) * width : (row * num_layers + ahead + 1) * width]
            num_best = 0
            while num_best < width and best[at(num_best)] >= 0:
                num_best += 1
            copy_ahead(view, ahead, best, num_best)
    for i in range(len(view.experts)):
        node, count = layer * num_experts + view.experts[i], np.int64(view.token_counts[i])
        norms[at(layer)] += count * (2 * matrix[at(node)] + count)
        matrix[at(node)] += count
        of_node, of_layer = collection[node * rows : (node + 1) * rows], dots[layer * rows : (layer + 1) * rows]
        for each in range(rows):
            of_layer[each] += count * of_node[each]


POLICY = Policy(
    name="prefetch_eam",
    decide=decide,
    reference="Xue et al. 2024, arXiv 2401.14361 (match of the code)",
    parameters={"width": 8, "depth": 1, "rows": 64},
    new_state=new_state,
    prefetches=True,
)
