"""select: experts by a query such as ``load > 2 and tier != "fast0"``.  Floor 4.

Comparisons of the map layers and of ``layer`` and ``expert``, joined by and, or, not, with + - * / on numbers: a small
part of Python's grammar, evaluated on arrays, never executed as code.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

_COMPARE: dict[type, Any] = {
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
_CALCULATE: dict[type, Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}  # fmt: skip


def select(query: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool [L, E]: where ``query`` holds; ``columns`` [L, E] by name, numbers or texts.

    Raises ``ValueError`` that names what it does not understand, and what it knows.
    """
    try:
        tree = ast.parse(query.strip(), mode="eval")
    except SyntaxError:
        raise ValueError(f"query {query!r} is not an expression, expected such as `load > 2 and layer < 10`") from None
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            out = np.asarray(_value(tree.body, columns, query))
    except TypeError:  # of NumPy, about types that nobody wrote
        raise ValueError(
            f'query {query!r} mixes texts and numbers, expected texts for tier and node (`tier == "fast0"`), numbers '
            "for the others (`load > 2`)"
        ) from None
    shape = next(iter(columns.values())).shape
    if out.dtype != bool:
        raise ValueError(f"query {query!r} gives numbers, expected a comparison, such as `load > 2`")
    return np.broadcast_to(out, shape).copy()


def _value(node: ast.AST, columns: Mapping[str, np.ndarray], query: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in columns:
            raise ValueError(f"query {query!r} asks for {node.id}, expected some of {', '.join(columns)}")
        return columns[node.id]
    if isinstance(node, ast.BoolOp):
        parts = [np.asarray(_value(each, columns, query), bool) for each in node.values]
        join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        out = parts[0]
        for part in parts[1:]:
            out = join(out, part)
        return out
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        value = _value(node.operand, columns, query)
        return np.logical_not(value) if isinstance(node.op, ast.Not) else -value
    if isinstance(node, ast.BinOp) and type(node.op) in _CALCULATE:
        left, right = _value(node.left, columns, query), _value(node.right, columns, query)
        return _CALCULATE[type(node.op)](left, right)
    if isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
        values = [_value(each, columns, query) for each in (node.left, *node.comparators)]
        holds: Any = True
        for op, left, right in zip(node.ops, values, values[1:], strict=False):
            holds = np.logical_and(holds, _COMPARE[type(op)](left, right))
        return holds
    raise ValueError(
        f"query {query!r} holds {ast.unparse(node)!r}, expected comparisons of {', '.join(columns)}, and, or, not"
    )
