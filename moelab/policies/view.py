"""View: everything that one call of a policy sees and answers, behind one pointer.  Floor 1.

A compiled call that passes twenty arrays copies 150 words each time; the policy then reads five of them.
Here the caller fills one block of words (scalars, and address and shape of each array) and passes its
address; an attribute of the view becomes a load. Fields and their meaning: ``signature``. In
plain Python (``decide.py_func``) the same attributes are NumPy arrays and numbers, so that a policy can be run
step by step in a debugger. Knows layout only, neither policies nor rules.

Memory is not owned by compiled code: the Python ``View`` holds the arrays.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_getattr_generic, lower_setattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.experimental.function_type import _get_wrapper_address
from numba.extending import NativeValue, intrinsic, models, register_model, typeof_impl, unbox
from numba.np.arrayobj import make_array, populate_array

from moelab.policies.signature import FIELDS
from moelab.source_stamp import stamp_of_room

_NUM_AXES = {name: kind.ndim if isinstance(kind, types.Array) else 0 for name, kind in FIELDS.items()}
_FIRST_WORD = dict(zip(FIELDS, np.cumsum([0, *(1 + axes for axes in _NUM_AXES.values())])[:-1].tolist(), strict=True))
_DTYPES = {name: np.dtype(str(kind.dtype)) for name, kind in FIELDS.items() if isinstance(kind, types.Array)}


class View:
    """Words that compiled code reads, and the arrays they point to.

    ``view.layer = 3`` and ``view.resident = array`` set a field; an array must have the field's dtype, number of
    axes and C order. Raises ``TypeError`` for an array that does not fit and ``AttributeError`` for an unknown field.
    """

    __slots__ = ("arrays", "words")

    def __init__(self, **values: Any):
        object.__setattr__(self, "words", np.zeros(len(FIELDS) + sum(_NUM_AXES.values()), np.int64))
        object.__setattr__(self, "arrays", {})
        for name, dtype in _DTYPES.items():
            setattr(self, name, np.zeros((0,) * _NUM_AXES[name], dtype))
        for name, value in values.items():
            setattr(self, name, value)

    @property
    def address(self) -> int:
        """Address of the words."""
        return self.words.ctypes.data

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in FIELDS:
            raise AttributeError(f"View has no field {name}, expected one of {', '.join(FIELDS)}")
        first, num_axes = _FIRST_WORD[name], _NUM_AXES[name]
        if name not in _DTYPES:
            self.words[first] = value
            return
        fits = isinstance(value, np.ndarray) and value.dtype == _DTYPES[name] and value.ndim == num_axes
        if not fits or not value.flags.c_contiguous:
            raise TypeError(
                f"{name}: expected a C-ordered array of {_DTYPES[name]} with {num_axes} axes, got {value!r}: convert it"
            )
        self.arrays[name] = value
        self.words[first] = value.ctypes.data
        self.words[first + 1 : first + 1 + num_axes] = value.shape

    def __getattr__(self, name: str) -> Any:
        if name not in FIELDS:
            raise AttributeError(f"View has no field {name}, expected one of {', '.join(FIELDS)}")
        first = _FIRST_WORD[name]
        if name not in _DTYPES:
            return int(self.words[first])
        array, address = self.arrays[name], int(self.words[first])
        shape = tuple(self.words[first + 1 : first + 1 + _NUM_AXES[name]].tolist())
        if (array.ctypes.data, array.shape) == (address, shape):
            return array
        if 0 in shape:
            return np.zeros(shape, _DTYPES[name])
        num_bytes = int(np.prod(shape)) * _DTYPES[name].itemsize  # set by compiled code: part of a buffer of the caller
        memory = memoryview((ctypes.c_char * num_bytes).from_address(address))
        return np.frombuffer(memory, _DTYPES[name]).reshape(shape)


class ViewType(types.Type):
    """Numba's type of a view; named after the sources of this room, so that no old layout is read from a cache."""

    def __init__(self) -> None:
        super().__init__(name=f"View_{stamp_of_room('policies')}")


VIEW = ViewType()

DECIDE = types.void(VIEW)
"""Signature of a policy."""

DECIDE_FUNCTION = types.FunctionType(DECIDE)
"""Type of a policy as a value: what the loop takes."""


@register_model(ViewType)
class _ViewModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: ViewType):
        super().__init__(manager, kind, ir.IntType(64).as_pointer())


@typeof_impl.register(View)
def _typeof_view(_value: View, _context: Any) -> ViewType:
    return VIEW


@unbox(ViewType)
def _unbox_view(_kind: ViewType, value: Any, c: Any) -> NativeValue:
    number = c.pyapi.object_getattr_string(value, "address")
    address = c.pyapi.long_as_voidptr(number)
    c.pyapi.decref(number)
    pointer = c.builder.bitcast(address, c.context.get_value_type(VIEW))
    return NativeValue(pointer, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))


@infer_getattr
class _ViewFields(AttributeTemplate):
    key = ViewType

    def generic_resolve(self, _kind: ViewType, name: str) -> Any:  # type: ignore[override]
        return FIELDS.get(name)


def _word(builder: Any, view: Any, index: int) -> Any:
    return builder.gep(view, [ir.Constant(ir.IntType(64), index)], inbounds=True)


@lower_getattr_generic(ViewType)
def _load_field(context: Any, builder: Any, _kind: ViewType, view: Any, name: str) -> Any:
    kind, first = FIELDS[name], _FIRST_WORD[name]
    if not isinstance(kind, types.Array):
        return builder.load(_word(builder, view, first))
    array = make_array(kind)(context, builder)
    item_bytes = _DTYPES[name].itemsize
    address = builder.load(_word(builder, view, first))
    shape = [builder.load(_word(builder, view, first + 1 + axis)) for axis in range(kind.ndim)]
    intp = shape[0].type
    strides = [ir.Constant(intp, item_bytes)]
    if kind.ndim == 2:
        strides.insert(0, builder.mul(shape[1], strides[0]))
    data = builder.inttoptr(address, context.get_data_type(kind.dtype).as_pointer())
    lengths, steps = cgutils.pack_array(builder, shape), cgutils.pack_array(builder, strides)
    populate_array(array, data, lengths, steps, item_bytes, None)
    return array._getvalue()


@lower_setattr_generic(ViewType)
def _store_field(context: Any, builder: Any, signature: Any, arguments: Any, name: str) -> None:
    view, value = arguments
    kind, first = FIELDS[name], _FIRST_WORD[name]
    if not isinstance(kind, types.Array):
        builder.store(value, _word(builder, view, first))
        return
    array = make_array(kind)(context, builder, value)
    builder.store(builder.ptrtoint(array.data, ir.IntType(64)), _word(builder, view, first))
    for axis, length in enumerate(cgutils.unpack_tuple(builder, array.shape)):
        builder.store(length, _word(builder, view, first + 1 + axis))


def decide_address(decide: Any) -> int:
    """Address of a policy's compiled function, for ``call_decide``; compiles it where it was not yet."""
    return int(_get_wrapper_address(decide, DECIDE))


@intrinsic
def view_at(_context: Any, _address: Any) -> Any:
    """The view whose words lie at an address: Numba takes longer to look at a Python ``View`` than to decide."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(VIEW))

    return VIEW(types.int64), generate


@intrinsic
def call_decide(_context: Any, _address: Any, _view: Any) -> Any:
    """Call the policy at an address (``decide_address``) with a view."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [context.get_value_type(VIEW)])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])
        return context.get_dummy_value()

    return types.none(types.int64, VIEW), generate
